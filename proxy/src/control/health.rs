//! One task per server keeps one connection to it: the end of that connection is the fastest news of a death, and
//! every poll brings its role, timeline and WAL position. On a primary it also listens for schema changes (H39).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Row, Socket};

use super::limits::{PROBE_BACKOFF_FIRST, PROBE_BACKOFF_LAST, PROBE_CONNECT, PROBE_QUERY};
use super::roles::Observation;
use super::servers::{Server, Servers};
use crate::motion::boottime_ms;
use crate::replica::{Freshness, Lsn};
use crate::shared::Shared;

#[derive(Debug)]
pub(super) struct Report {
    pub(super) shard: usize,
    pub(super) slot: u16,
    pub(super) news: News,
}

#[derive(Debug)]
pub(super) enum News {
    Up(Probe),
    Down(String),
}

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) observation: Observation,
    /// Of a primary: where it inserts. Of a standby: what it has replayed.
    pub(super) lsn: Lsn,
    /// Drawn before the question was sent.
    pub(super) sequence: u64,
    /// Of the process ids asked about: those that are no backends any more.
    pub(super) gone: Vec<i32>,
    /// Of the prepared transactions asked about: those that are finished.
    pub(super) finished: Vec<String>,
    /// Of a primary, while the catalog has not been heard of for a while.
    pub(super) moves: Option<ShardMoves>,
}

/// What a shard itself knows of moves (H6).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ShardMoves {
    /// The newest epoch with which rows came to it or left it.
    pub(super) epoch: i64,
    /// Moves of which it has rows that it does not own.
    pub(super) fenced: Vec<i64>,
}

const KNOWN: &str = "
SELECT coalesce(max(epoch) FILTER (WHERE flipped), 0), ARRAY(SELECT move_id FROM shard_catalog.fence) FROM shard_catalog.ownership";

/// The timeline: of a primary the one it inserts into, by its WAL file's name; the control file's lags behind a
/// promotion until the next checkpoint. Of a standby the one it receives; without a receiver the control file's,
/// which is never too high.
const PROBE: &str = "
SELECT r.rec, (SELECT system_identifier FROM pg_control_system()),
    CASE WHEN r.rec THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver),
                                  (SELECT timeline_id FROM pg_control_checkpoint()))
         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
    coalesce((SELECT status = 'streaming' FROM pg_stat_wal_receiver), false),
    (CASE WHEN r.rec THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0'::pg_lsn)::int8,
    ARRAY(SELECT p FROM unnest($1::int4[]) p WHERE NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = p)),
    ARRAY(SELECT g FROM unnest($2::text[]) g WHERE NOT EXISTS (SELECT FROM pg_prepared_xacts x WHERE x.gid = g))
FROM (SELECT pg_is_in_recovery() AS rec) r";

/// What `bootstrap.sql` notifies. A standby refuses LISTEN.
const LISTEN: &str = "LISTEN shard_catalog";

/// Runs for ever; ends when the receiver is gone. `nudge` hears of schema changes.
pub(super) async fn watch(
    servers: Arc<Servers>,
    freshness: Arc<Freshness>,
    shard: usize,
    slot: u16,
    poll: Duration,
    reports: mpsc::Sender<Report>,
    nudge: Arc<Notify>,
    shared: Arc<Shared>,
) {
    let mut pause = PROBE_BACKOFF_FIRST;
    loop {
        let mut was_up = false;
        let server = servers.server(shard, slot);
        let why = tokio::select! {
            why = session(&servers, &freshness, shard, slot, poll, &reports, &nudge, &shared, &mut was_up) => why,
            () = server.wanted(false) => "it is not in the configuration any more".to_owned(),
        };
        if was_up {
            pause = PROBE_BACKOFF_FIRST;
        }
        if reports.send(Report { shard, slot, news: News::Down(why) }).await.is_err() {
            return;
        }
        if !server.is_wanted() {
            server.wanted(true).await;
            pause = PROBE_BACKOFF_FIRST;
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PROBE_BACKOFF_LAST);
    }
}

/// Returns why the server counts as down.
#[allow(clippy::too_many_arguments)]
async fn session(
    servers: &Servers,
    freshness: &Freshness,
    shard: usize,
    slot: u16,
    poll: Duration,
    reports: &mpsc::Sender<Report>,
    nudge: &Notify,
    shared: &Shared,
    was_up: &mut bool,
) -> String {
    let server = servers.server(shard, slot);
    let (client, connection) = match timeout(PROBE_CONNECT, server.connect.connect(NoTls)).await {
        Ok(Ok(pair)) => pair,
        Ok(Err(e)) => return describe(&e),
        Err(_) => return "no answer to a connection attempt".to_owned(),
    };
    let polling = async {
        let statement = match timeout(PROBE_QUERY, client.prepare(PROBE)).await {
            Ok(Ok(statement)) => statement,
            Ok(Err(e)) => return describe(&e),
            Err(_) => return "no answer to the probe".to_owned(),
        };
        let mut listening = false;
        let mut tick = interval(poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match timeout(PROBE_QUERY, probe(&client, &statement, freshness, shard, shared)).await {
                Ok(Ok(probe)) => {
                    *was_up = true;
                    let is_primary = !probe.observation.in_recovery;
                    if reports.send(Report { shard, slot, news: News::Up(probe) }).await.is_err() {
                        return "shutting down".to_owned();
                    }
                    if is_primary && !listening {
                        match timeout(PROBE_QUERY, client.batch_execute(LISTEN)).await {
                            Ok(Ok(())) => listening = true,
                            Ok(Err(e)) => return describe(&e),
                            Err(_) => return "no answer to LISTEN".to_owned(),
                        }
                        nudge.notify_one(); // What was committed before is not notified.
                    }
                }
                Ok(Err(e)) => return describe(&e),
                Err(_) => return format!("no answer within {} ms", PROBE_QUERY.as_millis()),
            }
        }
    };
    tokio::select! {
        // The connection first: its end explains the failure of the query better than the query does.
        biased;
        ended = watch_connection(connection, nudge) => match ended {
            Ok(()) => "the server closed the connection".to_owned(),
            Err(e) => describe(&e),
        },
        why = polling => why,
    }
}

/// Until the server closes it.
async fn watch_connection(
    mut connection: Connection<Socket, tokio_postgres::tls::NoTlsStream>,
    nudge: &Notify,
) -> Result<(), tokio_postgres::Error> {
    while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
        if let AsyncMessage::Notification(_) = message? {
            nudge.notify_one();
        }
    }
    Ok(())
}

async fn probe(
    client: &Client,
    statement: &tokio_postgres::Statement,
    freshness: &Freshness,
    shard: usize,
    shared: &Shared,
) -> Result<Probe, tokio_postgres::Error> {
    let (pids, gids) = freshness.abandoned(shard);
    let sequence = freshness.sample_begins(shard);
    let row = client.query_one(statement, &[&pids, &gids]).await?;
    let in_recovery: bool = row.try_get(0)?;
    let moves = match !in_recovery && shared.gate.is_in_doubt(boottime_ms()) {
        true => Some(known(client).await?),
        false => None,
    };
    Ok(Probe {
        moves,
        observation: observation(&row)?,
        lsn: Lsn(row.try_get::<_, Option<i64>>(4)?.unwrap_or(0) as u64),
        sequence,
        gone: row.try_get(5)?,
        finished: row.try_get(6)?,
    })
}

fn observation(row: &Row) -> Result<Observation, tokio_postgres::Error> {
    Ok(Observation {
        in_recovery: row.try_get(0)?,
        system_identifier: row.try_get(1)?,
        timeline: row.try_get::<_, i32>(2)? as u32,
        streaming: row.try_get(3)?,
    })
}

/// Asks a server once who it is, on a connection of its own.
pub(super) async fn observe(server: &Server) -> Result<Observation, String> {
    let (client, connection) = server.connect.connect(NoTls).await.map_err(|error| describe(&error))?;
    let none: (&[i32], &[&str]) = (&[], &[]);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&none.0, &none.1];
    let ask = client.query_one(PROBE, &parameters);
    let row = tokio::select! {
        // The question first: a connection that ends with it has failed it, too.
        biased;
        row = ask => row,
        ended = connection => match ended {
            Ok(()) => return Err("the server closed the connection".to_owned()),
            Err(error) => Err(error),
        },
    };
    row.and_then(|row| observation(&row)).map_err(|error| describe(&error))
}

async fn known(client: &Client) -> Result<ShardMoves, tokio_postgres::Error> {
    match client.query_one(KNOWN, &[]).await {
        Ok(row) => Ok(ShardMoves { epoch: row.try_get(0)?, fenced: row.try_get(1)? }),
        // Nothing has ever been moved to or from a shard that does not have these tables.
        Err(error)
            if matches!(
                error.code(),
                Some(
                    &SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN | &SqlState::INVALID_SCHEMA_NAME
                )
            ) =>
        {
            Ok(ShardMoves::default())
        }
        Err(error) => Err(error),
    }
}

/// tokio-postgres says "db error" and keeps the reason in the source.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            let source = std::error::Error::source(error).map(|s| format!(": {s}"));
            format!("{error}{}", source.unwrap_or_default())
        }
    }
}
