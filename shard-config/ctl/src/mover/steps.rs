//! The steps of a move, each safe to repeat. `Ok(None)`: it goes on, look again soon.

use std::time::{Duration, Instant};

use serde_json::json;
use shard_config::ShardId;

use super::attach::end_others;
use super::catalog;
use super::copy;
use super::fault::reach;
use super::fence;
use super::job::Way;
use super::machine::{Event, Phase, Wish};
use super::obstacles::far_slot;
use super::preflight::human;
use super::run::{Different, Hopeless, Runner, Step};
use super::tables::Table;
use super::{arm, clean, published};
use crate::direct::is_for_good;

/// What was checked so long ago at most need not be checked again before the move is announced.
const FRESH: Duration = Duration::from_secs(5);
/// What is in the way of a move that was in line may take so long to pass: others cut over, and give back their slots.
const PASSING: Duration = Duration::from_secs(120);
/// How long statements that began before a motion was announced may still run before the step says who it waits for.
const DRAIN: Duration = Duration::from_secs(30);
/// Sessions plan anew what they do with tables that were guarded and published. The copy waits until they have: both at once are slow for payments.
const SETTLE: Duration = Duration::from_secs(1);
/// The target is called caught up when a mark takes no longer.
const CAUGHT_UP: Duration = Duration::from_secs(2);
/// Within this time a proxy without a lease has asked the shards what they know of moves.
const UNTOLD: Duration = Duration::from_secs(2);
/// Transactions that end within this time are waited for on the spot before a cut-over.
const READERS: Duration = Duration::from_secs(1);
/// A subscription that stopped more often than this, each time within so long after the time before, cannot go on.
const STOPS_MOST: i64 = 5;
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// A proxy's note of whom it waits for, without the figure at its end, which is another one each time.
fn whom(note: &str) -> String {
    match note.rsplit_once(" for ") {
        Some((who, age)) if age.ends_with(" ms)") => format!("{who})"),
        _ => note.to_owned(),
    }
}

impl Runner<'_> {
    async fn is_announced(&self) -> anyhow::Result<bool> {
        Ok(catalog::motions(&self.control).await?.iter().any(|motion| motion.move_id == self.job.id))
    }

    pub(super) async fn announce(&mut self) -> Step {
        // What the preflight has seen may be long ago: the move was paused, or in line, or its runner is another one.
        if !self.is_announced().await? && self.checked.is_none_or(|at| at.elapsed() > FRESH) {
            self.check_again(PASSING).await?;
        }
        let announced = catalog::announce(&self.control, &self.job).await?;
        let version = announced.map_err(Hopeless)?;
        reach(&self.job, "");
        catalog::drained(&self.control, version, DRAIN, Duration::from_millis(50)).await?;
        for db in [&self.source, &self.target] {
            catalog::end_sessions(&self.control, db, version).await?;
        }
        Ok(Some(Event::Finished))
    }

    pub(super) async fn arm(&mut self) -> Step {
        let known = self.tables().await?;
        arm::install(&self.source).await?;
        arm::install(&self.target).await?;
        arm::fence_row(&self.target, &self.job, self.buckets()).await?;
        arm::register(&self.source, &self.job, &known).await?;
        arm::register(&self.target, &self.job, &known).await?;
        // Definitions that were under way have been waited for.
        let tables = self.tables().await?;
        if tables.iter().map(Table::full_name).ne(known.iter().map(Table::full_name)) {
            self.check_again(Duration::ZERO).await?;
            arm::register(&self.source, &self.job, &tables).await?;
            arm::register(&self.target, &self.job, &tables).await?;
        }
        self.note_tables(&tables).await?;
        reach(&self.job, "");
        // A proxy without a lease was not told. It asks the shards themselves, and finds the fence row (H6).
        if catalog::proxies(&self.control).await?.iter().any(|proxy| !proxy.leased) {
            tokio::time::sleep(UNTOLD).await;
            let version: i64 = self.control.value("SELECT version FROM shard_catalog.control", &[]).await?;
            for db in [&self.source, &self.target] {
                catalog::end_sessions(&self.control, db, version).await?;
            }
        }
        arm::arm(&self.source, &self.job, &tables, self.buckets()).await?;
        // What an arming that was broken off has left may be of other tables.
        copy::unpublish(&self.source, &self.job, Way::Out).await?;
        if let Err(error) = copy::publish(&self.source, &self.job, Way::Out, &tables, self.buckets()).await {
            return Err(match is_for_good(&error) {
                true => Hopeless(format!("the tables cannot be published: {error:#}")).into(),
                false => error,
            });
        }
        self.armed_on = self.source.identity;
        reach(&self.job, "published");
        tokio::time::sleep(SETTLE).await;
        Ok(Some(Event::Finished))
    }

    /// Replication of one direction still can come about.
    pub(super) async fn check_flow(&mut self, way: Way) -> anyhow::Result<()> {
        let (giver, taker) = (self.side(self.job.giver(way)), self.side(self.job.taker(way)));
        match copy::slot_state(giver, &self.job.publication(way)).await? {
            None => {
                let text = match self.dropped().filter(|_| way == Way::Back) {
                    Some(why) => format!("the way back was given up: {why}"),
                    None => "the replication slot is gone: did its server fail over?".into(),
                };
                return Err(Hopeless(text).into());
            }
            Some((state, _)) if state == "lost" => {
                let text =
                    "the replication slot kept more WAL than max_slot_wal_keep_size allows and is lost";
                return Err(Hopeless(text.into()).into());
            }
            Some(_) => {}
        }
        if !copy::is_enabled(taker, &self.job, way).await? {
            anyhow::bail!(self.start_again(way).await?);
        }
        Ok(())
    }

    /// A subscription stops at every error, and to PostgreSQL a giver that went away in the middle is one, too. So it is
    /// told to go on, which loses nothing; an error that comes again each time is one of rows.
    async fn start_again(&mut self, way: Way) -> anyhow::Result<String> {
        let now = chrono::Utc::now().timestamp();
        let recent = now - self.job.number("stopped_at").unwrap_or(0) < STOPS_WITHIN.as_secs() as i64;
        let stops = if recent { self.job.number("stops").unwrap_or(0) } else { 0 } + 1;
        let text = format!(
            "the subscription on shard {} stopped at an error, which that server's log has",
            self.job.taker(way)
        );
        if stops > STOPS_MOST {
            return Err(Hopeless(format!("{text}; it did so {STOPS_MOST} times")).into());
        }
        self.job.set(&self.control, json!({ "stops": stops, "stopped_at": now })).await?;
        copy::enable(self.side(self.job.taker(way)), &self.job, way).await?;
        Ok(format!("{text}; it goes on again"))
    }

    pub(super) async fn catch_up(&mut self) -> Step {
        self.check_flow(Way::Out).await?;
        let n = copy::mark(&self.source, &self.job, Way::Out).await?;
        if let Err(error) = copy::caught_up(&self.target, &self.job, Way::Out, n, CAUGHT_UP).await {
            self.show_lag(Way::Out).await?;
            self.job.set(&self.control, json!({ "lag": format!("{error:#}") })).await?;
            return Ok(None);
        }
        let tables = self.published().await?;
        // Once more: a partition that was made by a transaction older than the guards has none.
        arm::arm(&self.source, &self.job, &tables, self.buckets()).await?;
        // Not before the copy: a row trigger would make it row by row.
        arm::arm(&self.target, &self.job, &tables, self.buckets()).await?;
        // The way back is made here: a slot waits for transactions under way, which must not be in the pause (H29).
        copy::publish(&self.target, &self.job, Way::Back, &tables, self.buckets()).await?;
        reach(&self.job, "");
        self.slot(self.job.target, &self.job.publication(Way::Back)).await?;
        Ok(Some(Event::Finished))
    }

    /// The slot for the way back is on the target since before the digests. Another server has become its primary if it is
    /// gone, and may lack rows that were applied.
    pub(super) async fn check_way_back(&self) -> anyhow::Result<()> {
        let text = match copy::slot_state(&self.target, &self.job.publication(Way::Back)).await? {
            None => "the slot for the way back is gone from the target: did it fail over?",
            Some((state, _)) if state == "lost" => {
                "the slot for the way back kept more WAL on the target than max_slot_wal_keep_size allows and is lost"
            }
            Some(_) => return Ok(()),
        };
        Err(Hopeless(text.into()).into())
    }

    async fn show_lag(&mut self, way: Way) -> anyhow::Result<Option<i64>> {
        let giver = self.side(self.job.giver(way));
        let lag = copy::lag(giver, &self.job.publication(way)).await?;
        if lag.is_some() {
            self.job.set(&self.control, json!({ "lag_bytes": lag })).await?;
        }
        Ok(lag)
    }

    /// What the cut-over waits for while the target is further behind than its operator allows, also if it comes by itself.
    async fn far_behind(&mut self) -> anyhow::Result<Option<String>> {
        let most = self.job.number("max_lag").unwrap_or(copy::LAG_MOST);
        let lag = self.show_lag(Way::Out).await?.filter(|lag| *lag > most);
        // Without the figure, which is another one each time and shown beside it.
        Ok(lag.map(|_| format!("the target, which is more than {} of WAL behind", human(most))))
    }

    /// A pause holds the cut-over, and not what keeps the slots small.
    fn may_cut_over(&self) -> bool {
        self.job.wish() == Some(Wish::Cutover) && !self.job.paused()
    }

    pub(super) async fn wait_for(&mut self, what: &str) -> anyhow::Result<()> {
        let text = format!("the cut-over waits for {what}");
        if self.job.text("waits_for") != Some(&text) {
            self.job.note(&self.control, &text).await?;
            self.job.set(&self.control, json!({ "waits_for": text })).await?;
        }
        Ok(())
    }

    pub(super) fn way(&self) -> Way {
        let back = matches!(
            self.job.phase,
            Phase::BackVerifying | Phase::BackFencing | Phase::BackReleasing | Phase::Returning
        );
        if back { Way::Back } else { Way::Out }
    }

    pub(super) async fn keep_ready(&mut self) -> Step {
        if !self.compared {
            // A new runner: what the one before it knew is compared again.
            return Err(anyhow::Error::new(Different("compared again by a new runner".into())));
        }
        self.check_flow(Way::Out).await?;
        self.check_way_back().await?;
        // Said before the comparison, which waits for the same.
        let behind = self.far_behind().await?;
        if let Some(what) = behind.filter(|_| self.may_cut_over()) {
            self.wait_for(&what).await?;
        }
        let all = self.compare_again(Way::Out).await?;
        let back = self.job.publication(Way::Back);
        copy::near(&self.target, &back).await?;
        fence::advance(&self.target, &back).await?;
        let behind = self.far_behind().await?;
        if !all || !self.may_cut_over() {
            return Ok(None);
        }
        let writer = fence::in_the_way(&self.source, &self.job).await?;
        let waits_for = match writer {
            Some(who) => Some(format!("a transaction that wrote rows of the scope: {who}")),
            None => behind.or(far_slot(&self.source, &self.target, &self.job).await?),
        };
        // Last: proxies are told, and it takes a while.
        let waits_for = match waits_for {
            None => self.undrained().await?,
            found => found,
        };
        if let Some(what) = waits_for {
            self.wait_for(&what).await?;
            return Ok(None);
        }
        self.job.set(&self.control, json!({ "waits_for": null })).await?;
        let attempt = self.job.number("attempts").unwrap_or(0) + 1;
        self.job.go(&self.control, Phase::Fencing, &format!("attempt {attempt}")).await?;
        Ok(None)
    }

    /// Who would make the attempt fail although he only reads, or has locked rows: proxies wait for the end of his transaction
    /// while they hold everybody else. So they are told a version that holds nobody first, and whether they drain it soon is
    /// seen.
    pub(super) async fn undrained(&mut self) -> anyhow::Result<Option<String>> {
        let mut late = Vec::new();
        if let Some(version) = self.probed {
            // Who has not drained that one will not drain another.
            late = catalog::late(&self.control, version).await?;
        }
        if late.is_empty() {
            let version = self.control.value("SELECT shard_catalog.bump()", &[]).await?;
            self.probed = Some(version);
            let begun = Instant::now();
            late = catalog::late(&self.control, version).await?;
            while !late.is_empty() && begun.elapsed() < READERS {
                tokio::time::sleep(Duration::from_millis(20)).await;
                late = catalog::late(&self.control, version).await?;
            }
        }
        let late: Vec<_> =
            late.iter().map(|proxy| format!("proxy {}: {}", proxy.name, whom(&proxy.note))).collect();
        Ok((!late.is_empty()).then(|| format!("a transaction that began before: {}", late.join("; "))))
    }

    pub(super) async fn reverse(&mut self) -> Step {
        self.note_flipped().await?;
        self.settle(self.job.source).await?;
        // Forward goes before back begins: with both, every change would go round (H29).
        copy::take_down(&self.source, &self.target, &self.job, Way::Out).await?;
        reach(&self.job, "");
        if copy::slot_state(&self.target, &self.job.publication(Way::Back)).await?.is_none() {
            // It was given up, or has gone with a failover. The window says so.
            return Ok(Some(Event::Finished));
        }
        let conninfo = self.servers.conninfo(&self.target);
        copy::subscribe(&self.source, &self.job, Way::Back, &conninfo).await?;
        copy::begin(&self.target, &self.source, &self.job, Way::Back).await?;
        Ok(Some(Event::Finished))
    }

    pub(super) async fn keep_window(&mut self) -> Step {
        reach(&self.job, "");
        let held =
            fence::unlock_when_safe(&self.source, self.job.source, &self.control, &self.job).await?.err();
        self.show_lag(Way::Back).await?;
        let state = copy::slot_state(&self.target, &self.job.publication(Way::Back)).await?;
        let enabled = copy::is_enabled(&self.source, &self.job, Way::Back).await?;
        if state.is_some() && !enabled {
            match self.start_again(Way::Back).await {
                Ok(text) => self.job.note(&self.control, &text).await?,
                // Said below; it is for the operator to decide.
                Err(error) if error.is::<Hopeless>() => {}
                Err(error) => return Err(error),
            }
        }
        let way_back = match (state, self.dropped()) {
            (None, Some(why)) => format!("gone: {why}; only finish is left"),
            (None, None) => "gone: the slot on the target is no more; only finish is left".into(),
            (Some((state, _)), _) if state == "lost" => {
                "gone: the slot on the target kept too much WAL; only finish is left".into()
            }
            (Some(_), _) if !enabled => "stopped at an error, which the source's log has".into(),
            (Some(_), _) => "open".to_owned(),
        };
        let waits_for = held.as_ref().map(|who| format!("snapshots from before the cut-over: {who}"));
        self.job
            .set(
                &self.control,
                json!({ "way_back": way_back, "old_snapshots": held, "waits_for": waits_for }),
            )
            .await?;
        Ok(None)
    }

    pub(super) async fn give_back(&mut self) -> Step {
        self.note_flipped().await?;
        self.settle(self.job.target).await?;
        copy::take_down(&self.target, &self.source, &self.job, Way::Back).await?;
        Ok(Some(Event::Finished))
    }

    pub(super) async fn close(&mut self) -> Step {
        // One of them may have been lost right after the flip, and be back with all that was there then.
        for db in [&self.source, &self.target] {
            fence::settle_ownership(&self.control, db, &self.job).await?;
        }
        copy::take_down(&self.source, &self.target, &self.job, Way::Out).await?;
        copy::take_down(&self.target, &self.source, &self.job, Way::Back).await?;
        Ok(Some(Event::Finished))
    }

    pub(super) async fn take_down_all(&mut self) -> Step {
        // Nothing is copied any more, and no session of the copy is about to commit.
        self.transfer = None;
        let taken = self.take_down_both().await;
        if taken.is_err() {
            // One of them is what a disk is full of, should the other server have gone.
            self.drop_slots(&[Way::Out, Way::Back]).await;
        }
        taken.map(|()| Some(Event::Finished))
    }

    async fn take_down_both(&mut self) -> anyhow::Result<()> {
        end_others(&[&self.control, &self.source, &self.target], &self.job.session_name()).await?;
        self.job.set(&self.control, json!({ "throttled": null })).await?;
        copy::take_down(&self.source, &self.target, &self.job, Way::Out).await?;
        copy::take_down(&self.target, &self.source, &self.job, Way::Back).await
    }

    /// Deletes the rows of the scope from `shard`, which does not own them, and ends the motion.
    pub(super) async fn clean(&mut self, shard: ShardId) -> Step {
        let version: i64 = self.control.value("SELECT version FROM shard_catalog.control", &[]).await?;
        // A move that was never announced has no rows anywhere; those of its scope may be another's.
        if self.is_announced().await? {
            let map = catalog::map(&self.control).await?;
            let owner = if shard == self.job.source { self.job.target } else { self.job.source };
            map.only_copies(&self.job.scope, shard, owner)?;
            catalog::drained(&self.control, version, DRAIN, Duration::from_millis(50)).await?;
            let db = self.side(shard);
            catalog::end_sessions(&self.control, db, version).await?;
            if let Err(who) = fence::unlock_when_safe(db, shard, &self.control, &self.job).await? {
                anyhow::bail!("there are snapshots from before the cut-over: {who}");
            }
            // What is deleted is deleted under the shard's own word that it does not own it. It may have lost that word (a blow
            // in the middle of a cut-over, a failover). Said by this session, which the next runner ends first of all.
            arm::fence_row(self.side(shard), &self.job, self.buckets()).await?;
            let mut db = self.servers.primary(shard, &self.job.session_name()).await?;
            db.patience = clean::PATIENCE;
            let (tables, others) = published::of_move(&db, &self.job, &self.servers.config).await?;
            let buckets = self.map.map.buckets();
            let total = clean::delete(&db, &self.job, &tables, buckets, &self.control).await?;
            reach(&self.job, "deleted");
            if let Some(table) = clean::any_row(&db, &self.job, &tables, buckets).await? {
                anyhow::bail!("rows of {table} came while it was cleaned");
            }
            self.job.note(&self.control, &format!("{total} rows deleted from shard {shard}")).await?;
            if let Some(table) = clean::any_row(&db, &self.job, &others, buckets).await? {
                let text = format!(
                    "rows of {table} were never moved, and are on shard {shard} still, where nobody sees them: it has become a \
                     sharded table since the move began. Copy them to shard {owner} by hand, then delete them"
                );
                self.job.note(&self.control, &text).await?;
            }
        }
        arm::disarm(&self.source, &self.job).await?;
        reach(&self.job, "disarmed");
        arm::disarm(&self.target, &self.job).await?;
        fence::unlock(&self.source, &self.job).await?;
        fence::unlock(&self.target, &self.job).await?;
        catalog::end_motion(&self.control, &self.job).await?;
        Ok(Some(Event::Finished))
    }
}
