//! One measured run: warm-up, window, drain; samples of CPU and WAL at the window's edges.
use super::acks::AckLog;
use super::interrupt::Interrupt;
use super::options::{LoadArgs, Pace};
use super::report::StepReport;
use super::schedule::Schedule;
use super::seed::{Seed, get};
use super::stats::Stats;
use super::trace::Trace;
use super::worker::{Shared, Worker};
use super::workload::Workload;
use crate::measure::core_metrics::{self, Histogram};
use crate::measure::processes::{self, Component, Sample};
use crate::measure::wal::{self, WalSample};
use crate::output::{load_average, thousands};
use crate::stack::{Stack, port};
use anyhow::Result;
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

pub struct Runner<'a> {
    args: &'a LoadArgs,
    stack: &'a Stack,
    cores: Vec<String>,
    seed: &'a Seed,
    acks: RefCell<AckLog>,
    trace: Option<RefCell<Trace>>,
    components: Vec<Component>,
    interrupt: Rc<Interrupt>,
}

/// What the servers had used at one edge of the window.
pub struct Edge {
    pub at: Instant,
    pub cpu: Sample,
    pub wal: Vec<Option<WalSample>>,
    pub batches: Histogram,
    pub completed: u64,
}

/// Everything a load report accounts for, by the ports in the environment.
pub fn components(stack: &Stack) -> Vec<Component> {
    let mut components = Vec::new();
    let mut add = |group: &'static str, name: String, url: &str| {
        if let Some(port) = port(url) {
            components.push(Component { group, name, port });
        }
    };
    for (index, core) in stack.cores.iter().enumerate() {
        add("core", format!("core{}", index + 1), core);
    }
    for (index, proxy) in stack.proxies.iter().enumerate() {
        add("proxy", format!("proxy{}", index + 1), proxy);
    }
    for shard in &stack.shards {
        add("postgres", format!("shard{}-primary", shard.id), &shard.primary);
        if let Some(replica) = &shard.replica {
            add("postgres", format!("shard{}-replica", shard.id), replica);
        }
    }
    if let Some(kafka) = &stack.kafka {
        add("kafka", "kafka".into(), kafka.split(',').next().unwrap_or(kafka));
    }
    if let Some(redis) = &stack.redis {
        add("redis", "redis".into(), redis);
    }
    components
}

impl<'a> Runner<'a> {
    pub fn new(
        args: &'a LoadArgs,
        stack: &'a Stack,
        cores: Vec<String>,
        seed: &'a Seed,
        acks: AckLog,
        trace: Option<Trace>,
        interrupt: Rc<Interrupt>,
    ) -> Runner<'a> {
        let components = components(stack);
        Runner {
            args,
            stack,
            cores,
            seed,
            acks: RefCell::new(acks),
            trace: trace.map(RefCell::new),
            components,
            interrupt,
        }
    }

    /// Writes what is still buffered.
    pub fn close(self) -> Result<()> {
        self.acks.into_inner().flush()?;
        match self.trace {
            Some(trace) => trace.into_inner().flush(),
            None => Ok(()),
        }
    }

    pub async fn run(&self, pace: Pace) -> Result<StepReport> {
        let args = self.args;
        let load_at_start = load_average();
        let random_seed = args.random_seed.unwrap_or_else(rand::random);
        let length = args.warmup + args.duration;
        let start = Instant::now() + Duration::from_millis(50);
        let (schedule, connections) = match pace {
            Pace::Rate(rate) => {
                let requests = rate / f64::from(args.batch);
                (
                    Some(RefCell::new(Schedule::new(requests, args.arrivals, length, random_seed))),
                    args.connections,
                )
            }
            Pace::Clients(clients) => (None, clients),
        };
        let shared = Shared {
            start,
            end: Cell::new(start + length),
            schedule,
            workload: RefCell::new(Workload::new(self.seed, args, random_seed)),
            seed: self.seed,
            stats: RefCell::new(Stats::new(start, args.warmup, args.duration)),
            acks: &self.acks,
            trace: self.trace.as_ref(),
            cores: &self.cores,
            batch: args.batch as usize,
            timeout: Duration::from_millis(args.timeout_ms),
            retry_for: args.retry_for,
        };
        let workers = join_all((0..connections as usize).map(|number| Worker::new(&shared, number).run()));
        let edges = async {
            tokio::time::sleep_until((start + args.warmup).into()).await;
            self.interrupt.measuring(true);
            let before = self.edge(&shared).await;
            tokio::select! {
                () = tokio::time::sleep_until(shared.end.get().into()) => {}
                () = self.interrupt.wait() => shared.cut(),
            }
            self.interrupt.measuring(false);
            (before, self.edge(&shared).await)
        };
        let bar = self.progress(&shared, length);
        let (done, (before, mut after)) = tokio::select! {
            both = async { tokio::join!(workers, edges) } => both,
            () = bar => unreachable!("the progress bar has no end"),
        };
        done.into_iter().collect::<Result<Vec<()>>>()?;
        self.acks.borrow_mut().flush()?;
        // A backend reports its WAL syncs to the statistics at most once a second.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for (now, later) in after.wal.iter_mut().zip(wal::sample(&self.stack.shards).await) {
            if let (Some(now), Some(later)) = (now, later) {
                now.syncs = later.syncs;
            }
        }
        let mut report =
            StepReport::new(pace, args, &self.components, &shared.stats.borrow(), &before, &after);
        report.load_average_at_start = load_at_start;
        Ok(report)
    }

    async fn edge(&self, shared: &Shared<'_>) -> Edge {
        let components = self.components.clone();
        // /proc is read off this thread: it takes milliseconds, and this thread keeps the schedule.
        let cpu =
            tokio::task::spawn_blocking(move || processes::sample(&components)).await.unwrap_or_default();
        let (at, completed) = (Instant::now(), shared.stats.borrow().posted_total);
        let mut batches = Histogram::default();
        for core in &self.cores {
            if let Ok((200, body)) = get(core, "/metrics", None).await {
                batches
                    .add(&core_metrics::parse(&String::from_utf8_lossy(&body), core_metrics::BATCH_METRIC));
            }
        }
        Edge { at, cpu, wal: wal::sample(&self.stack.shards).await, batches, completed }
    }

    async fn progress(&self, shared: &Shared<'_>, length: Duration) {
        let bar = ProgressBar::with_draw_target(Some(length.as_secs().max(1)), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:40}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let mut last = (Instant::now(), 0);
        let finish = FinishOnDrop(&bar);
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = Instant::now();
            finish
                .0
                .set_position(now.saturating_duration_since(shared.start).as_secs().min(length.as_secs()));
            let stats = shared.stats.borrow();
            let rate = (stats.posted_total - last.1) as f64 / now.duration_since(last.0).as_secs_f64();
            last = (now, stats.posted_total);
            finish.0.set_message(format!(
                "{} payments/s  p99 {:.1} ms  errors {}",
                thousands(rate as u64),
                stats.latency_us.value_at_quantile(0.99) as f64 / 1000.0,
                thousands(stats.errors_total)
            ));
        }
    }
}

struct FinishOnDrop<'a>(&'a ProgressBar);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
