//! Places in the commit of a transaction over several shards at which tests stop one, to end this proxy or a server
//! just there.
//!
//! Off unless SHARD_PROXY_FAULT_DIR names a directory when the proxy starts. Whoever puts an empty file with a step's
//! name there stops the next transaction that gets so far: the file is gone, and `NAME.reached` holds the gid and the
//! shards, the one that decides first. The transaction goes on when that file is removed, or after a minute.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail};
use shard_config::ShardId;
use tokio::time::{Instant, sleep};

use super::Gid;

const VARIABLE: &str = "SHARD_PROXY_FAULT_DIR";
/// Nobody waits longer for a test that has forgotten it.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing about the commit was sent.
    BeforePrepare,
    /// The decision and one PREPARE are sent, another is not.
    BetweenPrepares,
    /// All are prepared.
    BeforeCommit,
    /// The deciding COMMIT is sent, and its answer is not read.
    AtCommit,
    /// Decided; no other shard knows.
    AfterCommit,
    /// One COMMIT PREPARED is sent, another is not.
    BetweenCommits,
    /// All is done but the client's answer.
    BeforeAnswer,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::BeforePrepare => "before-prepare",
            Self::BetweenPrepares => "between-prepares",
            Self::BeforeCommit => "before-commit",
            Self::AtCommit => "at-commit",
            Self::AfterCommit => "after-commit",
            Self::BetweenCommits => "between-commits",
            Self::BeforeAnswer => "before-answer",
        }
    }
}

/// Once, before any client. A proxy that others can reach is no place for a test.
pub fn arm(listen: IpAddr) -> anyhow::Result<()> {
    let Some(directory) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return Ok(()) };
    if !listen.is_loopback() {
        bail!("{VARIABLE} is for tests on this machine only, and [proxy] listen is {listen}: unset it");
    }
    let directory = PathBuf::from(directory);
    if !directory.is_dir() {
        bail!("{VARIABLE}: {} is no directory", directory.display());
    }
    tracing::warn!(directory = %directory.display(), "transactions over several shards can be stopped: {VARIABLE} is set");
    if DIRECTORY.set(directory).is_err() {
        bail!("{VARIABLE} is read once");
    }
    Ok(())
}

/// Stops here if a test asks for it. `others` are the participants that do not decide.
pub(crate) async fn reach(step: Step, gid: &Gid, others: &[ShardId]) {
    // In production this load is all that there is.
    let Some(directory) = DIRECTORY.get() else { return };
    if let Err(error) = stop(directory, step.name(), gid, others).await {
        tracing::error!(%gid, step = step.name(), ?error, "a fault point does not work");
    }
}

async fn stop(directory: &Path, step: &str, gid: &Gid, others: &[ShardId]) -> anyhow::Result<()> {
    let taken = directory.join(format!("{step}.taken"));
    // The rename gives it to one of the transactions, and to none when nobody has asked.
    if std::fs::rename(directory.join(step), &taken).is_err() {
        return Ok(());
    }
    let mut text = format!("{gid} {}", gid.first);
    others.iter().for_each(|shard| text += &format!(" {shard}"));
    std::fs::write(&taken, text).context("the step's file")?;
    let reached = directory.join(format!("{step}.reached"));
    std::fs::rename(&taken, &reached).context("the step's file")?;
    tracing::warn!(%gid, step, "stopped at a fault point");
    let deadline = Instant::now() + LIMIT;
    while reached.exists() && Instant::now() < deadline {
        sleep(POLL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_transaction_stops_where_it_was_asked_to() {
        let directory = std::env::temp_dir().join(format!("shard-proxy-fault-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let gid = Gid::new("d", "p", 1, ShardId(2), 7);
        let others = [ShardId(3), ShardId(4)];
        stop(&directory, "before-commit", &gid, &others).await.unwrap(); // Nobody has asked.
        std::fs::write(directory.join("before-commit"), "").unwrap();
        let reached = directory.join("before-commit.reached");
        let waiting = stop(&directory, "before-commit", &gid, &others);
        let test = async {
            while !reached.exists() {
                sleep(POLL).await;
            }
            let text = std::fs::read_to_string(&reached).unwrap();
            stop(&directory, "before-commit", &gid, &others).await.unwrap(); // A second one goes on.
            std::fs::remove_file(&reached).unwrap();
            text
        };
        let (stopped, text) = tokio::join!(waiting, test);
        stopped.unwrap();
        assert_eq!(text, format!("{gid} 2 3 4"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
