//! The command line. Written by hand: a parser crate would double the build time of this one.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Profile {
    /// An acknowledged commit is on the disks of the primary and of its replica.
    Sync,
    /// An acknowledged commit is on the primary's disk; a promotion may lose the last ones.
    Async,
    /// No fsync at all: for tests that never crash a machine. Never for a measurement.
    FastUnsafe,
}

impl Profile {
    pub(crate) fn parse(text: &str) -> Result<Profile> {
        Ok(match text {
            "sync" => Profile::Sync,
            "async" => Profile::Async,
            "fast-unsafe" => Profile::FastUnsafe,
            other => bail!("--profile {other}: expected sync, async or fast-unsafe"),
        })
    }
    pub(crate) fn name(self) -> &'static str {
        match self {
            Profile::Sync => "sync",
            Profile::Async => "async",
            Profile::FastUnsafe => "fast-unsafe",
        }
    }
}

/// Every option of every subcommand; a subcommand ignores none silently (see `accept`).
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub dir: Option<PathBuf>,
    pub port_base: u16,
    pub proxies: Option<u16>,
    pub cores: Option<u16>,
    pub shards: Option<u16>,
    pub profile: Option<Profile>,
    pub detach: bool,
    pub only_infra: bool,
    pub no_build: bool,
    pub install: bool,
    pub wipe: bool,
    pub json: bool,
    pub follow: bool,
    pub lines: usize,
    pub hard: bool,
    pub seconds: Option<u64>,
    pub rate: Option<u32>,
    pub keep: bool,
    pub skip: Vec<String>,
    pub words: Vec<String>,
}

pub(crate) const PORT_BASE: u16 = 17000;

pub(crate) fn parse(arguments: &[String]) -> Result<Options> {
    let base = match std::env::var("STACK_PORT_BASE") {
        Ok(text) if !text.is_empty() => number::<u16>("STACK_PORT_BASE", &text)?,
        _ => PORT_BASE,
    };
    let mut options = Options {
        dir: std::env::var_os("STACK_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
        port_base: base,
        proxies: None,
        cores: None,
        shards: None,
        profile: None,
        detach: false,
        only_infra: false,
        no_build: std::env::var_os("STACK_NO_BUILD").is_some(),
        install: false,
        wipe: false,
        json: false,
        follow: false,
        lines: 50,
        hard: false,
        seconds: None,
        rate: None,
        keep: false,
        skip: Vec::new(),
        words: Vec::new(),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        let mut value = || -> Result<String> {
            match &inline {
                Some(value) => Ok(value.clone()),
                None => rest.next().cloned().with_context(|| format!("{flag} needs a value")),
            }
        };
        match flag {
            "--dir" => options.dir = Some(value()?.into()),
            "--port-base" => options.port_base = number(flag, &value()?)?,
            "--proxies" => options.proxies = Some(number(flag, &value()?)?),
            "--cores" => options.cores = Some(number(flag, &value()?)?),
            "--shards" => options.shards = Some(number(flag, &value()?)?),
            "--profile" => options.profile = Some(Profile::parse(&value()?)?),
            "--seconds" => options.seconds = Some(number(flag, &value()?)?),
            "--rate" => options.rate = Some(number(flag, &value()?)?),
            "--only" => match value()?.as_str() {
                "infra" => options.only_infra = true,
                other => {
                    bail!("--only {other}: only `infra` (the servers without proxies and cores) is known")
                }
            },
            "--skip" => options.skip.extend(value()?.split(',').map(str::to_owned)),
            "-n" | "--lines" => options.lines = number(flag, &value()?)?,
            "-d" | "--detach" => options.detach = true,
            "--no-build" => options.no_build = true,
            "--install" => options.install = true,
            "--wipe" => options.wipe = true,
            "--json" => options.json = true,
            "--keep" => options.keep = true,
            "-f" | "--follow" => options.follow = true,
            "-9" | "--hard" => options.hard = true,
            "-h" | "--help" => options.words.insert(0, "help".into()),
            "--" => {}
            _ if flag.starts_with('-') => bail!("unknown option {flag}; see `cargo stack help`"),
            _ => options.words.push(argument.clone()),
        }
    }
    if options.port_base < 1024 || options.port_base > 65_400 {
        bail!("--port-base {}: expected 1024 to 65400", options.port_base);
    }
    for (flag, count) in [("--proxies", options.proxies), ("--cores", options.cores)] {
        // Ten ports each are kept for proxies and cores.
        if count.is_some_and(|count| count > 9) {
            bail!("{flag}: at most 9");
        }
    }
    if options.shards.is_some_and(|count| !(1..=19).contains(&count)) {
        bail!("--shards: 1 to 19");
    }
    Ok(options)
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{flag} {text}: not a number in range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<Options> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_may_come_in_both_spellings_and_any_order() {
        let options = check("--proxies=2 kill shard1-primary -9 --cores 3").unwrap();
        assert_eq!((options.proxies, options.cores, options.hard), (Some(2), Some(3), true));
        assert_eq!(options.words, ["kill", "shard1-primary"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("--profile fast", "fast-unsafe"),
            ("--proxies 10", "at most 9"),
            ("--portbase 1", "--portbase"),
            ("--dir", "value"),
        ] {
            let message = check(line).unwrap_err().to_string();
            assert!(message.contains(word), "{line}: {message}");
        }
    }
}
