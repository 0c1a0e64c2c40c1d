//! Connection URLs as libpq (`postgresql://`) and pgjdbc (`jdbc:postgresql://`) write them, several hosts
//! included, so that an operator pastes what the application has. Passwords are `Secret` from the first moment,
//! and no error repeats the text it was given.

use std::fmt::Write;

use crate::config::HostPort;
use crate::secret::Secret;

/// Where a database is and who asks. What the URL does not say is `None` or empty; defaults are the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionUrl {
    /// In the order of the URL. A host that begins with `/` is a directory of Unix sockets.
    pub hosts: Vec<HostPort>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub database: Option<String>,
    /// The rest of the query, decoded, in order. Values are secrets, since some of them (`sslpassword`) are.
    pub parameters: Vec<(String, Secret)>,
}

/// What is wrong with a URL. Has none of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("a connection URL begins with postgresql://, postgres:// or jdbc:postgresql://")]
    Scheme,
    #[error("a host of the URL is not host, host:port or [v6 address]:port")]
    Host,
    #[error("a port of the URL is not a number from 1 to 65535")]
    Port,
    #[error("the URL has a % that is not followed by two hexadecimal digits, or they are not UTF-8")]
    Percent,
    #[error("a parameter of the URL has no =")]
    Parameter,
    #[error("the URL gives a number of ports other than 1 or the number of hosts")]
    PortCount,
}

/// PostgreSQL's port.
const DEFAULT_PORT: u16 = 5432;

impl std::str::FromStr for ConnectionUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let (jdbc, rest) = match url.strip_prefix("jdbc:") {
            Some(rest) => (true, rest),
            None => (false, url),
        };
        let rest =
            rest.strip_prefix("postgresql:").or_else(|| rest.strip_prefix("postgres:").filter(|_| !jdbc));
        let rest = rest.ok_or(UrlError::Scheme)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            // pgjdbc: `jdbc:postgresql:database` is on localhost.
            None if jdbc => ("", rest.trim_start_matches('/')),
            None => return Err(UrlError::Scheme),
        };
        // libpq: the user ends at the first `:` or `@`, so an `@` in a password is written %40. pgjdbc knows no
        // user there.
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) if !jdbc => (Some(login), hosts),
            Some(_) => return Err(UrlError::Host),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').ok_or(login)) {
            None => (None, None),
            Some(Ok((user, password))) => (Some(user), Some(password)),
            Some(Err(user)) => (Some(user), None),
        };
        let mut parsed = Self {
            hosts: hosts.split(',').map(host).collect::<Result<_, _>>()?,
            user: user.filter(|user| !user.is_empty()).map(decode).transpose()?,
            password: password.map(decode).transpose()?.map(Secret::new),
            database: Some(path).filter(|path| !path.is_empty()).map(decode).transpose()?,
            parameters: Vec::new(),
        };
        let (mut hosts, mut ports) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or(UrlError::Parameter)?;
            let (key, value) = (decode(key)?, decode(value)?);
            match key.as_str() {
                "user" => parsed.user = Some(value),
                "password" => parsed.password = Some(Secret::new(value)),
                "dbname" if !jdbc => parsed.database = Some(value),
                "host" if !jdbc => hosts = Some(value),
                "port" if !jdbc => ports = Some(value),
                _ => parsed.parameters.push((key, Secret::new(value))),
            }
        }
        if let Some(hosts) = hosts {
            let named = hosts.split(',').map(|host| HostPort { host: host.to_owned(), port: DEFAULT_PORT });
            parsed.hosts = named.collect();
        }
        if let Some(ports) = ports {
            let ports: Vec<_> = ports.split(',').map(port).collect::<Result<_, _>>()?;
            if ports.len() != 1 && ports.len() != parsed.hosts.len() {
                return Err(UrlError::PortCount);
            }
            for (host, &port) in parsed.hosts.iter_mut().zip(ports.iter().cycle()) {
                host.port = port;
            }
        }
        Ok(parsed)
    }
}

impl ConnectionUrl {
    pub fn parameter(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.expose())
    }

    /// As libpq and tokio-postgres read it, the password included.
    pub fn expose_libpq(&self) -> String {
        self.render("postgresql://", true)
    }

    fn render(&self, scheme: &str, secrets: bool) -> String {
        let mut url = scheme.to_owned();
        if let Some(user) = &self.user {
            encode(&mut url, user);
            if let Some(password) = &self.password {
                url.push(':');
                match secrets {
                    true => encode(&mut url, password.expose()),
                    false => url += "***",
                }
            }
            url.push('@');
        }
        for (i, host) in self.hosts.iter().enumerate() {
            if i > 0 {
                url.push(',');
            }
            match host.host.contains(':') {
                true => _ = write!(url, "[{}]", host.host),
                false => encode(&mut url, &host.host),
            }
            _ = write!(url, ":{}", host.port);
        }
        if let Some(database) = &self.database {
            url.push('/');
            encode(&mut url, database);
        }
        let mut mark = '?';
        for (key, value) in &self.parameters {
            url.push(std::mem::replace(&mut mark, '&'));
            encode(&mut url, key);
            url.push('=');
            match secrets {
                true => encode(&mut url, value.expose()),
                false => url += "***",
            }
        }
        url
    }
}

/// For people: no password, no parameter's value.
impl std::fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render("postgresql://", false))
    }
}

fn host(text: &str) -> Result<HostPort, UrlError> {
    let (name, number) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or(UrlError::Host)?;
            (name, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(UrlError::Host)?) })
        }
        None => text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number))),
    };
    let name = decode(name)?;
    let port = number.filter(|number| !number.is_empty()).map(port).transpose()?.unwrap_or(DEFAULT_PORT);
    if name.contains(char::is_whitespace) {
        return Err(UrlError::Host);
    }
    Ok(HostPort { host: if name.is_empty() { "localhost".to_owned() } else { name }, port })
}

fn port(text: &str) -> Result<u16, UrlError> {
    text.parse().ok().filter(|&port| port > 0).ok_or(UrlError::Port)
}

fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits =
            digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(UrlError::Percent)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| UrlError::Percent)?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Percent)
}

fn encode(url: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            _ => _ = write!(url, "%{byte:02X}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(url: &str, shown: &str) {
        assert_eq!(url.parse::<ConnectionUrl>().map(|url| url.to_string()).as_deref(), Ok(shown), "{url}");
    }

    #[test]
    fn libpq_and_jdbc_urls_say_the_same() {
        check("postgresql://app:s3cret@h:6432/payments", "postgresql://app:***@h:6432/payments");
        check(
            "jdbc:postgresql://h:6432/payments?user=app&password=s3cret",
            "postgresql://app:***@h:6432/payments",
        );
        check("postgres://h", "postgresql://h:5432");
        check("postgresql://", "postgresql://localhost:5432");
        check("jdbc:postgresql:payments", "postgresql://localhost:5432/payments");
        check(
            "jdbc:postgresql://a,b:2/db?targetServerType=primary",
            "postgresql://a:5432,b:2/db?targetServerType=***",
        );
        check("postgresql://a:1,b:2,[::1]:3/db", "postgresql://a:1,b:2,[::1]:3/db");
        check("postgresql://u@%2Ftmp%2Fpg/db", "postgresql://u@%2Ftmp%2Fpg:5432/db");
        check("postgresql:///db?host=a,b&port=1,2", "postgresql://a:1,b:2/db");
        check("postgresql:///db?host=a,b&port=7", "postgresql://a:7,b:7/db");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |url: &str, error| assert_eq!(url.parse::<ConnectionUrl>(), Err(error), "{url}");
        check("mysql://h/db", UrlError::Scheme);
        check("postgresql:db", UrlError::Scheme);
        check("postgresql://h:0/db", UrlError::Port);
        check("postgresql://h:65536/db", UrlError::Port);
        check("postgresql://[::1/db", UrlError::Host);
        check("jdbc:postgresql://app:pw@h/db", UrlError::Host);
        check("postgresql://h/d%g0b", UrlError::Percent);
        check("postgresql://h/d%f", UrlError::Percent);
        check("postgresql://h/%ff", UrlError::Percent);
        check("postgresql://h/db?sslmode", UrlError::Parameter);
        check("postgresql:///db?host=a,b,c&port=1,2", UrlError::PortCount);
    }

    #[test]
    fn no_secret_is_printed() {
        for url in [
            "postgresql://app:s3cret@h/db?sslpassword=s3cret",
            "jdbc:postgresql://h/db?user=app&password=s3cret&sslpassword=s3cret",
        ] {
            let url: ConnectionUrl = url.parse().unwrap();
            assert!(!format!("{url} {url:?}").contains("s3cret"));
            assert!(url.expose_libpq().contains(":s3cret@"));
            assert_eq!(url.parameter("sslpassword"), Some("s3cret"));
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_read_again(
            user in "\\PC{1,8}", password in "\\PC{0,8}", database in "\\PC{1,8}", key in "[a-z]{9}", value in "\\PC{0,8}",
            hosts in prop::collection::vec(("[a-z0-9.-]{1,9}", 1u16..), 1..4),
        ) {
            let url = ConnectionUrl {
                hosts: hosts.into_iter().map(|(host, port)| HostPort { host, port }).collect(),
                user: Some(user),
                password: Some(Secret::new(password)),
                database: Some(database),
                parameters: vec![(key, Secret::new(value))],
            };
            prop_assert_eq!(url.expose_libpq().parse(), Ok(url));
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            let _ = format!("postgresql://{text}").parse::<ConnectionUrl>();
            let _ = text.parse::<ConnectionUrl>();
        }
    }
}
