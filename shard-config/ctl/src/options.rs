//! How a move is made, as the command line says it.

use clap::Args;
use shardctl::mover::run::Options;

#[derive(Args, Clone, Copy)]
pub struct How {
    /// Cut over as soon as both sides are equal.
    #[arg(long)]
    auto: bool,
    /// With --auto: finish as soon as it has cut over. No roll-back.
    #[arg(long, requires = "auto")]
    finish: bool,
}

impl How {
    pub fn options(self) -> Options {
        Options { auto: self.auto, finish: self.finish, stay: false }
    }
}

#[derive(Args, Clone, Copy)]
pub struct DryRun {
    /// Only say whether it would be granted, what stands in its way now, and what it would do. Nothing is written anywhere.
    #[arg(long)]
    pub dry_run: bool,
}

const PARALLEL_MOST: i64 = shardctl::mover::throttle::PARALLEL_MOST as i64;

/// A limit of a copy, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit(Option<i64>);

impl std::str::FromStr for Limit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "none" => Ok(Self(None)),
            Ok(most) if most >= 1 => Ok(Self(Some(most))),
            _ => Err("write a number from 1 on, or none"),
        }
    }
}

#[derive(Args, Clone)]
pub struct Limits {
    /// Copy so many bytes a second at most; none: as many as it can.
    #[arg(long, value_name = "BYTES|none")]
    bytes_per_second: Option<Limit>,
    /// Copy nothing while a standby of the source or of the target is so many bytes behind.
    #[arg(long, value_name = "BYTES|none")]
    standby_lag_bytes: Option<Limit>,
    /// Copy nothing while a small commit on the source or on the target takes longer, in milliseconds.
    #[arg(long, value_name = "MS|none")]
    latency_ms: Option<Limit>,
    /// Tables copied at the same time, up to 8; none: the default, 1.
    #[arg(long, value_name = "N|none", value_parser = parallel)]
    parallel: Option<Limit>,
}

fn parallel(text: &str) -> Result<Limit, String> {
    match text.parse()? {
        Limit(Some(most)) if most > PARALLEL_MOST => {
            Err(format!("write a number from 1 to {PARALLEL_MOST}, or none"))
        }
        limit => Ok(limit),
    }
}

impl Limits {
    /// Those that were given, by name.
    pub fn named(&self) -> serde_json::Value {
        let all = [
            ("bytes_per_second", self.bytes_per_second),
            ("standby_lag_bytes", self.standby_lag_bytes),
            ("latency_ms", self.latency_ms),
            ("parallel", self.parallel),
        ];
        let given = all.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?.0.into())));
        serde_json::Value::Object(given.collect())
    }
}
