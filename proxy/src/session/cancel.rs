//! Cancel requests: from a client's key to the servers that work for it now, on this proxy or on a peer.
//!
//! H38: a server connection whose cancel request is on its way is not given to anybody else until the server has
//! closed the cancel connection, which it does after it has sent the signal. See `Pool::put`.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::limits;
use crate::peers::{self, Key, same_secret};
use crate::pool::connect;
use crate::worker::{Mail, Worker};

/// A CancelRequest arrived at this worker, perhaps for a client of another one, or of another proxy.
pub async fn request(worker: &Rc<Worker>, id: u32, secret: Vec<u8>) {
    let key = Key { id, secret };
    let owner = (id >> 24) as usize;
    if owner == usize::from(worker.id) {
        take(worker, key, false);
        return;
    }
    let mail = worker.workers.borrow().get(owner).map(|handle| handle.mail.clone());
    match mail {
        Some(mail) => {
            let _ = mail.send(Mail::Cancel { key, from_peer: false }).await;
        }
        None => ask_peers(worker, key),
    }
}

/// This worker is the one that could have issued the key. A peer's request ends here: the peer asks everybody itself.
pub fn take(worker: &Rc<Worker>, key: Key, from_peer: bool) {
    if !forward(worker, &key) && !from_peer {
        ask_peers(worker, key);
    }
}

/// Runs between two polls of the client's session: what `serving` says is true now, and `pending` is raised before
/// the session can give the server back. False when no client here has this key.
fn forward(worker: &Rc<Worker>, key: &Key) -> bool {
    let clients = worker.clients.borrow();
    // Like PostgreSQL, no answer tells a right key from a wrong one.
    let Some(info) = clients.get(&key.id).filter(|info| same_secret(&info.secret, &key.secret)) else {
        return false;
    };
    info.cancelled.notify_waiters();
    for key in info.serving.borrow().iter() {
        worker.stats.cancels.add(1);
        let key = key.clone();
        key.pending.set(key.pending.get() + 1);
        tokio::task::spawn_local(async move {
            match tokio::time::timeout(limits::CANCEL_TIMEOUT, connect::cancel(&key)).await {
                Ok(Ok(())) => {}
                // It may still be delivered: nobody else may get this connection.
                Ok(Err(error)) => {
                    tracing::info!(server = %key.address, %error, "cancel request failed");
                    key.poisoned.set(true);
                }
                Err(_) => key.poisoned.set(true),
            }
            key.pending.set(key.pending.get() - 1);
        });
    }
    true
}

/// A transaction is given up for a deadlock over several shards. The server is nobody else's until the sender that goes
/// out through `held` is gone.
pub fn deadlock(
    worker: &Rc<Worker>,
    client: u32,
    server: (SocketAddr, i32),
    held: oneshot::Sender<oneshot::Sender<()>>,
) {
    let clients = worker.clients.borrow();
    let Some(info) = clients.get(&client) else { return };
    let serving = info.serving.borrow();
    let Some(key) = serving.iter().find(|key| (key.address, key.pid) == server).cloned() else { return };
    let (release, released) = oneshot::channel::<()>();
    if held.send(release).is_err() {
        return;
    }
    info.deadlocked.set(true);
    key.pending.set(key.pending.get() + 1);
    tokio::task::spawn_local(async move {
        // Its end, and not a value, says that the signal was sent or never will be.
        if tokio::time::timeout(limits::DEADLOCK_SIGNAL, released).await.is_err() {
            key.poisoned.set(true);
        }
        key.pending.set(key.pending.get() - 1);
    });
}

fn ask_peers(worker: &Rc<Worker>, key: Key) {
    let config = worker.state().config.clone();
    // A secret of another length is nobody's. Nobody has to log in to send cancel requests, so they are few at a time.
    if config.proxy.peers.is_empty() || !matches!(key.secret.len(), 4 | 32) {
        return;
    }
    if worker.asking_peers.get() >= limits::PEER_REQUESTS {
        tracing::warn!("too many cancel requests for other proxies at once: one is dropped");
        return;
    }
    worker.asking_peers.set(worker.asking_peers.get() + 1);
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        peers::ask(&config, &key).await;
        worker.asking_peers.set(worker.asking_peers.get() - 1);
    });
}
