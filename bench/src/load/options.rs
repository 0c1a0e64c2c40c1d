//! The command line of `bench load`.
use crate::check;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// The customer's ladder, and what lies beyond it.
const LADDER: &[u32] = &[100, 300, 600, 1000, 1500, 2000, 3000, 4000, 5000, 6500, 8000, 10000, 12500, 15000];
const DEFAULT_RATE: f64 = 2000.0;

#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Open loop: payments a second, whatever the answers do (default 2000).
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "clients", value_parser = positive)]
    pub rate: Option<f64>,
    /// Closed loop: this many clients, each sends its next request when the previous one was answered.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: Option<u32>,
    /// Seconds to measure (each step of --steps too).
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub duration: Duration,
    /// Seconds of the same load before measuring.
    #[arg(long, default_value = "3", value_parser = seconds)]
    pub warmup: Duration,
    /// Payments a request, through the batch endpoint; 1 = the single endpoint.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub batch: u32,
    /// Open loop: connections, which is also the most requests in flight.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Open loop: times between requests.
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson)]
    pub arrivals: Arrivals,
    /// Skew of tenants and of accounts within a tenant; 0 = uniform, 1.0 = the classic Zipf.
    #[arg(long, default_value_t = 0.0, value_parser = skew)]
    pub zipf: f64,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub tenants: u32,
    /// Wallets a tenant.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub accounts: u32,
    /// This percentage of all payments debits one single account (100 when no number is given).
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "100",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub hot: Option<u8>,
    /// Bytes of description in each payment.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=500))]
    pub payload: u32,
    /// Use this many of the running cores (default: all).
    #[arg(long)]
    pub cores: Option<usize>,
    /// Walk a ladder of rates until one is not held; without a list 100, 300, 600, 1000, 1500, 2000 and beyond.
    #[arg(long, value_name = "RATES", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["rate", "clients"])]
    pub steps: Option<String>,
    /// Measure this many times in turn and report the run in the middle, with the median and the spread of all.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "steps",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// Afterwards prove the ledger's invariants.
    #[arg(long)]
    pub check: bool,
    /// With --check: seconds to wait for the outbox to be published.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub drain_timeout: Duration,
    /// With --check: commits are not meant to wait for a standby (default: what the stack's profile says).
    #[arg(long = "async")]
    pub asynchronous: bool,
    /// One JSON object on standard output instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Repeat a request with the same idempotency key for this many seconds when its outcome is unknown or the
    /// core is overloaded (for fault runs).
    #[arg(long, default_value = "0", value_parser = seconds)]
    pub retry_for: Duration,
    /// Milliseconds after which an unanswered request counts as an error.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
    /// Where seeded tenants and the logs of acknowledgements are kept between runs.
    #[arg(long, value_name = "DIR")]
    pub load_dir: Option<PathBuf>,
    /// Write a line for each request that the latencies are of: when it was due, in microseconds since the UNIX epoch, a
    /// space, and its latency in microseconds, counted from then.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Seed of the random choices; runs with the same seed choose alike.
    #[arg(long)]
    pub random_seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// Independent clients: exponential gaps.
    Poisson,
    /// Equal gaps.
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Payments a second.
    Rate(f64),
    Clients(u32),
}

impl LoadArgs {
    pub fn pace(&self) -> Pace {
        match (self.rate, self.clients) {
            (_, Some(clients)) => Pace::Clients(clients),
            (rate, None) => Pace::Rate(rate.unwrap_or(DEFAULT_RATE)),
        }
    }

    pub fn steps(&self) -> Option<Vec<u32>> {
        let list = self.steps.as_ref()?;
        let rates: Vec<u32> =
            list.split(',').filter_map(|rate| rate.trim().parse().ok()).filter(|rate| *rate > 0).collect();
        Some(if rates.is_empty() { LADDER.to_vec() } else { rates })
    }

    pub fn check_options(&self) -> check::Options {
        check::Options { drain_timeout: self.drain_timeout, ..check::Options::default() }
    }
}

/// "60" or "60s" or "0.5".
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 =
        text.trim_end_matches('s').parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    if !(0.0..=86_400.0).contains(&number) {
        return Err("must be between 0 and 86400 seconds".into());
    }
    Ok(Duration::from_secs_f64(number))
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(rate),
        _ => Err("must be a positive number".into()),
    }
}

fn skew(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(skew) if (0.0..=5.0).contains(&skew) => Ok(skew),
        _ => Err("must be between 0 and 5".into()),
    }
}
