//! Where the running stack's servers are, from the environment that `cargo load` sets (`cargo stack env`).
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

const REMEDY: &str = "start it through `cargo load`, or run `export $(cargo stack env)` first";

/// One shard's servers, as connection URLs of a superuser.
#[derive(Clone, Debug)]
pub struct Shard {
    pub id: u16,
    pub primary: String,
    pub replica: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// `host:port` of every core.
    pub cores: Vec<String>,
    pub admin_token: String,
    pub shards: Vec<Shard>,
    /// `host:port` of every proxy's SQL door.
    pub proxies: Vec<String>,
    pub redis: Option<String>,
    pub kafka: Option<String>,
    /// The stack's profile lets commits return before a standby has them.
    pub asynchronous: bool,
    /// Where the seed file and the logs of acknowledgements are kept.
    pub load_dir: PathBuf,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `scheme://user:password@host:port/path` -> `host:port`.
pub fn authority(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest).to_owned()
}

pub fn port(url: &str) -> Option<u16> {
    authority(url).rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

impl Stack {
    pub fn from_env() -> Result<Stack> {
        let mut shards = Vec::new();
        for id in 1..=256u16 {
            let Some(primary) = variable(&format!("SHARD{id}_PRIMARY_URL")) else { break };
            shards.push(Shard { id, primary, replica: variable(&format!("SHARD{id}_REPLICA_URL")) });
        }
        if shards.is_empty() {
            bail!("SHARD1_PRIMARY_URL is not set: {REMEDY}");
        }
        let list = |name: &str, one: &str| -> Vec<String> {
            variable(name)
                .or_else(|| variable(one))
                .map(|urls| urls.split(',').map(authority).filter(|a| !a.is_empty()).collect())
                .unwrap_or_default()
        };
        let load_dir = variable("STACK_DIR").map_or_else(
            || std::env::temp_dir().join("payments-load"),
            |dir| PathBuf::from(dir).join("load"),
        );
        Ok(Stack {
            cores: list("CORE_URLS", "CORE_URL"),
            admin_token: variable("CORE_ADMIN_TOKEN").unwrap_or_default(),
            shards,
            proxies: list("PROXY_URLS", "PROXY_URL"),
            redis: variable("REDIS_URL").map(|url| authority(&url)),
            kafka: variable("KAFKA_BROKERS"),
            asynchronous: variable("STACK_PROFILE").as_deref() == Some("async"),
            load_dir,
        })
    }

    pub fn need_cores(&self, wanted: Option<usize>) -> Result<Vec<String>> {
        let wanted = wanted.unwrap_or(self.cores.len().max(1));
        if self.cores.len() < wanted {
            bail!(
                "{} core(s) running, {wanted} wanted: {}",
                self.cores.len(),
                if self.cores.is_empty() { REMEDY } else { "run `cargo stack up --cores N`" }
            );
        }
        Ok(self.cores[..wanted].to_vec())
    }

    pub fn need_kafka(&self) -> Result<String> {
        self.kafka.clone().with_context(|| format!("KAFKA_BROKERS is not set: {REMEDY}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_of_each_kind_of_url() {
        assert_eq!(authority("postgresql://app:app@127.0.0.1:17051/payments"), "127.0.0.1:17051");
        assert_eq!(authority("http://127.0.0.1:17071"), "127.0.0.1:17071");
        assert_eq!(authority("127.0.0.1:17042"), "127.0.0.1:17042");
        assert_eq!(port("redis://127.0.0.1:17041"), Some(17041));
        assert_eq!(port("/var/run/x"), None);
    }
}
