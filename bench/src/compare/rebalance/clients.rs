//! Those who notice what happens: payments at a fixed rate, counts of all rows, single writes, and who asks for the map.
use super::foreground::{self, Foreground, WARM_UP};
use super::maps::{Followers, Sights};
use super::scope::Scope;
use super::watch::{Counts, Watch};
use crate::measure::processors::Ticks;
use crate::stack::Stack;
use anyhow::Result;

pub struct Clients {
    load: Foreground,
    watch: Watch,
    followers: Followers,
    /// When they were warm.
    warm: Option<Ticks>,
}

#[derive(Clone, Debug, Default)]
pub struct Noticed {
    pub load: foreground::Seen,
    pub seen: Counts,
    /// Of every proxy.
    pub sights: Vec<Sights>,
    /// Per cent of the machine's processors, everything included.
    pub busy: Option<f64>,
}

impl Clients {
    /// Returns when they are warm. Single writes are to what is given, or to all buckets when nothing is.
    pub async fn start(rate: f64, stack: &Stack, scopes: &[Scope]) -> Result<Clients> {
        let load = Foreground::start(rate)?;
        let watch = Watch::start(stack, scopes).await?;
        let followers = Followers::start(stack).await?;
        tokio::time::sleep(WARM_UP).await;
        Ok(Clients { load, watch, followers, warm: Ticks::now() })
    }

    pub async fn stop(self) -> Result<Noticed> {
        let busy = Ticks::now().zip(self.warm).and_then(|(now, warm)| now.busy_since(warm));
        let (sights, seen, load) =
            (self.followers.stop().await, self.watch.stop().await, self.load.stop().await);
        Ok(Noticed { load: load?, seen: seen?, sights: sights?, busy })
    }
}

impl Noticed {
    /// Failed payments and statements.
    pub fn errors(&self) -> u64 {
        self.load.errors + self.seen.errors
    }
}
