//! An acknowledged payment is on the disks of the primary and of a standby: the settings that make it so are on, a
//! standby really is synchronous, and a commit really syncs the WAL (H36).
use super::report::{CheckReport, Invariant};
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::Result;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A walsender learns its part from the reloaded configuration a moment after a standby came back.
const STANDBY_PATIENCE: Duration = Duration::from_secs(5);

const SETTINGS: &str = "
SELECT name, name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')
UNION ALL
SELECT split_part(s, '=', 1), 'role or database override of ' || split_part(s, '=', 1), split_part(s, '=', 2)
  FROM pg_db_role_setting, unnest(setconfig) s
 WHERE split_part(s, '=', 1) IN ('fsync', 'full_page_writes', 'synchronous_commit')";

/// `asynchronous`: the stack was told not to wait for standbys, so the primary's disk is all that can be asked for.
pub async fn check(stack: &Stack, asynchronous: bool, report: &mut CheckReport) -> Result<()> {
    let mut settings =
        Invariant::new("durable_settings", "settings: fsync, full_page_writes, synchronous_commit on");
    let mut standbys =
        Invariant::new("standby_synchronous", "shards whose commits wait for the disk of a standby");
    let mut syncs = Invariant::new("wal_sync_grows", "shards on which a commit synced the WAL");
    for shard in &stack.shards {
        let client = connect(&shard.primary).await?;
        for row in client.query(SETTINGS, &[]).await? {
            let (name, what, setting): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            settings.expect(is_durable(&name, &setting, asynchronous), || {
                format!("shard {}: {what} = {setting}", shard.id)
            });
        }
        if !asynchronous {
            let found = synchronous_standby(&client).await?;
            standbys
                .expect(found.is_ok(), || format!("shard {}: {}", shard.id, found.err().unwrap_or_default()));
        }
        let probed = tokio::time::timeout(COMMIT_TIMEOUT, commit_syncs(&client)).await;
        let grew = matches!(probed, Ok(Ok(true)));
        syncs.expect(grew, || match probed {
            Err(_) => format!("shard {}: a commit did not return in {COMMIT_TIMEOUT:?}", shard.id),
            Ok(Err(error)) => format!("shard {}: {error:#}", shard.id),
            Ok(Ok(_)) => format!("shard {}: pg_stat_wal.wal_sync did not grow over five commits", shard.id),
        });
    }
    report.push(settings);
    if asynchronous {
        report.note("async: commits wait for the primary's disk only, a promotion may lose the last ones");
    } else {
        report.push(standbys);
    }
    report.push(syncs);
    Ok(())
}

/// `remote_write` leaves a standby's copy in its memory, `local` asks no standby at all.
fn is_durable(name: &str, setting: &str, asynchronous: bool) -> bool {
    match (name, setting) {
        (_, "on") | ("synchronous_commit", "remote_apply") => true,
        ("synchronous_commit", "local" | "remote_write") => asynchronous,
        _ => false,
    }
}

/// The inner error says what is missing.
async fn synchronous_standby(client: &Client) -> Result<Result<(), String>> {
    let give_up = Instant::now() + STANDBY_PATIENCE;
    loop {
        let row = client
            .query_one(
                "SELECT current_setting('synchronous_standby_names'), \
                   count(*) FILTER (WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')), \
                   coalesce(string_agg(application_name || ' ' || state || ' ' || coalesce(sync_state, '?'), ', '), 'none') \
                   FROM pg_stat_replication",
                &[],
            )
            .await?;
        let (names, synchronous, all): (String, i64, String) = (row.get(0), row.get(1), row.get(2));
        if names.trim().is_empty() {
            return Ok(Err("synchronous_standby_names is empty (`--async` if that is meant)".into()));
        }
        if synchronous > 0 {
            return Ok(Ok(()));
        }
        if Instant::now() >= give_up {
            return Ok(Err(format!(
                "synchronous_standby_names = {names}, but no such standby streams; there are: {all}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Commits a WAL message that nobody reads, and looks whether the cluster synced. Several times, because the WAL
/// writer may have been faster and reports its syncs later.
async fn commit_syncs(client: &Client) -> Result<bool> {
    let before = wal_syncs(client).await?;
    for _ in 0..5 {
        client.execute("SELECT pg_logical_emit_message(true, 'bench', 'is the WAL synced?')", &[]).await?;
        if wal_syncs(client).await? > before {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}

async fn wal_syncs(client: &Client) -> Result<i64> {
    client.execute("SELECT pg_stat_force_next_flush()", &[]).await?;
    client.execute("SELECT pg_stat_clear_snapshot()", &[]).await?;
    Ok(client.query_one("SELECT wal_sync FROM pg_stat_wal", &[]).await?.get(0))
}

#[cfg(test)]
mod tests {
    use super::is_durable;

    #[test]
    fn h36_a_commit_that_no_standby_has_is_not_durable() {
        for (setting, synchronous, asynchronous) in [
            ("on", true, true),
            ("remote_apply", true, true),
            ("remote_write", false, true),
            ("local", false, true),
            ("off", false, false),
            ("", false, false),
        ] {
            assert_eq!(is_durable("synchronous_commit", setting, false), synchronous, "{setting}");
            assert_eq!(is_durable("synchronous_commit", setting, true), asynchronous, "{setting}, async");
        }
        assert!(is_durable("fsync", "on", false) && !is_durable("fsync", "local", true));
    }
}
