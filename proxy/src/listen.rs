//! Accepts clients and deals them out to the workers.

use std::net::SocketAddr;
use std::time::Duration;

use shard_config::Config;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::worker::{Mail, WorkerHandle};

/// A burst of connects waits here rather than being refused by the kernel.
const BACKLOG: i32 = 4096;

pub fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted proxy must not wait for the old one's closed connections.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).map_err(|e| anyhow::anyhow!("cannot listen on {address}: {e}"))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Runs until it is dropped. A full mailbox makes the next client wait in the backlog.
pub async fn accept(listener: std::net::TcpListener, workers: Vec<WorkerHandle>) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut next = 0;
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => {
                let worker = &workers[next % workers.len()];
                next = next.wrapping_add(1);
                if worker.mail.send(Mail::Client(stream)).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                // Out of descriptors, or a client that left at once: either passes.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// One descriptor a client, and some for servers.
pub fn raise_open_files(config: &Config) {
    let pools = (config.pool.primary_max + config.pool.replica_max) as u64 * config.shards.len() as u64;
    let wanted = u64::from(config.proxy.max_clients) + pools * config.users.len() as u64 + 500;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).is_err() || hard < wanted {
        tracing::warn!(wanted, hard, "few file descriptors: raise the limit (ulimit -n)");
    }
}
