//! The step that copies: a snapshot with a slot, the rows of the snapshot, then a subscription that goes on from the slot.
//!
//! The rows are copied by the runner (`transfer`), so a runner that ends leaves a part of them on the target, where nobody sees
//! them, without the snapshot they came from. The next one deletes that part and begins with another snapshot. Once every row
//! is there, the subscription is all that is needed.

use anyhow::Context;
use serde_json::json;

use super::attach::end_others;
use super::clean;
use super::copy;
use super::fault::reach;
use super::job::Way;
use super::machine::Event;
use super::run::{Hopeless, Runner, Step};
use super::snapshot::Snapshot;
use super::throttle::Throttle;
use super::transfer::Transfer;

impl Runner<'_> {
    pub(super) async fn copy(&mut self) -> Step {
        let done = self.copy_on().await;
        if done.is_err() {
            // Its sessions may be what failed.
            self.transfer = None;
        }
        done
    }

    async fn copy_on(&mut self) -> Step {
        let slot = copy::slot_state(&self.source, &self.job.publication(Way::Out)).await?;
        if copy::subscribed(&self.target, &self.job, Way::Out).await? {
            if slot.is_none() {
                return Err(Hopeless("the replication slot is gone: did its server fail over?".into()).into());
            }
            return self.go_on_from_slot().await;
        }
        let copied_to = self.job.text("copied_to").map(str::to_owned);
        if slot.is_some() && copied_to.is_some() && copied_to == self.target_server() {
            return self.go_on_from_slot().await;
        }
        if self.transfer.is_none() {
            self.begin_copy().await?;
        }
        let throttle = Throttle::of(&self.job);
        let held = throttle.holds(&self.source).await?;
        let transfer = self.transfer.as_mut().context("the copy has not begun")?;
        let all = transfer.look(self.servers, &self.source, &self.target, &throttle, held.is_some()).await?;
        let progress = transfer.progress();
        reach(&self.job, "");
        if all || progress != self.job.detail["progress"] || held.as_deref() != self.job.text("throttled") {
            self.job.set(&self.control, json!({ "progress": progress, "throttled": held })).await?;
        }
        if !all {
            return Ok(None);
        }
        // The source's snapshot goes; the target's rows stay, whatever happens to it: this session was there before them, so
        // the server has not been restarted, and its commit waits for the disk after theirs.
        self.transfer = None;
        copy::ground(&self.target, &self.job, Way::Out).await?;
        let text = format!("{} rows copied", progress["rows"]);
        self.job.set(&self.control, json!({ "copied_to": self.target_server() })).await?;
        self.job.note(&self.control, &text).await?;
        reach(&self.job, "copied");
        self.go_on_from_slot().await
    }

    fn target_server(&self) -> Option<String> {
        self.target.identity.map(|(system, timeline)| format!("{system}:{timeline}"))
    }

    /// Makes the snapshot, after what an earlier attempt has left.
    async fn begin_copy(&mut self) -> anyhow::Result<()> {
        let tables = self.tables().await?;
        let (name, slot, buckets) = (self.job.session_name(), self.job.publication(Way::Out), self.buckets());
        end_others(&[&self.control, &self.source, &self.target], &name).await?;
        if self.job.flag("copy_begun") {
            anyhow::ensure!(
                self.map.owner_of(&self.job.scope) == Some(self.job.source),
                "shard {} does not own {}: rows of shard {} are not deleted",
                self.job.source,
                self.job.scope,
                self.job.target
            );
            let db = self.servers.beside(&self.target, &name).await?;
            let rows = clean::delete(&db, &self.job, &tables, buckets, &self.control).await?;
            self.job.note(&self.control, &format!("copying begins anew: {rows} rows of an earlier attempt deleted")).await?;
        }
        copy::drop_slot(&self.source, &slot).await?;
        copy::unpublish(&self.source, &self.job, Way::Out).await?;
        // What the slot begins with must know the tables.
        copy::publish(&self.source, &self.job, Way::Out, &tables, buckets).await?;
        let snapshot = Snapshot::with_slot(self.servers, &self.source, &name, &slot).await?;
        self.job.set(&self.control, json!({ "copy_begun": true, "copied_to": null })).await?;
        reach(&self.job, "snapshot");
        self.transfer = Some(Transfer::new(snapshot, tables, &self.job.scope, buckets, name));
        Ok(())
    }

    /// Every row of the snapshot is on the target.
    async fn go_on_from_slot(&mut self) -> Step {
        let conninfo = self.servers.conninfo(&self.source);
        copy::subscribe(&self.target, &self.job, Way::Out, &conninfo).await?;
        reach(&self.job, "subscribed");
        copy::begin(&self.source, &self.target, &self.job, Way::Out).await?;
        Ok(Some(Event::Finished))
    }
}
