//! How long a change of the map takes to every proxy: from the beginning of the transaction that makes it to the first
//! session of the last proxy that serves by it. The transaction's own time is in it, its commit on a standby too.
use super::watch::url;
use crate::measure::wal::connect;
use crate::stack::Stack;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, SimpleQueryMessage};

/// As fine as the figures are.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// A map that the catalog has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    pub epoch: i64,
    /// Since the UNIX epoch.
    pub made_us: i64,
}

/// From then on a proxy served by this map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    pub epoch: i64,
    pub at_us: i64,
}

/// What one proxy served by, in the order in which it was seen; the first one is what it began with.
pub type Sights = Vec<Sight>;

pub struct Followers {
    stop: Arc<AtomicBool>,
    looking: Vec<JoinHandle<Result<Sights>>>,
}

impl Followers {
    /// One session of every proxy.
    pub async fn start(stack: &Stack) -> Result<Followers> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut looking = Vec::new();
        for n in 0..stack.proxies.len() {
            let client = connect(&url(stack, n)?).await?;
            looking.push(tokio::spawn(look(client, stop.clone())));
        }
        Ok(Followers { stop, looking })
    }

    pub async fn stop(self) -> Result<Vec<Sights>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for proxy in self.looking {
            all.push(proxy.await??);
        }
        Ok(all)
    }
}

async fn look(client: Client, stop: Arc<AtomicBool>) -> Result<Sights> {
    let mut ticks = tokio::time::interval(BETWEEN_LOOKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sights = Sights::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let epoch = epoch(&client).await?;
        if sights.last().is_none_or(|last| last.epoch != epoch) {
            let at_us = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
            sights.push(Sight { epoch, at_us });
        }
    }
    Ok(sights)
}

async fn epoch(client: &Client) -> Result<i64> {
    let answer = client.simple_query("SHOW shard.epoch").await.context("the epoch that a proxy serves by")?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.context("a proxy names no epoch")?.parse()?)
}

/// For every map made while all proxies were looked at, milliseconds until the last of them served by it or by a later
/// one. `None`: one of them never did.
pub fn followed_ms(maps: &[Map], proxies: &[Sights]) -> Vec<Option<f64>> {
    let began = proxies.iter().map(|sights| sights.first().map_or(i64::MAX, |first| first.at_us));
    let Some(began) = began.max() else { return Vec::new() };
    let last_us = |map: &Map| {
        let first_us = |sights: &Sights| Some(sights.iter().find(|sight| sight.epoch >= map.epoch)?.at_us);
        proxies.iter().map(first_us).try_fold(i64::MIN, |last, first| Some(last.max(first?)))
    };
    let made = maps.iter().filter(|map| map.made_us >= began);
    made.map(|map| Some((last_us(map)? - map.made_us) as f64 / 1000.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sights(all: &[(i64, i64)]) -> Sights {
        all.iter().map(|(epoch, at_us)| Sight { epoch: *epoch, at_us: *at_us }).collect()
    }

    fn maps(all: &[(i64, i64)]) -> Vec<Map> {
        all.iter().map(|(epoch, made_us)| Map { epoch: *epoch, made_us: *made_us }).collect()
    }

    #[test]
    fn the_last_proxy_counts() {
        let proxies = [sights(&[(1, 0), (2, 30_000)]), sights(&[(1, 1_000), (2, 95_000)])];
        assert_eq!(followed_ms(&maps(&[(2, 20_000)]), &proxies), [Some(75.0)]);
        // What was there before is no change.
        assert_eq!(followed_ms(&maps(&[(1, 500), (2, 20_000)]), &proxies), [Some(75.0)]);
    }

    #[test]
    fn a_later_map_does_as_well_and_none_is_missed() {
        let proxies = [sights(&[(1, 0), (2, 12_000), (3, 22_000)]), sights(&[(1, 0), (3, 21_000)])];
        let maps = maps(&[(2, 10_000), (3, 20_000), (4, 30_000)]);
        assert_eq!(followed_ms(&maps, &proxies), [Some(11.0), Some(2.0), None]);
        assert_eq!(followed_ms(&maps, &[proxies[0].clone(), Sights::new()]), []);
        assert_eq!(followed_ms(&maps, &[]), []);
    }
}
