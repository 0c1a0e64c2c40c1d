//! Asks the workers what they are doing.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::pool::pool::PoolStatus;
use crate::session::client::{ClientStatus, WorkerSnapshot};
use crate::worker::{Mail, WorkerHandle};

/// A worker that is this late is left out of the answer.
const ANSWER: Duration = Duration::from_secs(1);

pub async fn clients(workers: &[WorkerHandle]) -> Vec<ClientStatus> {
    ask(workers, Mail::Clients).await
}

/// One row a shard, server and user: the workers' shares of a pool are added up.
pub async fn pools(workers: &[WorkerHandle]) -> Vec<PoolStatus> {
    let mut sums: Vec<PoolStatus> = Vec::new();
    for pool in ask(workers, Mail::Pools).await {
        let same =
            |p: &&mut PoolStatus| p.address == pool.address && p.role == pool.role && p.user == pool.user;
        match sums.iter_mut().find(same) {
            Some(sum) => {
                sum.idle += pool.idle;
                sum.used += pool.used;
                sum.connecting += pool.connecting;
                sum.waiting += pool.waiting;
                sum.max += pool.max;
            }
            None => sums.push(pool),
        }
    }
    sums.sort_by(|a, b| (a.shard_id, a.address, &a.user).cmp(&(b.shard_id, b.address, &b.user)));
    sums
}

/// The sum over all workers of each counter, by name.
pub fn counters(workers: &[WorkerHandle]) -> Vec<(&'static str, u64)> {
    let mut sums = WorkerSnapshot::default().values();
    for worker in workers {
        for (sum, (_, value)) in sums.iter_mut().zip(worker.stats.snapshot().values()) {
            sum.1 += value;
        }
    }
    sums
}

async fn ask<T>(workers: &[WorkerHandle], question: impl Fn(oneshot::Sender<Vec<T>>) -> Mail) -> Vec<T> {
    let mut answers = Vec::new();
    for worker in workers {
        let (sender, receiver) = oneshot::channel();
        // A full mailbox belongs to a worker that is too busy to be asked.
        if worker.mail.try_send(question(sender)).is_ok()
            && let Ok(Ok(rows)) = timeout(ANSWER, receiver).await
        {
            answers.extend(rows);
        }
    }
    answers
}
