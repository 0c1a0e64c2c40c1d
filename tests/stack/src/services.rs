//! Redis, and our own programs: shard-proxy, payment-core and the migrations.

use crate::paths::release;
use crate::postgres::DATABASE;
use crate::process::run;
use crate::server::Stack;
use crate::state::State;
use crate::tools::memory_bytes;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const READY_LIMIT: Duration = Duration::from_secs(30);

/// The payment schema's, and those of the differential suite; sharded ones are known by their key column.
const REFERENCE_TABLES: [&str; 9] = [
    "public.currencies",
    "oracle.countries",
    "oracle.products",
    "tpch.region",
    "tpch.nation",
    "tpch.part",
    "tpch.supplier",
    "tpch.partsupp",
    "tpcc.item",
];

/// One plain GET; `None` when nobody answers in time.
pub(crate) fn get(port: u16, path: &str, token: Option<&str>) -> Option<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{token}Connection: close\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    stream.take(4 << 20).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

impl Stack {
    pub(crate) fn start_redis(&self) -> Result<()> {
        let state = self.state().clone();
        let home = state.dir.join("redis");
        fs::create_dir_all(&home)?;
        let port = state.port("redis")?;
        // R23 asks for 8 GB on the customer's machines; here a sixteenth of the memory.
        let memory = (memory_bytes() / 16).clamp(64 << 20, 8 << 30);
        let config = home.join("redis.conf");
        let text = format!(
            "# Made by `cargo stack up`; changes are overwritten.
bind 127.0.0.1
port {port}
dir {}
daemonize no
tcp-keepalive 60
maxmemory {memory}
maxmemory-policy allkeys-lru
appendonly yes
appendfsync everysec
save \"\"
",
            home.display()
        );
        fs::write(&config, text)?;
        let from = log_size(&state, "redis");
        self.spawn("redis", Command::new(&self.tools.redis).arg(&config))?;
        self.wait_ready("redis", from, READY_LIMIT, || ping_redis(port))
    }

    pub(crate) fn start_proxy(&self, n: u16) -> Result<()> {
        let state = self.state().clone();
        let name = format!("proxy{n}");
        let home = state.dir.join(&name);
        let config = self.configure_proxy(n)?;
        // A test's own, whose servers are behind something that it can cut.
        let given = std::env::var_os("STACK_PROXY_CONFIG").filter(|file| !file.is_empty());
        let config = given.map_or(config, PathBuf::from);
        let program = release("shard-proxy")?;
        let from = log_size(&state, &name);
        self.spawn(&name, log_filter(Command::new(program).arg("--config").arg(&config).current_dir(&home)))?;
        let http = state.proxy_http(n);
        self.wait_ready(&name, from, READY_LIMIT, || {
            get(http, "/readyz", None).is_some_and(|(code, _)| code == 200)
        })
    }

    /// Writes its configuration file, which a running one reads when it is told to.
    pub(crate) fn configure_proxy(&self, n: u16) -> Result<PathBuf> {
        let state = self.state().clone();
        let home = state.dir.join(format!("proxy{n}"));
        fs::create_dir_all(home.join("state"))?;
        let config = home.join("proxy.toml");
        fs::write(&config, proxy_config(&state, n)?)?;
        Ok(config)
    }

    pub(crate) fn start_core(&self, n: u16) -> Result<()> {
        let state = self.state().clone();
        let name = format!("core{n}");
        // Cores spread over the proxies, as behind a load balancer.
        let proxy = (n - 1) % state.proxies.max(1) + 1;
        let port = state.port(&name)?;
        let from = log_size(&state, &name);
        let mut command = Command::new(release("payment-core")?);
        command
            .current_dir(&state.dir)
            .env("CORE_LISTEN", format!("127.0.0.1:{port}"))
            .env("CORE_INSTANCE", &name)
            .env("DATABASE_URL", app_url(state.port(&format!("proxy{proxy}"))?))
            .env("REDIS_URL", format!("redis://127.0.0.1:{}", state.port("redis")?))
            .env("KAFKA_BROKERS", format!("127.0.0.1:{}", state.port("kafka")?))
            .env("CORE_ADMIN_TOKEN", &state.admin_token);
        self.spawn(&name, log_filter(&mut command))?;
        self.wait_ready(&name, from, READY_LIMIT, || {
            get(port, "/readyz", None).is_some_and(|(code, _)| code == 200)
        })
    }

    /// The schema, on all shards through the first proxy and directly on the oracle.
    pub(crate) fn migrate(&self) -> Result<()> {
        let state = self.state().clone();
        let migrate = release("migrate")?;
        for (what, port) in [("the shards", state.port("proxy1")?), ("the oracle", state.port("oracle")?)] {
            run(Command::new(&migrate).arg("--url").arg(app_url(port)))
                .with_context(|| format!("migrating {what}"))?;
        }
        Ok(())
    }
}

/// Our programs' logs go to files, so without colours; RUST_LOG of the caller decides what they hold.
fn log_filter(command: &mut Command) -> &mut Command {
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "info");
    }
    command.env("NO_COLOR", "1")
}

fn log_size(state: &State, name: &str) -> u64 {
    fs::metadata(state.log(name)).map(|meta| meta.len()).unwrap_or(0)
}

fn ping_redis(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0u8; 5];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG")
    };
    ask().unwrap_or(false)
}

pub(crate) fn app_url(port: u16) -> String {
    format!("postgresql://app:app@127.0.0.1:{port}/{DATABASE}")
}

fn proxy_config(state: &State, n: u16) -> Result<String> {
    let name = format!("proxy{n}");
    // A proxy knows only the writes that went through it, so with several of them a replica read is the client's choice.
    let policy = if state.proxies == 1 { "fresh" } else { "opt_in" };
    let others = (1..=state.proxies).filter(|other| *other != n);
    let peers: Vec<String> =
        others.map(|other| format!("\"127.0.0.1:{}\"", state.proxy_http(other))).collect();
    let mut text = format!(
        "# Made by `cargo stack up`; changes are overwritten.
[proxy]
name = \"{name}\"
listen = \"127.0.0.1:{sql}\"
http = \"127.0.0.1:{http}\"
peers = [{peers}]
database = \"{DATABASE}\"
state_dir = \"{state_dir}\"

[key]
column = \"tenant_id\"
type = \"uuid\"
buckets = 4096

[reads]
policy = \"{policy}\"

[control]
user = \"shard_proxy\"
password = \"shard_proxy\"

[[user]]
name = \"app\"
password = \"app\"

[[user]]
name = \"postgres\"
password = \"postgres\"
admin = true

[[function]]
name = \"public.post_payments\"
route = \"key_array\"
argument = 1
",
        sql = state.port(&name)?,
        http = state.proxy_http(n),
        peers = peers.join(", "),
        state_dir = state.dir.join(&name).join("state").display(),
    );
    for table in REFERENCE_TABLES {
        write!(text, "\n[[table]]\nname = \"{table}\"\nkind = \"reference\"\n")?;
    }
    for shard in 1..=state.shards {
        let primary = state.port(&state.primary_of(shard))?;
        let standby = state.port(&state.standby_of(shard))?;
        write!(
            text,
            "\n[[shard]]\nid = {shard}\nprimary = \"127.0.0.1:{primary}\"\nreplicas = [\"127.0.0.1:{standby}\"]\n"
        )?;
    }
    Ok(text)
}

/// The variables that every tool of the workspace reads; also what `stack env` prints.
pub(crate) fn environment(state: &State) -> Result<Vec<(String, String)>> {
    let mut vars: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| vars.push((name.to_owned(), value));
    let dba = |port: u16| format!("postgresql://postgres:postgres@127.0.0.1:{port}/{DATABASE}");
    let mut proxies = Vec::new();
    let mut cores = Vec::new();
    for n in 1..=state.proxies {
        proxies.push(app_url(state.port(&format!("proxy{n}"))?));
    }
    for n in 1..=state.cores {
        cores.push(format!("http://127.0.0.1:{}", state.port(&format!("core{n}"))?));
    }
    let (Some(proxy), Some(core)) = (proxies.first(), cores.first()) else {
        bail!("no proxy or no core configured")
    };
    set("PROXY_URL", proxy.clone());
    set("PROXY_URLS", proxies.join(","));
    set("CORE_URL", core.clone());
    set("CORE_URLS", cores.join(","));
    set("CORE_ADMIN_TOKEN", state.admin_token.clone());
    set("ADMIN_URL", format!("http://127.0.0.1:{}", state.proxy_http(1)));
    for shard in 1..=state.shards {
        set(&format!("SHARD{shard}_PRIMARY_URL"), dba(state.port(&state.primary_of(shard))?));
        set(&format!("SHARD{shard}_REPLICA_URL"), dba(state.port(&state.standby_of(shard))?));
    }
    set("SINGLE_URL", app_url(state.port("oracle")?));
    set("REDIS_URL", format!("redis://127.0.0.1:{}", state.port("redis")?));
    set("KAFKA_BROKERS", format!("127.0.0.1:{}", state.port("kafka")?));
    set("STACK_DIR", state.dir.display().to_string());
    set("STACK_PORT_BASE", state.port_base.to_string());
    // What an acknowledged commit promises, for those who check it.
    set("STACK_PROFILE", state.profile.name().to_owned());
    Ok(vars)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_environment_names_the_primary_after_a_promotion() {
        let mut state = State::new(Path::new("/d"), 17000).unwrap();
        state.promoted.insert(1, "shard1-replica".into());
        let vars = environment(&state).unwrap();
        let value =
            |name: &str| vars.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap();
        assert_eq!(value("SHARD1_PRIMARY_URL"), "postgresql://postgres:postgres@127.0.0.1:17021/payments");
        assert_eq!(value("SHARD2_PRIMARY_URL"), "postgresql://postgres:postgres@127.0.0.1:17002/payments");
        assert_eq!(value("PROXY_URL"), "postgresql://app:app@127.0.0.1:17051/payments");
    }

    #[test]
    fn h7_several_proxies_do_not_read_replicas_unasked() {
        let mut state = State::new(Path::new("/d"), 17000).unwrap();
        assert!(proxy_config(&state, 1).unwrap().contains("policy = \"fresh\""));
        state.proxies = 2;
        assert!(proxy_config(&state, 2).unwrap().contains("policy = \"opt_in\""));
    }
}
