//! What waits in a lane. Bounded; a slot takes everything that waits, up to a batch.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// `tokio::mpsc` has one receiver and cannot put jobs back in front; this has several takers and can.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Notify,
    capacity: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Full,
    Closed,
}

impl<T> Queue<T> {
    pub fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State { waiting: VecDeque::new(), closed: false }),
            filled: Notify::new(),
            capacity,
        }
    }

    pub fn push(&self, item: T) -> Result<(), (T, Refused)> {
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err((item, Refused::Closed));
            }
            if state.waiting.len() >= self.capacity {
                return Err((item, Refused::Full));
            }
            state.waiting.push_back(item);
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Items that were accepted before, by this queue or another one. They keep their place in front, and neither the
    /// bound nor closing refuses them: an accepted item is never dropped. What comes back is at most what was in flight.
    pub fn put_back(&self, items: impl DoubleEndedIterator<Item = T>) {
        {
            let mut state = self.state.lock();
            for item in items.rev() {
                state.waiting.push_front(item);
            }
        }
        self.filled.notify_one();
    }

    /// Waits until `take` would not wait: an item is there, or the queue is closed.
    pub async fn ready(&self) {
        loop {
            {
                let state = self.state.lock();
                if !state.waiting.is_empty() || state.closed {
                    // For whoever takes it.
                    self.filled.notify_one();
                    return;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Waits for at least one item and takes up to `most`, oldest first. `false`: closed and empty.
    pub async fn take(&self, most: usize, into: &mut Vec<T>) -> bool {
        loop {
            {
                let mut state = self.state.lock();
                if !state.waiting.is_empty() {
                    let n = state.waiting.len().min(most);
                    into.extend(state.waiting.drain(..n));
                    if !state.waiting.is_empty() {
                        self.filled.notify_one();
                    }
                    return true;
                }
                if state.closed {
                    // Another taker may wait as well.
                    self.filled.notify_one();
                    return false;
                }
            }
            self.filled.notified().await;
            // Woken from idling: requests that have arrived on other sockets are read before the batch is cut. That is
            // not a timer; with nothing else to run it costs nothing.
            tokio::task::yield_now().await;
        }
    }

    /// Everything that waits, at once, for answering it with a refusal.
    pub fn drain(&self) -> Vec<T> {
        self.state.lock().waiting.drain(..).collect()
    }

    /// Refuses from now on; what waits is still taken.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_one();
    }

    pub fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bounded_ordered_and_drained_after_close() {
        let queue = Queue::new(3);
        for i in 0..3 {
            queue.push(i).unwrap();
        }
        assert_eq!(queue.push(3), Err((3, Refused::Full)));
        let mut out = Vec::new();
        assert!(queue.take(2, &mut out).await);
        assert_eq!(out, [0, 1]);
        queue.put_back(out.drain(..));
        queue.close();
        assert_eq!(queue.push(4), Err((4, Refused::Closed)));
        assert!(queue.take(10, &mut out).await);
        assert_eq!(out, [0, 1, 2]);
        assert!(!queue.take(10, &mut out).await);
    }

    #[tokio::test]
    async fn every_taker_ends_after_close() {
        let queue = std::sync::Arc::new(Queue::<u8>::new(1));
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.take(1, &mut Vec::new()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for taker in takers {
            assert!(!taker.await.unwrap());
        }
    }
}
