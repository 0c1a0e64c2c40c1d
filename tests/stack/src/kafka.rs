//! Apache Kafka, one broker that is its own controller (KRaft), from Maven's jars.

use crate::paths::{fnv1a, workspace};
use crate::process::{log_tail, run, wait_until};
use crate::server::Stack;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const POM: &str = include_str!("../kafka/pom.xml");
const LOG_CONFIG: &str = include_str!("../kafka/log4j2.properties");
const START_LIMIT: Duration = Duration::from_secs(60);
/// Any 16 bytes in base64url; one broker is the whole cluster.
const CLUSTER_ID: &str = "c2hhcmRzdGFja2thZmthMQ";

/// Where the jars are: shared by all stacks of the user, one directory for each version of the pom.
pub(crate) fn jars() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set")?;
    Ok(cache.join("shard-stack").join(format!("kafka-{:016x}", fnv1a(POM.as_bytes()))))
}

/// Fetches the jars unless they are there.
pub(crate) fn fetch(say: impl Fn(&str)) -> Result<PathBuf> {
    let jars = jars()?;
    if jars.is_dir() {
        return Ok(jars);
    }
    say("fetching Apache Kafka from Maven Central (43 MB, once)");
    let fresh = jars.with_extension(format!("new{}", std::process::id()));
    fs::create_dir_all(&fresh).with_context(|| fresh.display().to_string())?;
    let pom = workspace()?.join("tests/stack/kafka/pom.xml");
    let fetched = run(Command::new("mvn")
        .args(["--batch-mode", "--quiet", "-f"])
        .arg(&pom)
        .args(["dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", fresh.display())));
    if let Err(error) = fetched {
        fs::remove_dir_all(&fresh)?;
        return Err(error.context("Maven could not fetch the Kafka broker"));
    }
    match fs::rename(&fresh, &jars) {
        Ok(()) => {}
        // Another stack was faster.
        Err(_) if jars.is_dir() => fs::remove_dir_all(&fresh)?,
        Err(error) => return Err(error).with_context(|| jars.display().to_string()),
    }
    Ok(jars)
}

impl Stack {
    fn java(&self, jars: &std::path::Path, heap_mb: u32) -> Command {
        let mut command = Command::new(&self.tools.java);
        command
            // The serial collector: least CPU for a small heap, and two cores are shared with everything else. For the same
            // reason only the quick compiler: the optimising one costs a broker with a few MB/s to do more than it saves.
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData"])
            .args([format!("-Xms{heap_mb}m"), format!("-Xmx{heap_mb}m")])
            .arg("-cp")
            .arg(jars.join("*"))
            .current_dir("/");
        command
    }

    pub(crate) fn start_kafka(&self) -> Result<()> {
        let state = self.state().clone();
        let jars = fetch(|text| self.say(text))?;
        let home = state.dir.join("kafka");
        let data = home.join("data");
        fs::create_dir_all(&data)?;
        let port = state.port("kafka")?;
        let properties = home.join("server.properties");
        fs::write(&properties, server_properties(port, &data.display().to_string()))?;
        let logging = home.join("log4j2.properties");
        fs::write(&logging, LOG_CONFIG)?;
        let logging = format!("-Dlog4j2.configurationFile={}", logging.display());
        if !data.join("meta.properties").exists() || !data.join("bootstrap.checkpoint").exists() {
            run(self
                .java(&jars, 64)
                .args([
                    "-XX:TieredStopAtLevel=1",
                    &logging,
                    "kafka.tools.StorageTool",
                    "format",
                    "--ignore-formatted",
                ])
                .args(["-t", CLUSTER_ID, "-c"])
                .arg(&properties))?;
        }
        let log = state.log("kafka");
        let from = fs::metadata(&log).map(|meta| meta.len()).unwrap_or(0);
        let process =
            self.spawn("kafka", self.java(&jars, 384).args([&logging, "kafka.Kafka"]).arg(&properties))?;
        let started = || log_tail(&log, from, 400).contains("Kafka Server started");
        if wait_until(START_LIMIT, || started() || !process.alive()) && process.alive() {
            return Ok(());
        }
        bail!("kafka did not become ready; {}:\n{}", log.display(), log_tail(&log, from, 15));
    }
}

/// One broker, so replication factors are 1; everything else is as a cluster would have it. Twelve partitions by
/// default (R14). Internal topics have few partitions because each one costs files and start-up time.
fn server_properties(port: u16, data: &str) -> String {
    let controller = port + 1;
    format!(
        "# Made by `cargo stack up`; changes are overwritten.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
num.partitions=12
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
background.threads=2
log.retention.hours=168
log.segment.bytes=134217728
compression.type=producer
controlled.shutdown.enable=true
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"
    )
}
