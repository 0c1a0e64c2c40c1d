//! The step that compares both sides: digests with rounds beside them, and rounds from then on (`verify` says what proves what).
//! And the slots that it and the way back begin with.

use std::time::Duration;

use serde_json::json;
use shard_config::ShardId;

use super::copy;
use super::digest;
use super::fault::reach;
use super::job::Way;
use super::machine::Event;
use super::rounds::{Interrupted, Rounds};
use super::run::{Different, Runner, Step};
use super::verify::{self, Lost, Suspects};

/// Rows that are still unequal when the cut-over may begin; they are compared again inside the pause.
const SUSPECTS_MOST: usize = 2_000;

impl Runner<'_> {
    pub(super) async fn verify(&mut self) -> Step {
        let way = self.way();
        self.check_flow(way).await?;
        if way == Way::Out {
            self.check_way_back().await?;
        }
        let tables = self.published().await?;
        let buckets = self.buckets();
        let slot = self.job.verify_slot(way);
        if !self.compared {
            // The slot of an earlier runner is kept: a new one would wait for every transaction that is open now, and what
            // the old one collected is only compared once more.
            let giver = self.side(self.job.giver(way));
            if copy::slot_state(giver, &slot).await?.is_some_and(|(state, _)| state == "lost") {
                // It would never say anything again.
                copy::drop_slot(giver, &slot).await?;
            }
            self.slot(self.job.giver(way), &slot).await?;
            reach(&self.job, "");
            let lsn: String =
                self.side(self.job.giver(way)).value("SELECT pg_current_wal_lsn()::text", &[]).await?;
            let (giver, taker) = match way {
                Way::Out => (&mut self.source, &mut self.target),
                Way::Back => (&mut self.target, &mut self.source),
            };
            let rounds = Rounds::new(way, &self.control);
            let made = digest::digests(giver, taker, &self.job, &tables, buckets, Some(rounds)).await;
            let (digests, suspects) = match made {
                // It is obeyed before the next step.
                Err(error) if error.is::<Interrupted>() => return Ok(None),
                made => made?,
            };
            let rows: i64 = digests.iter().map(|digest| digest.rows).sum();
            let shown: serde_json::Map<_, _> = digests
                .iter()
                .map(|d| (d.table.clone(), json!({ "rows": d.rows, "unequal_chunks": d.unequal })))
                .collect();
            let text = format!(
                "{rows} rows in {} tables compared from LSN {lsn} on; {} rows to look at again",
                digests.len(),
                verify::count(&suspects)
            );
            self.job.note(&self.control, &text).await?;
            self.job
                .set(&self.control, json!({ "verify": { "lsn": lsn, "rows": rows, "tables": shown } }))
                .await?;
            self.suspects = suspects;
            self.compared = true;
            self.compared_on = (self.source.identity, self.target.identity);
        }
        let all = self.compare_again(way).await?;
        // One more look if much is left: rows that changed while the digests were made.
        if !all || verify::count(&self.suspects) > SUSPECTS_MOST {
            return Ok(None);
        }
        // The way back is fenced next.
        if way == Way::Back {
            if let Some(who) = self.undrained().await? {
                self.wait_for(&who).await?;
                return Ok(None);
            }
            self.job.set(&self.control, json!({ "waits_for": null })).await?;
        }
        Ok(Some(Event::Finished))
    }

    /// A round over what changed. A difference counts when two rounds find it. False when more has changed than one round
    /// is for.
    pub(super) async fn compare_again(&mut self, way: Way) -> anyhow::Result<bool> {
        let tables = self.tables().await?;
        let buckets = self.buckets();
        let mut found: Option<Suspects> = None;
        for _ in 0..2 {
            let mut suspects = std::mem::take(&mut self.suspects);
            let (giver, taker) = (self.side(self.job.giver(way)), self.side(self.job.taker(way)));
            let round = verify::round(giver, taker, &self.job, way, &tables, buckets, &mut suspects).await;
            self.suspects = suspects;
            let round = match round {
                Err(error) => {
                    self.compared &= !error.is::<Lost>();
                    return Err(error);
                }
                Ok(round) => round,
            };
            // The same rows, both times.
            let real = match found {
                None => round.real,
                Some(before) => verify::common(&before, &round.real),
            };
            if real.is_empty() {
                return Ok(!round.more);
            }
            found = Some(real);
        }
        self.compared = false;
        let real = found.unwrap_or_default();
        Err(Different(format!("rows differ on both shards: {}", verify::show(&real))).into())
    }

    /// A slot waits for transactions under way. Where there always are some, it is given longer each time.
    pub(super) fn slot_patience(&self) -> Duration {
        let tries = self.job.number("slot_tries").unwrap_or(0).clamp(0, 4);
        copy::SLOT_PATIENCE * (1 << tries)
    }

    /// Makes a slot on one side, if it is not there.
    pub(super) async fn slot(&mut self, shard: ShardId, name: &str) -> anyhow::Result<()> {
        let patience = self.slot_patience();
        let db = if shard == self.job.source { &mut self.source } else { &mut self.target };
        let made = copy::slot(db, name, patience).await;
        self.slot_tried(made.is_ok()).await?;
        made
    }

    pub(super) async fn slot_tried(&mut self, made: bool) -> anyhow::Result<()> {
        let tries = self.job.number("slot_tries");
        let next = if made { None } else { Some(tries.unwrap_or(0) + 1) };
        if next != tries {
            self.job.set(&self.control, json!({ "slot_tries": next })).await?;
        }
        Ok(())
    }
}
