//! The step that copies: a slot with its snapshot and a subscription that stands still, the rows of the snapshot, and then the
//! subscription goes on from the slot.
//!
//! The rows are copied by the runner (`transfer`), so a runner that ends leaves a part of them on the target, where nobody sees
//! them, without the snapshot they came from. The next one deletes that part and begins with another snapshot. That every
//! row is there is noted, with the server that has them and the place where the slot begins.

use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};

use super::arm;
use super::attach::end_others;
use super::catalog;
use super::clean;
use super::copy;
use super::fault::reach;
use super::job::Way;
use super::lane::Lane;
use super::leaves::{self, Leaf};
use super::machine::Event;
use super::run::{Hopeless, Runner, Step};
use super::snapshot::Snapshot;
use super::tables::Table;
use super::throttle::Throttle;
use super::transfer::{Rows, Transfer};
use crate::direct::{Db, is_for_good};

/// A copy that was cut short more often than this by an error cannot be made.
const FAILURES_MOST: i64 = 8;
/// How long the end of the copy may wait for the target's standby.
const GROUND: std::time::Duration = std::time::Duration::from_secs(600);
/// How far it is is written down so often.
const SHOWN: std::time::Duration = std::time::Duration::from_millis(500);

impl Runner<'_> {
    pub(super) async fn copy(&mut self) -> Step {
        let done = self.copy_on().await;
        let Err(error) = &done else { return done };
        // Its sessions may be what failed.
        let began = self.transfer.take().is_some();
        if is_for_good(error) {
            return Err(Hopeless(format!("the copy cannot be made: {error:#}")).into());
        }
        if began {
            self.cut_short(&format!("{error:#}")).await?;
        }
        done
    }

    /// Counts copies that came to nothing. A server that cannot be reached is waited for as long as it takes.
    async fn cut_short(&mut self, why: &str) -> anyhow::Result<()> {
        let failures = self.job.number("copy_failures").unwrap_or(0) + 1;
        if failures > FAILURES_MOST {
            return Err(Hopeless(format!("the copy was cut short {failures} times: {why}")).into());
        }
        self.job.set(&self.control, json!({ "copy_failures": failures })).await
    }

    async fn copy_on(&mut self) -> Step {
        let state = copy::slot_state(&self.source, &self.job.publication(Way::Out)).await?;
        let subscribed = copy::subscribed(&self.target, &self.job, Way::Out).await?;
        let is_there = state.is_some() && subscribed;
        if is_there && self.is_copied() {
            return self.go_on_from_slot().await;
        }
        if self.transfer.is_none() || !is_there {
            self.transfer = None;
            self.begin_copy().await?;
        } else if state.is_some_and(|(state, _)| state == "lost") {
            // Begun anew it would get so far again.
            let text = "the replication slot kept more WAL than max_slot_wal_keep_size allows and is lost: move less at a time";
            return Err(Hopeless(text.into()).into());
        }
        let throttle = Throttle::of(&self.job);
        let transfer = self.transfer.as_mut().context("the copy has not begun")?;
        let sides = [(self.job.source, &self.source), (self.job.target, &self.target)];
        let name = self.job.session_name();
        let held = throttle.holds(self.servers, sides, &mut transfer.commits, &name).await?;
        let all = transfer.look(self.servers, &self.source, &self.target, &throttle, held.is_some()).await?;
        let (progress, held) = (transfer.progress(), held.or_else(|| transfer.waits_for()));
        if progress["pieces"] != 0 {
            reach(&self.job, "");
        }
        if all || self.shown.elapsed() > SHOWN || held.is_some() != self.job.text("throttled").is_some() {
            self.shown = Instant::now();
            self.job.set(&self.control, json!({ "progress": progress, "throttled": held })).await?;
        }
        if !all {
            return Ok(None);
        }
        // The source's snapshot goes. The target's rows stay, whatever happens to it: this session was there before them, so
        // the server has not been restarted, and its commit waits for the disk after theirs.
        let at = self.transfer.take().map(Transfer::end);
        // A standby that it waits for may be away for a moment, and this is not to be done again.
        let patience = std::mem::replace(&mut self.target.patience, GROUND);
        let grounded = copy::ground(&self.target, &self.job, Way::Out).await;
        self.target.patience = patience;
        if let Err(error) = grounded {
            self.cut_short(&format!("{error:#}")).await?;
            return Err(error);
        }
        let copied = json!({ "copied_to": server(&self.target), "slot_at": at, "throttled": null });
        self.job.set_noted(&self.control, copied, &format!("{} rows copied", progress["rows"])).await?;
        reach(&self.job, "copied");
        self.go_on_from_slot().await
    }

    /// Every row of the snapshot is on this target, and stays there.
    fn is_copied(&self) -> bool {
        let to = &self.job.detail["copied_to"];
        to.is_string() && *to == server(&self.target)
    }

    /// Makes the snapshot, after what an earlier attempt has left.
    async fn begin_copy(&mut self) -> anyhow::Result<()> {
        let again = self.job.flag("copy_begun");
        if ["copied_to", "progress"].iter().any(|entry| !self.job.detail[*entry].is_null()) {
            self.job.set(&self.control, json!({ "copied_to": null, "progress": null })).await?;
        }
        let tables = self.published().await?;
        let (name, slot, buckets) = (self.job.session_name(), self.job.publication(Way::Out), self.buckets());
        end_others(&[&self.control, &self.source, &self.target], &name).await?;
        let armed_on = self.armed_on.take();
        copy::cut(&self.source, &self.target, &self.job, Way::Out).await?;
        if armed_on.is_none() || armed_on != self.source.identity {
            // Not what this runner has made there a moment ago: nobody knows what it was made of.
            copy::unpublish(&self.source, &self.job, Way::Out).await?;
        }
        if again || self.job.number("slot_tries").is_some() {
            // Another primary may lack what arming wrote there.
            arm::install(&self.target).await?;
            arm::fence_row(&self.target, &self.job, buckets).await?;
            arm::register(&self.target, &self.job, &tables).await?;
        }
        if again {
            let mut db = self.servers.beside(&self.target, &name).await?;
            db.patience = clean::PATIENCE;
            // After the session was opened: what is true now is true of it.
            let map = catalog::map(&self.control).await?;
            map.only_copies(&self.job.scope, self.job.target, self.job.source)?;
            let rows = clean::delete(&db, &self.job, &tables, buckets, &self.control).await?;
            if let Some(table) = clean::any_row(&db, &self.job, &tables, buckets).await? {
                anyhow::bail!("rows of {table} are left of an earlier copy");
            }
            self.job
                .note(
                    &self.control,
                    &format!("copying begins anew: {rows} rows of an earlier attempt deleted"),
                )
                .await?;
            // No crash brings them back.
            copy::ground(&self.target, &self.job, Way::Out).await?;
            // Whatever keeps the slot from beginning, this has not to be done again.
            self.job.set(&self.control, json!({ "copy_begun": false })).await?;
        }
        // What the slot begins with must know the tables.
        copy::publish(&self.source, &self.job, Way::Out, &tables, buckets).await?;
        // The target reaches the source, or it is known now.
        let conninfo = self.servers.conninfo(&self.source);
        let (made, subscribed, lane) = tokio::join!(
            Snapshot::with_slot(self.servers, &self.source, &name, &slot, self.slot_patience()),
            copy::subscribe(&self.target, &self.job, Way::Out, &conninfo),
            Lane::open(self.servers, &self.source, &self.target, &name)
        );
        self.slot_tried(made.is_ok()).await?;
        let snapshot = made?;
        subscribed?;
        // The slot has waited for what was under way when it was begun, a definition too.
        let (published, looked) = futures_util::join!(self.published(), self.look(lane, &snapshot, &tables));
        published?;
        let (lane, leaves, binary) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                // A slot and a snapshot for nothing.
                self.cut_short(&format!("{error:#}")).await?;
                return Err(error);
            }
        };
        reach(&self.job, "snapshot");
        self.job.set(&self.control, json!({ "copy_begun": true })).await?;
        let rows = Rows { tables, leaves, binary, scope: self.job.scope.clone(), buckets };
        self.transfer = Some(Transfer::new(snapshot, rows, lane, name));
        Ok(())
    }

    /// What there is to copy, and which tables in binary form.
    async fn look(
        &self,
        lane: anyhow::Result<Lane>,
        snapshot: &Snapshot,
        tables: &[Table],
    ) -> anyhow::Result<(Lane, Vec<Leaf>, Vec<bool>)> {
        let lane = lane?;
        let (leaves, ours, theirs) = futures_util::try_join!(
            leaves::of(lane.giver(), snapshot.name(), tables),
            leaves::portable(&self.source, tables),
            leaves::portable(&self.target, tables)
        )?;
        let binary = ours.into_iter().zip(theirs).map(|(ours, theirs)| ours && theirs).collect();
        Ok((lane, leaves, binary))
    }

    /// Every row of the snapshot is on the target.
    async fn go_on_from_slot(&mut self) -> Step {
        if !copy::is_enabled(&self.target, &self.job, Way::Out).await? {
            let sql = "SELECT coalesce(confirmed_flush_lsn = $2::text::pg_lsn, false) FROM pg_replication_slots WHERE slot_name = $1";
            let at = self.job.text("slot_at").unwrap_or("0/0");
            if !self.source.holds(sql, &[&self.job.publication(Way::Out), &at]).await? {
                let text = format!(
                    "somebody else has read the replication slot: an old server of shard {}?",
                    self.job.target
                );
                self.job.set(&self.control, json!({ "copied_to": null })).await?;
                self.cut_short(&text).await?;
                anyhow::bail!(text);
            }
            reach(&self.job, "subscribed");
        }
        let conninfo = self.servers.conninfo(&self.source);
        copy::subscribe(&self.target, &self.job, Way::Out, &conninfo).await?;
        copy::begin(&self.source, &self.target, &self.job, Way::Out).await?;
        Ok(Some(Event::Finished))
    }
}

/// Which server it is, and since which failover.
fn server(db: &Db) -> Value {
    json!(db.identity.map(|(system, timeline)| format!("{system}:{timeline}")))
}
