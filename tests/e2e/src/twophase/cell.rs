//! One step of the protocol, and one component that dies at it.

use super::bank::{Bank, Told, Traffic};
use super::judge;
use crate::stack::Stack;
use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_postgres::Client;

/// As the proxy names them.
const STEPS: [&str; 7] = [
    "before-prepare",
    "between-prepares",
    "before-commit",
    "at-commit",
    "after-commit",
    "between-commits",
    "before-answer",
];

/// The orphans of a dead proxy are finished within this time, by another one.
const ORPHANS_LIMIT: Duration = Duration::from_secs(5);
/// After a killed shard is back.
const SETTLED_LIMIT: Duration = Duration::from_secs(20);
/// Until somebody's transfer goes through again.
const SERVED_LIMIT: Duration = Duration::from_secs(20);
const REACHED_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Proxy,
    /// The shard whose COMMIT decides.
    Decider,
    /// The first and the second of those that are prepared.
    Second,
    Third,
    /// A shard that takes no part.
    Bystander,
}

const VICTIMS: [Victim; 5] =
    [Victim::Proxy, Victim::Decider, Victim::Second, Victim::Third, Victim::Bystander];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    step: &'static str,
    victim: Victim,
}

/// What the proxy says of the transaction that it has stopped.
struct Stopped {
    gid: String,
    shards: Vec<u16>,
}

impl Cell {
    pub fn all() -> Vec<Cell> {
        STEPS.into_iter().flat_map(|step| VICTIMS.map(|victim| Cell { step, victim })).collect()
    }

    /// Orphans of which a decision exists, and a participant that misses it.
    pub fn lite() -> Vec<Cell> {
        vec![
            Cell { step: "between-commits", victim: Victim::Proxy },
            Cell { step: "after-commit", victim: Victim::Second },
        ]
    }

    pub fn name(&self) -> String {
        let victim = match self.victim {
            Victim::Proxy => "proxy",
            Victim::Decider => "decider",
            Victim::Second => "second",
            Victim::Third => "third",
            Victim::Bystander => "bystander",
        };
        format!("{}/{victim}", self.step)
    }

    /// What happened, and what is wrong.
    pub async fn run(
        &self,
        stack: &mut Stack,
        bank: &mut Bank,
        random: &mut StdRng,
    ) -> Result<(Value, Vec<String>)> {
        let mut violations = Vec::new();
        let faults = fault_directory(stack)?;
        for entry in std::fs::read_dir(&faults)? {
            std::fs::remove_file(entry?.path())?;
        }
        let traffic = Traffic::start(bank, &stack.proxies()?, random.random());
        sleep(Duration::from_millis(700)).await;
        let stopped = self.stop(&faults).await.with_context(|| self.name())?;
        let (name, settled_s) = match self.victim {
            Victim::Proxy => self.kill_proxy(stack, &faults, &mut violations).await?,
            _ => self.kill_shard(stack, &faults, &stopped, &mut violations).await?,
        };
        let healed = Instant::now();
        while !traffic.committed_since(healed) {
            if healed.elapsed() > SERVED_LIMIT {
                violations.push(format!("no transfer went through within {} s", SERVED_LIMIT.as_secs()));
                break;
            }
            sleep(POLL).await;
        }
        let transfers = traffic.finish().await?;
        if let Err(left) = settled(&all(stack).await?, "shardproxy:", SETTLED_LIMIT).await {
            violations.push(format!("still prepared: {left}"));
        }
        violations.extend(judge::judge(stack, bank, &transfers).await?);
        let count = |is: fn(&Told) -> bool| transfers.iter().filter(|transfer| is(&transfer.told)).count();
        let effect = json!({
            "cell": self.name(), "killed": name, "gid": stopped.gid, "settled_s": settled_s,
            "transfers": transfers.len(),
            "committed": count(|told| matches!(told, Told::Committed)),
            "rolled_back": count(|told| matches!(told, Told::RolledBack(_))),
            "unknown": count(|told| matches!(told, Told::Unknown(_))),
        });
        Ok((effect, violations))
    }

    /// Waits until a transaction has got to the step and stands there.
    async fn stop(&self, faults: &Path) -> Result<Stopped> {
        std::fs::write(faults.join(self.step), "")?;
        let reached = faults.join(format!("{}.reached", self.step));
        let begun = Instant::now();
        while !reached.exists() {
            if begun.elapsed() > REACHED_LIMIT {
                bail!("no transaction got to this step");
            }
            sleep(Duration::from_millis(5)).await;
        }
        // What was sent before the step arrives.
        sleep(Duration::from_millis(100)).await;
        let text = std::fs::read_to_string(&reached)?;
        let mut words = text.split(' ');
        let gid = words.next().unwrap_or_default().to_owned();
        let shards =
            words.map(str::parse).collect::<Result<Vec<u16>, _>>().context("the shards of a fault")?;
        if shards.len() != 3 {
            bail!("three shards are to take part: {text}");
        }
        Ok(Stopped { gid, shards })
    }

    /// It stays dead until what it left is finished.
    async fn kill_proxy(
        &self,
        stack: &Stack,
        faults: &Path,
        violations: &mut Vec<String>,
    ) -> Result<(String, f64)> {
        let shards = all(stack).await?;
        let begun = Instant::now();
        stack.command(&["kill", "proxy1", "-9"]).await?;
        let orphans = format!("shardproxy:{}:proxy1:", database(stack)?);
        if let Err(left) = settled(&shards, &orphans, SETTLED_LIMIT).await {
            violations.push(format!("orphans of the dead proxy: {left}"));
        }
        let took = begun.elapsed();
        if took > ORPHANS_LIMIT {
            violations
                .push(format!("the dead proxy's orphans were finished after {:.2} s", took.as_secs_f64()));
        }
        release(faults, self.step)?;
        start_proxy(stack, true).await?;
        Ok(("proxy1".into(), rounded(took)))
    }

    async fn kill_shard(
        &self,
        stack: &Stack,
        faults: &Path,
        stopped: &Stopped,
        violations: &mut Vec<String>,
    ) -> Result<(String, f64)> {
        let shard = match self.victim {
            Victim::Second => stopped.shards[1],
            Victim::Third => stopped.shards[2],
            Victim::Bystander => (1..=stack.shards())
                .find(|shard| !stopped.shards.contains(shard))
                .context("every shard takes part")?,
            Victim::Decider | Victim::Proxy => stopped.shards[0],
        };
        let name = stack.primary_name(shard).await?;
        stack.command(&["kill", &name, "-9"]).await?;
        sleep(Duration::from_millis(300)).await;
        release(faults, self.step)?;
        sleep(Duration::from_secs(1)).await;
        stack.command(&["start", &name]).await?;
        let begun = Instant::now();
        if let Err(left) = settled(&all(stack).await?, &stopped.gid, SETTLED_LIMIT).await {
            violations.push(format!("{name} is back, and still prepared: {left}"));
        }
        Ok((name, rounded(begun.elapsed())))
    }
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

fn release(faults: &Path, step: &str) -> Result<()> {
    std::fs::remove_file(faults.join(format!("{step}.reached"))).context("the stopped transaction")
}

fn fault_directory(stack: &Stack) -> Result<PathBuf> {
    let directory = stack.dir()?.join("chaos/faults");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn database(stack: &Stack) -> Result<&str> {
    let url = stack.var("PROXY_URL")?;
    url.rsplit_once('/').map(|(_, database)| database).context("a URL with a database")
}

async fn all(stack: &Stack) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for shard in 1..=stack.shards() {
        clients.push(stack.shard(shard).await?);
    }
    Ok(clients)
}

/// Waits until nothing is prepared under names that begin so. `Err` is what is left, or why it cannot be said.
async fn settled(shards: &[Client], prefix: &str, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let mut left = Vec::new();
        for shard in shards {
            let sql = "SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, $1)";
            let rows = shard.query(sql, &[&prefix]).await.map_err(|error| error.to_string())?;
            left.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > limit {
            return Err(left.join(" "));
        }
        sleep(POLL).await;
    }
}

/// With fault points, or as it was.
pub async fn restart_proxy(stack: &Stack, faults: bool) -> Result<()> {
    stack.command(&["kill", "proxy1", "-9"]).await?;
    start_proxy(stack, faults).await
}

async fn start_proxy(stack: &Stack, faults: bool) -> Result<()> {
    let directory = if faults { fault_directory(stack)?.display().to_string() } else { String::new() };
    stack.command_with(&["start", "proxy1"], &[("SHARD_PROXY_FAULT_DIR", &directory)]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_dies_at_every_step() {
        let mut names: Vec<String> = Cell::all().iter().map(Cell::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), STEPS.len() * VICTIMS.len());
        assert!(Cell::lite().iter().all(|cell| names.contains(&cell.name())));
    }
}
