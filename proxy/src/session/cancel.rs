//! Cancel requests: from a client's key to the servers that work for it now.
//!
//! H38: a server connection whose cancel request is on its way is not given to anybody else until the server has
//! closed the cancel connection, which it does after it has sent the signal. See `Pool::put`.

use std::rc::Rc;

use crate::limits;
use crate::pool::connect;
use crate::worker::{Mail, Worker};

/// A CancelRequest arrived at this worker, perhaps for a client of another one.
pub async fn request(worker: &Rc<Worker>, id: u32, secret: Vec<u8>) {
    let owner = (id >> 24) as usize;
    if owner == usize::from(worker.id) {
        forward(worker, id, &secret);
        return;
    }
    let mail = worker.workers.borrow().get(owner).map(|handle| handle.mail.clone());
    if let Some(mail) = mail {
        let _ = mail.send(Mail::Cancel { id, secret }).await;
    }
}

/// Runs between two polls of the client's session: what `serving` says is true now, and `pending` is raised before
/// the session can give the server back.
pub fn forward(worker: &Rc<Worker>, id: u32, secret: &[u8]) {
    let clients = worker.clients.borrow();
    // Like PostgreSQL, no answer tells a right key from a wrong one.
    let Some(info) = clients.get(&id).filter(|info| same_secret(&info.secret, secret)) else { return };
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
}

/// Takes the same time whatever the first difference.
fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::same_secret;

    #[test]
    fn h38_a_key_must_match_in_full() {
        assert!(same_secret(b"abcd", b"abcd"));
        assert!(!same_secret(b"abcd", b"abce"));
        assert!(!same_secret(b"abcd", b"abc"));
        assert!(!same_secret(b"abcd", b""));
    }
}
