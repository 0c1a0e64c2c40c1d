//! One batch in flight: takes what waits, posts it, and settles every way in which that can end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;

use super::lanes::{Lane, Lanes};
use super::pace::Pace;
use super::{Answer, Job, NotPosted};
use crate::domain::payment::{PaymentStatus, Verdict};
use crate::ledger::outcome::{self, Failure};
use crate::ledger::post::{PostError, Poster};
use crate::limits::{RETRY_ATTEMPT_MIN_MS, RETRY_FIRST_MS, RETRY_LONGEST_MS};

/// After this many moves between lanes a payment is posted where it is, by itself.
const MOVES_MAX: u8 = 3;

pub(super) struct Slot {
    lanes: Arc<Lanes>,
    lane: Arc<Lane>,
    solo: bool,
    poster: Option<Poster>,
}

/// Jobs that are posted together. `whole_tenant`: they are of one tenant, so they cannot be on two shards.
struct Work {
    jobs: Vec<Job>,
    whole_tenant: bool,
}

/// How a statement ended, after all its retries.
enum Settled {
    Verdicts(Vec<Verdict>),
    /// `values`: the database refuses what the payment says, and will always.
    Poison {
        values: bool,
    },
    Straddles,
    GivenUp(NotPosted),
}

impl Slot {
    pub(super) fn new(lanes: Arc<Lanes>, lane: Arc<Lane>, solo: bool) -> Self {
        Self { lanes, lane, solo, poster: None }
    }

    pub(super) async fn run(mut self) {
        let lane = self.lane.clone();
        let most = self.lanes.config.batch_max.max(1);
        let interval = Duration::from_millis(self.lanes.config.lane_interval_ms);
        let mut pace = Pace::new(interval, most);
        let mut jobs = Vec::new();
        loop {
            let queue = lane.queue(self.solo);
            queue.ready().await;
            while let Some(at) = pace.wait(queue.len(), Instant::now()) {
                tokio::time::sleep_until(at.into()).await;
            }
            if !queue.take(most, &mut jobs).await {
                return;
            }
            pace.began(jobs.len(), Instant::now());
            let batch = self.drop_expired(std::mem::take(&mut jobs));
            let work =
                if self.solo { by_tenant(batch) } else { vec![Work { jobs: batch, whole_tenant: false }] };
            self.post(work).await;
        }
    }

    /// Jobs whose request has ended while they waited: posting them now would move money after the client was told
    /// that its request failed, so they are not posted.
    fn drop_expired(&self, jobs: Vec<Job>) -> Vec<Job> {
        let now = Instant::now();
        let wait = &self.lanes.metrics.batch_wait;
        let mut batch = Vec::with_capacity(jobs.len());
        for job in jobs {
            // One whose outcome is open is posted again all the same: only that resolves it.
            if job.deadline <= now && !job.sent_unknown {
                self.answer(job, Err(NotPosted::Overloaded));
            } else {
                wait.observe(now.duration_since(job.queued_at).as_secs_f64());
                batch.push(job);
            }
        }
        batch
    }

    async fn post(&mut self, mut work: Vec<Work>) {
        work.reverse();
        while let Some(Work { mut jobs, whole_tenant }) = work.pop() {
            if jobs.is_empty() {
                continue;
            }
            match self.settle(&mut jobs).await {
                Settled::Verdicts(verdicts) => {
                    for (job, verdict) in jobs.into_iter().zip(verdicts) {
                        self.answer(job, Ok(verdict));
                    }
                }
                Settled::Poison { .. } if jobs.len() > 1 => {
                    self.lanes.metrics.batch_bisections.inc();
                    let second = jobs.split_off(jobs.len() / 2);
                    work.push(Work { jobs: second, whole_tenant });
                    work.push(Work { jobs, whole_tenant });
                }
                Settled::Poison { values } => {
                    let why = if values { NotPosted::Unprocessable } else { NotPosted::Broken };
                    for job in jobs {
                        self.lanes.poisoners.strike(job.payment.tenant, Instant::now());
                        self.answer(job, Err(why));
                    }
                }
                // One tenant is never on two shards, so the proxy's map is changing under us.
                Settled::Straddles if whole_tenant => self.answer_all(jobs, NotPosted::ShardUnavailable),
                Settled::Straddles => work.extend(self.split_by_map(jobs).await),
                Settled::GivenUp(why) => self.answer_all(jobs, why),
            }
        }
    }

    /// The map has changed (or never fitted): read it again, keep what is ours, and hand the rest to its lanes.
    async fn split_by_map(&mut self, jobs: Vec<Job>) -> Vec<Work> {
        if let Err(error) = self.lanes.refresh().await {
            tracing::warn!(%error, "splitting a batch without a fresh shard map");
        }
        let mut ours = Vec::new();
        let mut moved = Vec::new();
        for mut job in jobs {
            let lane = self.lanes.lane_of(job.payment.tenant);
            if lane.shard == self.lane.shard || job.moves >= MOVES_MAX {
                ours.push(job);
            } else {
                job.moves += 1;
                moved.push((lane, job));
            }
        }
        let nothing_moved = moved.is_empty();
        for (lane, job) in moved.into_iter().rev() {
            lane.queue(self.solo).put_back(std::iter::once(job));
        }
        if nothing_moved {
            // The map says that all are ours and the proxy says that they are not: a tenant at a time is always right.
            return by_tenant(ours);
        }
        vec![Work { jobs: ours, whole_tenant: false }]
    }

    /// Posts one batch until its outcome is known or the retry budget is spent. Every try sends the same keys and
    /// payment ids; once a try's outcome is unknown, only a try that succeeds (or a definite refusal) ends that.
    async fn settle(&mut self, jobs: &mut [Job]) -> Settled {
        let budget = Duration::from_millis(self.lanes.config.retry_budget_ms);
        let give_up_at = Instant::now() + budget;
        let last_start = give_up_at - (budget / 2).min(Duration::from_millis(RETRY_ATTEMPT_MIN_MS));
        let mut pause_ms = RETRY_FIRST_MS;
        let mut unknown = false;
        loop {
            let error = match self.attempt(jobs, give_up_at).await {
                Ok(verdicts) => {
                    self.lane.breaker.answered();
                    return Settled::Verdicts(verdicts);
                }
                Err(error) => error,
            };
            let PostError { failure, state, detail } = &error;
            let shard = self.lane.shard.0;
            let class = state.as_deref().and_then(|s| s.get(..2)).unwrap_or("io");
            self.lanes.metrics.db_errors.with_label_values(&[class]).inc();
            match failure {
                Failure::Poison => {
                    self.lane.breaker.answered();
                    if jobs.len() == 1 {
                        tracing::warn!(shard, state, detail, "the database refuses a payment's values");
                    }
                    return Settled::Poison {
                        values: state.as_deref().is_some_and(outcome::is_about_values),
                    };
                }
                Failure::Straddles => {
                    self.lane.breaker.answered();
                    return Settled::Straddles;
                }
                Failure::Broken => {
                    tracing::error!(shard, state, detail, "posting is broken");
                    return Settled::GivenUp(if unknown {
                        NotPosted::OutcomeUnknown
                    } else {
                        NotPosted::Broken
                    });
                }
                Failure::Unready => {
                    tracing::error!(
                        shard,
                        state,
                        detail,
                        "the shard is not ready for postings: is a partition missing?"
                    );
                    return Settled::GivenUp(if unknown {
                        NotPosted::OutcomeUnknown
                    } else {
                        NotPosted::ShardUnavailable
                    });
                }
                Failure::NotApplied => self.lane.breaker.failed(),
                Failure::Unknown => {
                    if !unknown {
                        self.lanes.metrics.post_unknown.inc_by(jobs.len() as u64);
                    }
                    unknown = true;
                    jobs.iter_mut().for_each(|job| job.sent_unknown = true);
                    self.lane.breaker.failed();
                }
            }
            tracing::warn!(shard, state, detail, unknown, payments = jobs.len(), "posting failed");
            if self.lane.breaker.is_open() {
                // Answering what waits now lets its clients go elsewhere or come back.
                for job in self.lane.drain() {
                    self.answer(job, Err(NotPosted::ShardUnavailable));
                }
            }
            let pause = jittered(pause_ms);
            if Instant::now() + pause >= last_start {
                return Settled::GivenUp(if unknown {
                    NotPosted::OutcomeUnknown
                } else {
                    NotPosted::ShardUnavailable
                });
            }
            self.lanes
                .metrics
                .post_retries
                .with_label_values(&[if unknown { "unknown" } else { "not_applied" }])
                .inc();
            tokio::time::sleep(pause).await;
            pause_ms = (pause_ms * 2).min(RETRY_LONGEST_MS);
        }
    }

    async fn attempt(&mut self, jobs: &[Job], give_up_at: Instant) -> Result<Vec<Verdict>, PostError> {
        let poster = match self.poster.take().filter(|poster| !poster.is_closed()) {
            Some(poster) => poster,
            None => Poster::open(&self.lanes.settings).await?,
        };
        let metrics = &self.lanes.metrics;
        metrics.batch_transfers.observe(jobs.len() as f64);
        let patience = Duration::from_millis(self.lanes.config.post_timeout_ms);
        let started = Instant::now();
        let until = (started + patience).min(give_up_at);
        let posted =
            tokio::time::timeout_at(until.into(), poster.post(jobs.iter().map(|j| &j.payment))).await;
        match posted {
            Ok(Ok(verdicts)) => {
                self.lane.post_duration.observe(started.elapsed().as_secs_f64());
                self.poster = Some(poster);
                self.lanes.committed.committed(self.lane.shard.0);
                Ok(verdicts)
            }
            Ok(Err(error)) => {
                // Only an error that the server sent about values leaves the connection in a known state.
                if matches!(error.failure, Failure::Poison | Failure::Straddles) {
                    self.poster = Some(poster);
                }
                Err(error)
            }
            Err(_) => {
                metrics.post_timeouts.inc();
                self.lane.breaker.hung();
                // Dropped without a cancel request: that would end the server's wait for its synchronous standby, and the
                // payment would be visible though only one server has it. The next try waits for the key.
                drop(poster);
                Err(PostError::new(Failure::Unknown, "no answer in time"))
            }
        }
    }

    fn answer_all(&self, jobs: Vec<Job>, why: NotPosted) {
        for job in jobs {
            self.answer(job, Err(why));
        }
    }

    fn answer(&self, job: Job, answer: Answer) {
        let answer = job.honest(answer);
        let metrics = &self.lanes.metrics;
        metrics.payments_active.dec();
        let (status, key) = match &answer {
            Ok(Verdict::Stored { replayed: true, .. }) => ("replayed", Some("replayed")),
            Ok(Verdict::Stored { status: PaymentStatus::Succeeded, .. }) => ("succeeded", Some("created")),
            Ok(Verdict::Stored { status: PaymentStatus::Declined, .. }) => ("declined", Some("created")),
            Ok(Verdict::Mismatch) => ("mismatch", Some("mismatch")),
            Ok(Verdict::Rejected(_)) => ("rejected", None),
            Err(why) => (why.code().as_str(), None),
        };
        metrics.payments.with_label_values(&[status]).inc();
        if let Some(outcome) = key {
            metrics.idempotency.with_label_values(&[outcome]).inc();
        }
        self.tell_caches(&job, &answer);
        job.answer(answer);
    }
}

impl Slot {
    /// The balances that this posting changed, or may have changed (H33).
    fn tell_caches(&self, job: &Job, answer: &Answer) {
        let (tenant, details) = (job.payment.tenant.0, &job.payment.details);
        let accounts = [(tenant, details.debit.0), (tenant, details.credit.0)];
        let caches = &self.lanes.caches;
        match answer {
            Ok(Verdict::Stored {
                status: PaymentStatus::Succeeded,
                versions: Some((debit, credit)),
                replayed: false,
                ..
            }) => {
                caches.posted(accounts.into_iter().zip([*debit, *credit]));
            }
            // The answer that had the versions was lost; or whoever moved the money may not have lived to tell.
            Ok(Verdict::Stored { status: PaymentStatus::Succeeded, .. }) => {
                accounts.iter().for_each(|account| caches.balances.evict(account, None));
            }
            Err(NotPosted::OutcomeUnknown) => {
                accounts.iter().for_each(|account| caches.balances.doubt(account))
            }
            Ok(
                Verdict::Stored { status: PaymentStatus::Declined, .. }
                | Verdict::Mismatch
                | Verdict::Rejected(_),
            )
            | Err(_) => {}
        }
    }
}

/// One piece of work a tenant, in order of first appearance.
fn by_tenant(jobs: Vec<Job>) -> Vec<Work> {
    let mut work: Vec<Work> = Vec::new();
    let mut places = rustc_hash::FxHashMap::default();
    for job in jobs {
        let place = *places.entry(job.payment.tenant).or_insert_with(|| {
            work.push(Work { jobs: Vec::new(), whole_tenant: true });
            work.len() - 1
        });
        work[place].jobs.push(job);
    }
    work
}

/// Between half and all of `ms`, so that lanes and instances that failed together do not come back together.
fn jittered(ms: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(ms / 2..=ms))
}
