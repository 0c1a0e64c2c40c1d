//! What is done to the system. Every fault ends with everything running again.

use crate::load::Load;
use crate::stack::{Stack, connect};
use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::sleep;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    ProxyKill,
    CoreKill,
    PrimaryRestart,
    PrimaryPromote,
    KafkaKill,
    RedisKill,
    PrimaryPause,
    ReplicaKill,
    StandbyStallPromote,
    RelayPause,
}

/// Longer than a core waits for a posting statement (5 s): what then was cancelled while it waited for the standby is
/// committed on the primary alone.
const STALL: Duration = Duration::from_secs(8);
/// Longer than a relay's lease (5 s) and the time in which another core looks for a free one.
const RELAY_AWAY: Duration = Duration::from_secs(9);

/// The six of the short form come first.
pub const ALL: [Fault; 10] = [
    Fault::RedisKill,
    Fault::KafkaKill,
    Fault::CoreKill,
    Fault::ProxyKill,
    Fault::PrimaryRestart,
    Fault::PrimaryPromote,
    Fault::PrimaryPause,
    Fault::ReplicaKill,
    Fault::StandbyStallPromote,
    Fault::RelayPause,
];
pub const LITE: usize = 6;

/// Where and when it hurt.
#[derive(Clone, Debug)]
pub struct Wound {
    pub fault: Fault,
    /// Index of the shard, when one shard was hurt.
    pub shard: Option<usize>,
    pub from: Duration,
    /// From here on the system can serve everybody again.
    pub healed: Duration,
    /// Everything runs as before.
    pub done: Duration,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::ProxyKill => "proxy-kill",
            Fault::CoreKill => "core-kill",
            Fault::PrimaryRestart => "primary-restart",
            Fault::PrimaryPromote => "primary-promote",
            Fault::KafkaKill => "kafka-kill",
            Fault::RedisKill => "redis-kill",
            Fault::PrimaryPause => "primary-pause",
            Fault::ReplicaKill => "replica-kill",
            Fault::StandbyStallPromote => "standby-stall-promote",
            Fault::RelayPause => "relay-pause",
        }
    }

    pub fn named(name: &str) -> Option<Fault> {
        ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Redis and Kafka are not on the way of a payment: without them it is slower at most.
    pub fn payments_go_on(self) -> bool {
        matches!(self, Fault::KafkaKill | Fault::RedisKill)
    }
}

pub async fn inflict(stack: &mut Stack, load: &Load, fault: Fault, random: &mut StdRng) -> Result<Wound> {
    let shard = random.random_range(1..=stack.shards());
    let primary = stack.primary_name(shard).await?;
    let replica = if primary.ends_with("-primary") {
        format!("shard{shard}-replica")
    } else {
        format!("shard{shard}-primary")
    };
    let from = load.now();
    let mut wound = Wound { fault, shard: None, from, healed: from, done: from };
    match fault {
        Fault::ProxyKill => kill_and_start(stack, "proxy1", Duration::from_secs(1)).await?,
        Fault::CoreKill => kill_and_start(stack, "core1", Duration::from_secs(1)).await?,
        Fault::KafkaKill => kill_and_start(stack, "kafka", Duration::from_secs(3)).await?,
        Fault::RedisKill => kill_and_start(stack, "redis", Duration::from_secs(3)).await?,
        Fault::PrimaryRestart => {
            wound.shard = Some(usize::from(shard) - 1);
            kill_and_start(stack, &primary, Duration::from_secs(5)).await?;
        }
        Fault::ReplicaKill => {
            wound.shard = Some(usize::from(shard) - 1);
            kill_and_start(stack, &replica, Duration::from_secs(3)).await?;
        }
        Fault::PrimaryPause => {
            wound.shard = Some(usize::from(shard) - 1);
            stack.command(&["pause", &primary]).await?;
            sleep(Duration::from_secs(4)).await;
            stack.command(&["cont", &primary]).await?;
        }
        Fault::PrimaryPromote => {
            wound.shard = Some(usize::from(shard) - 1);
            stack.command(&["kill", &primary, "-9"]).await?;
            sleep(Duration::from_secs(1)).await;
            promote(stack, load, shard, &primary, &mut wound).await?;
            return Ok(wound);
        }
        Fault::StandbyStallPromote => {
            wound.shard = Some(usize::from(shard) - 1);
            let written = stall_and_kill(stack, shard, &primary, &replica).await?;
            sleep(Duration::from_secs(1)).await;
            promote(stack, load, shard, &primary, &mut wound).await?;
            // After the promotion it still says what it had received as a standby.
            let sql = "SELECT coalesce(pg_last_wal_receive_lsn() < $1::text::pg_lsn, true)";
            let behind: bool = stack.shard(shard).await?.query_one(sql, &[&written]).await?.get(0);
            if !behind {
                bail!("the stalled {replica} had received everything: nothing could be lost");
            }
            return Ok(wound);
        }
        Fault::RelayPause => relay_pause(stack, load, shard).await?,
    }
    wound.healed = load.now();
    wound.done = wound.healed;
    Ok(wound)
}

/// The replica becomes the primary; the dead primary returns, is judged, and becomes the replica.
async fn promote(stack: &mut Stack, load: &Load, shard: u16, primary: &str, wound: &mut Wound) -> Result<()> {
    let stale_url = stack.var(&format!("SHARD{shard}_PRIMARY_URL"))?.to_owned();
    stack.command(&["promote", &format!("shard{shard}")]).await?;
    stack.refresh().await?;
    wound.healed = load.now();
    sleep(Duration::from_secs(2)).await;
    stale_primary(stack, load, primary, &stale_url).await?;
    stack.command(&["rejoin", &format!("shard{shard}")]).await?;
    wound.done = load.now();
    Ok(())
}

/// Commits hang because the standby does not answer; then the primary dies, and the standby goes on without what it
/// never read. Returns how far the primary had written.
async fn stall_and_kill(stack: &Stack, shard: u16, primary: &str, replica: &str) -> Result<String> {
    let standby = connect(stack.var(&format!("SHARD{shard}_REPLICA_URL"))?).await?;
    let receiver: i32 = standby
        .query_opt("SELECT pid FROM pg_stat_wal_receiver", &[])
        .await?
        .with_context(|| format!("{replica} receives no WAL"))?
        .get(0);
    let own = stack.shard(shard).await?;
    stack.command(&["pause", replica]).await?;
    sleep(STALL / 2).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting: i64 = own.query_one(sql, &[]).await?.get(0);
    if waiting == 0 {
        stack.command(&["cont", replica]).await?;
        bail!("no commit of {primary} waits for the stalled {replica}");
    }
    sleep(STALL / 2).await;
    let written: String = own.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?.get(0);
    stack.command(&["kill", primary, "-9"]).await?;
    // What the kernel holds for the receiver would arrive after all; on two machines it would be gone with the
    // network. The signal waits until the receiver goes on, and ends it before it reads.
    let ended = Command::new("kill").args(["-TERM", &receiver.to_string()]).status().await?;
    if !ended.success() {
        bail!("{replica} has no WAL receiver {receiver} any more");
    }
    stack.command(&["cont", replica]).await?;
    Ok(written)
}

/// The core that publishes a shard's outbox stops for longer than its lease, and goes on with what it had in hand.
async fn relay_pause(stack: &Stack, load: &Load, shard: u16) -> Result<()> {
    let lease = async || -> Result<(String, i64)> {
        let sql = "SELECT owner, epoch FROM relay_leases ORDER BY expires_at DESC LIMIT 1";
        let row = stack.shard(shard).await?.query_opt(sql, &[]).await?;
        let row = row.with_context(|| format!("nobody publishes the outbox of shard {shard}"))?;
        Ok((row.get(0), row.get(1)))
    };
    let (owner, epoch) = lease().await?;
    let cores = stack.cores()?.len();
    // An owner is the instance's name, a slash and something random.
    let core = (1..=cores)
        .map(|n| format!("core{n}"))
        .find(|name| owner.split('/').next() == Some(name))
        .with_context(|| {
            format!("{owner}, which publishes the outbox of shard {shard}, is no core of the stack")
        })?;
    stack.command(&["pause", &core]).await?;
    sleep(RELAY_AWAY).await;
    let taken = lease().await;
    stack.command(&["cont", &core]).await?;
    let (successor, later) = taken?;
    if cores > 1 && (successor == owner || later <= epoch) {
        load.violation(format!(
            "relay-pause: nobody took over the outbox of shard {shard} from {core} in {} s",
            RELAY_AWAY.as_secs()
        ));
    }
    Ok(())
}

async fn kill_and_start(stack: &Stack, name: &str, away: Duration) -> Result<()> {
    stack.command(&["kill", name, "-9"]).await?;
    sleep(away).await;
    stack.command(&["start", name]).await?;
    Ok(())
}

/// The old primary returns, believes that it is one, and must get no writes (H5). It waits for no standby, so that a
/// write which reached it would succeed there and be seen.
async fn stale_primary(stack: &Stack, load: &Load, name: &str, url: &str) -> Result<()> {
    stack.command(&["start", name]).await?;
    let stale = connect(url).await?;
    stale.batch_execute("ALTER SYSTEM SET synchronous_standby_names = ''").await?;
    stale.batch_execute("SELECT pg_reload_conf()").await?;
    let recovering: bool = stale.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0);
    if recovering {
        bail!("{name} was to return as a primary and is a standby");
    }
    let count = async || -> Result<i64> {
        let sql = "SELECT (SELECT count(*) FROM payments) + (SELECT count(*) FROM outbox) + (SELECT count(*) FROM idempotency_keys)";
        Ok(stale.query_one(sql, &[]).await.context("the stale primary")?.get(0))
    };
    let before = count().await?;
    sleep(Duration::from_secs(5)).await;
    let after = count().await?;
    if before != after {
        load.violation(format!("h5: the stale primary {name} got {} rows", after - before));
    }
    // A lock held by a session that means to write shows too, though nothing was committed yet.
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_xid IS NOT NULL";
    let writing: i64 = stale.query_one(sql, &[]).await?.get(0);
    if writing > 0 {
        load.violation(format!("h5: {writing} sessions write on the stale primary {name}"));
    }
    Ok(())
}
