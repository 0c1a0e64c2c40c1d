//! Rows whose change has an unknown outcome. They are evicted at once, but the change may be made after that (a backend
//! that waits for a lock or for the standby), and a reader in between fills what was there before. So they are evicted
//! again a few times later: a row is stale until the next of these moments, not for the life of an entry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::bus::{Hub, Level1};

/// When a row is evicted again, each after the one before. The last is longer than any statement is waited for.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120)];
/// Rows that may wait for one of these moments. More are not remembered one by one: see [`Hub::abandon`].
const ROWS_MAX: usize = 20_000;
const TICK: Duration = Duration::from_millis(500);

struct Doubt {
    due: Instant,
    tag: u8,
    key: String,
}

#[derive(Default)]
struct Waiting {
    /// One queue a pause, so that each is in order of time.
    queues: [VecDeque<Doubt>; PAUSES.len()],
    /// Rows were not remembered; at this time everything is given up.
    abandon_at: Option<Instant>,
}

impl Waiting {
    fn push(&mut self, step: usize, now: Instant, tag: u8, key: String) {
        let Some(queue) = self.queues.get_mut(step) else { return };
        if queue.len() < ROWS_MAX {
            queue.push_back(Doubt { due: now + PAUSES[step], tag, key });
        } else {
            self.abandon_at.get_or_insert(now + PAUSES[PAUSES.len() - 1]);
        }
    }
}

#[derive(Default)]
pub(super) struct Doubts(Mutex<Waiting>);

impl Doubts {
    pub(super) fn note(&self, tag: u8, key: String) {
        self.0.lock().push(0, Instant::now(), tag, key);
    }

    /// Rows to evict now, which wait for their next moment already; and whether everything is to be given up.
    fn due(&self, now: Instant) -> (Vec<(u8, String)>, bool) {
        let mut waiting = self.0.lock();
        let mut due = Vec::new();
        for step in (0..PAUSES.len()).rev() {
            while waiting.queues[step].front().is_some_and(|doubt| doubt.due <= now)
                && let Some(doubt) = waiting.queues[step].pop_front()
            {
                waiting.push(step + 1, now, doubt.tag, doubt.key.clone());
                due.push((doubt.tag, doubt.key));
            }
        }
        let abandon = waiting.abandon_at.take_if(|at| *at <= now).is_some();
        (due, abandon)
    }

    /// Everything that waits: there will be no later.
    pub(super) fn take(&self) -> Vec<(u8, String)> {
        let waiting = std::mem::take(&mut *self.0.lock());
        waiting.queues.into_iter().flatten().map(|doubt| (doubt.tag, doubt.key)).collect()
    }
}

/// Evicts what is due, until stopped.
pub(super) async fn follow(
    hub: Arc<Hub>,
    caches: Arc<Vec<Arc<dyn Level1>>>,
    mut stop: watch::Receiver<bool>,
) {
    while tokio::time::timeout(TICK, stop.wait_for(|s| *s)).await.is_err() {
        let (due, abandon) = hub.doubts.due(Instant::now());
        evict(&caches, due);
        if abandon {
            tracing::warn!("too many changes of unknown outcome: all cached values are given up");
            caches.iter().for_each(|cache| cache.flush());
            hub.abandon();
        }
    }
}

pub(super) fn evict(caches: &[Arc<dyn Level1>], rows: Vec<(u8, String)>) {
    for (tag, key) in rows {
        if let Some(cache) = caches.get(usize::from(tag)) {
            cache.evict_again(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h33_a_row_in_doubt_comes_up_again_at_every_moment_and_then_no_more() {
        let doubts = Doubts::default();
        doubts.note(1, "row".into());
        let mut now = Instant::now();
        assert!(doubts.due(now).0.is_empty());
        for pause in PAUSES {
            now += pause + Duration::from_millis(1);
            assert_eq!(doubts.due(now), (vec![(1, "row".to_owned())], false));
            assert!(doubts.due(now).0.is_empty());
        }
        assert!(doubts.take().is_empty());
    }

    #[test]
    fn too_many_rows_in_doubt_give_everything_up_after_the_last_moment() {
        let doubts = Doubts::default();
        for n in 0..=ROWS_MAX {
            doubts.note(1, n.to_string());
        }
        let now = Instant::now();
        assert!(!doubts.due(now).1);
        assert_eq!(doubts.take().len(), ROWS_MAX);
        doubts.0.lock().abandon_at = Some(now);
        assert!(doubts.due(now).1);
        assert!(!doubts.due(now).1, "once");
    }
}
