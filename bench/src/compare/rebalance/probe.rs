//! Single rows of what moves, written all the time through every proxy, each checked against what was written before.
//!
//! A write is begun every few milliseconds, by clients in turn: one that is held keeps only itself waiting, so that the
//! first statement held is nearly the first that could have been. While nothing can be held for a cut-over, that is without a move
//! and until its rows are copied, writes are few: most go to one shard, and would be what payments wait for there.
use super::pauses::Write;
use super::scope::Scope;
use super::watch::{Counts, url};
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use uuid::Uuid;

pub const TABLE: &str = "rebalance_probe";
const CLIENTS: usize = 4;
/// Between two writes, of whichever client.
const BETWEEN_WRITES: Duration = Duration::from_millis(8);
/// While no cut-over is near, one of so many is made.
const SPARSE: u128 = 5;
/// Rows in all, and of each part of what moves (a multiple of the clients).
const ROWS: usize = 24;
const ROWS_LEAST: usize = 2 * CLIENTS;
/// One write in so many is of a part that does not move just now.
const ELSEWHERE: usize = 4;
const LOOK: Duration = Duration::from_millis(100);
/// Keys are drawn until some lie in the narrowest of parts.
const DRAWN: usize = 20_000;

#[derive(Clone, Debug)]
struct Row {
    tenant: Uuid,
    slot: i32,
    hash: i64,
    /// The part of what moves that it belongs to.
    part: usize,
}

/// What moves now.
#[derive(Debug)]
pub struct Now {
    /// None beyond the last.
    part: AtomicUsize,
    /// Its rows are copied: a cut-over may come before the next look.
    is_near: AtomicBool,
    /// It is being cut over, or will be at once.
    is_here: AtomicBool,
}

impl Now {
    pub fn is_cut_over(&self) -> bool {
        self.is_here.load(Ordering::Relaxed)
    }
}

pub struct Probe {
    stop: Arc<AtomicBool>,
    now: Arc<Now>,
    writers: Vec<JoinHandle<Result<Counts>>>,
    /// Looks which part moves.
    looker: JoinHandle<Result<()>>,
}

impl Probe {
    /// One of `scopes` moves at a time; all rows alike are written when there are none.
    pub async fn start(stack: &Stack, scopes: &[Scope], stop: Arc<AtomicBool>) -> Result<Probe> {
        let rows = fill(&connect(&url(stack, 0)?).await?, scopes).await?;
        let now = Arc::new(Now {
            part: AtomicUsize::new(usize::MAX),
            is_near: AtomicBool::new(false),
            is_here: AtomicBool::new(false),
        });
        let control = connect(&stack.shards[0].primary).await?;
        let looker = tokio::spawn(look(control, scopes.to_vec(), now.clone(), stop.clone()));
        let mut writers = Vec::new();
        let begin = tokio::time::Instant::now() + BETWEEN_WRITES;
        for n in 0..CLIENTS {
            let client = connect(&url(stack, n)?).await?;
            // Nobody else writes them, so that what an update returns is known.
            let own = rows.iter().skip(n).step_by(CLIENTS).cloned().collect();
            let turn = BETWEEN_WRITES * u32::try_from(n)?;
            writers.push(tokio::spawn(write(client, own, (begin, turn), now.clone(), stop.clone())));
        }
        Ok(Probe { stop, now, writers, looker })
    }

    pub fn now(&self) -> Arc<Now> {
        self.now.clone()
    }

    pub async fn stop(self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Counts::default();
        for writer in self.writers {
            all.add(writer.await??);
        }
        self.looker.await??;
        all.trace.sort_by_key(|write| write.begin_us);
        Ok(all)
    }
}

/// Fresh rows of every part, at 0.
async fn fill(client: &Client, scopes: &[Scope]) -> Result<Vec<Row>> {
    let sql = format!(
        "SELECT u, uuid_hash_extended(u, 8816678312871386365) \
         FROM (SELECT gen_random_uuid() AS u FROM generate_series(1, {DRAWN})) g"
    );
    let drawn = client.query(&sql, &[]).await?;
    let drawn: Vec<(Uuid, i64)> =
        drawn.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    if scopes.is_empty() {
        rows.extend(drawn.iter().take(ROWS).map(|(tenant, hash)| Row {
            tenant: *tenant,
            slot: 0,
            hash: *hash,
            part: 0,
        }));
    }
    // A multiple of the clients: each has rows of every part.
    let each = (ROWS / scopes.len().max(1)).next_multiple_of(CLIENTS).max(ROWS_LEAST);
    for (part, scope) in scopes.iter().enumerate() {
        let keys: Vec<(Uuid, i64)> = match scope.only_tenant() {
            // Nobody can draw a key with its hash: it is the tenant's own, and only the slot tells its rows apart.
            Some(hash) => vec![(tenant_of(client, hash).await?, hash)],
            None => drawn.iter().filter(|(_, hash)| scope.has(*hash)).take(each).copied().collect(),
        };
        ensure!(!keys.is_empty(), "{DRAWN} keys, and none of them is in {scope:?}");
        let of_part = keys.iter().cycle().take(each).enumerate();
        rows.extend(of_part.map(|(n, (tenant, hash))| Row {
            tenant: *tenant,
            slot: i32::try_from(n / keys.len()).unwrap_or(i32::MAX),
            hash: *hash,
            part,
        }));
    }
    let insert =
        format!("INSERT INTO {TABLE} VALUES ($1, $2, 0) ON CONFLICT (tenant_id, slot) DO UPDATE SET n = 0");
    for row in &rows {
        client.execute(&insert, &[&row.tenant, &row.slot]).await.context("the probe's rows")?;
    }
    Ok(rows)
}

async fn tenant_of(client: &Client, hash: i64) -> Result<Uuid> {
    let sql = "SELECT tenant_id FROM tenants WHERE uuid_hash_extended(tenant_id, 8816678312871386365) = $1";
    let row = client.query_one(sql, &[&hash]).await.with_context(|| format!("a tenant with hash {hash}"))?;
    Ok(row.try_get(0)?)
}

/// Keeps `now` at the first part with a move that is not over.
async fn look(control: Client, scopes: Vec<Scope>, now: Arc<Now>, stop: Arc<AtomicBool>) -> Result<()> {
    let sql = "SELECT scope, phase <> ALL ('{preflight,announcing,arming,copying}'),
            phase = ANY ('{ready,fencing,reversing,back_fencing,returning}') FROM shard_catalog.move WHERE phase <> ALL ('{done,rolled_back,aborted,refused}') ORDER BY id";
    // Not before something was to move.
    let there = "SELECT to_regclass('shard_catalog.move') IS NOT NULL";
    while !stop.load(Ordering::Relaxed) {
        let (mut part, mut is_near, mut is_here) = (usize::MAX, false, false);
        if !scopes.is_empty() && control.query_one(there, &[]).await?.try_get::<_, bool>(0)? {
            for row in control.query(sql, &[]).await? {
                let moving = Scope::from_json(&row.try_get::<_, Value>(0)?)?;
                // Another step's may have been left in its window.
                let Some(at) = scopes.iter().position(|scope| *scope == moving) else { continue };
                let (near, here): (bool, bool) = (row.try_get(1)?, row.try_get(2)?);
                // Of several, the one that is cut over.
                part = if here && !is_here {
                    at
                } else if is_here {
                    part
                } else {
                    part.min(at)
                };
                (is_near, is_here) = (is_near || near, is_here || here);
            }
        }
        now.part.store(part, Ordering::Relaxed);
        now.is_near.store(is_near, Ordering::Relaxed);
        now.is_here.store(is_here, Ordering::Relaxed);
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Whose turn it is: rows of the part that moves most of the time, one after the other.
struct Turns {
    /// Positions of rows, by part.
    parts: Vec<Vec<usize>>,
    rows: usize,
    turn: usize,
    /// Turns of a part that moved.
    moving: usize,
}

impl Turns {
    fn new(rows: &[Row]) -> Turns {
        let mut parts = vec![Vec::new(); rows.iter().map(|row| row.part + 1).max().unwrap_or(0)];
        for (at, row) in rows.iter().enumerate() {
            parts[row.part].push(at);
        }
        Turns { parts, rows: rows.len(), turn: 0, moving: 0 }
    }

    fn next(&mut self, now: usize) -> usize {
        self.turn += 1;
        match self.parts.get(now) {
            Some(part) if self.turn % ELSEWHERE != 0 => {
                self.moving += 1;
                part[self.moving % part.len()]
            }
            _ => (self.turn - self.moving) % self.rows,
        }
    }
}

/// Each row counts its own updates. What an update returns says whether the ones before it are there, each once. `begin` is the
/// same for all clients, and `turn` this one's time after it.
async fn write(
    client: Client,
    rows: Vec<Row>,
    (begin, turn): (tokio::time::Instant, Duration),
    now: Arc<Now>,
    stop: Arc<AtomicBool>,
) -> Result<Counts> {
    let sql = format!("UPDATE {TABLE} SET n = n + 1 WHERE tenant_id = $1 AND slot = $2 RETURNING n");
    let update = client.prepare(&sql).await?;
    let mut known: Vec<(i32, i32)> = vec![(0, 0); rows.len()];
    let mut seen = Counts::default();
    let mut turns = Turns::new(&rows);
    let mut ticks = tokio::time::interval_at(begin + turn, BETWEEN_WRITES * u32::try_from(CLIENTS)?);
    // After a wait it goes on in its own turn.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.load(Ordering::Relaxed) {
        // By the clock, so that few writes come at equal distances, too, whatever was missed.
        let tick = (ticks.tick().await - begin).as_millis() / BETWEEN_WRITES.as_millis();
        if tick % SPARSE != 0 && !now.is_near.load(Ordering::Relaxed) {
            continue;
        }
        let at = turns.next(now.part.load(Ordering::Relaxed));
        let (row, (least, most)) = (&rows[at], &mut known[at]);
        let (begin, begun) = (SystemTime::now().duration_since(UNIX_EPOCH)?, Instant::now());
        let answer = client.query(&update, &[&row.tenant, &row.slot]).await;
        let took_us = u64::try_from(begun.elapsed().as_micros())?;
        seen.longest_write_ms = seen.longest_write_ms.max(took_us as f64 / 1e3);
        seen.writes += 1;
        seen.trace.push(Write { begin_us: i64::try_from(begin.as_micros())?, took_us, hash: row.hash });
        match answer {
            Ok(answer) => {
                // An update that failed may have been done or not.
                let (low, high) = (*least + 1, *most + 1);
                let now: i32 = match answer.as_slice() {
                    [row] => row.try_get(0)?,
                    [] => 0,
                    _ => high + 1,
                };
                seen.lost += u64::from(now < low);
                seen.doubled += u64::from(now > high);
                (*least, *most) = (now, now);
            }
            Err(error) if error.is_closed() => {
                return Err(error).context("a writing client's connection");
            }
            Err(error) => {
                seen.error(&error);
                *most += 1;
            }
        }
    }
    last_look(&client, &rows, &known, &mut seen).await?;
    Ok(seen)
}

/// All of it, once more, by a read over all shards.
async fn last_look(client: &Client, rows: &[Row], known: &[(i32, i32)], seen: &mut Counts) -> Result<()> {
    let tenants: Vec<Uuid> = rows.iter().map(|row| row.tenant).collect();
    let sql = format!("SELECT tenant_id, slot, n FROM {TABLE} WHERE tenant_id = ANY($1)");
    let mut found = vec![0u64; rows.len()];
    for row in client.query(&sql, &[&tenants]).await? {
        let (tenant, slot, n): (Uuid, i32, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        // A tenant's other rows are another client's.
        let Some(at) = rows.iter().position(|row| row.tenant == tenant && row.slot == slot) else { continue };
        found[at] += 1;
        seen.lost += u64::from(n < known[at].0);
        seen.doubled += u64::from(n > known[at].1);
    }
    seen.missing_rows += found.iter().filter(|found| **found == 0).count() as u64;
    seen.duplicate_rows += found.iter().map(|found| found.saturating_sub(1)).sum::<u64>();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_is_written_most() {
        let row = |part| Row { tenant: Uuid::nil(), slot: 0, hash: 0, part };
        let rows = [0, 1, 1, 2].map(row);
        let count = |now: usize| {
            let mut turns = Turns::new(&rows);
            let mut counts = [0; 4];
            (0..400).for_each(|_| counts[turns.next(now)] += 1);
            counts
        };
        assert_eq!(count(usize::MAX), [100; 4]);
        let moving = count(1);
        assert!(moving[1] >= 100 && moving[2] >= 100 && moving[1] + moving[2] >= 300, "{moving:?}");
    }
}
