//! TCP connections that can be cut: whoever is to reach a server through one is given the port of the wire.
//!
//! A cut is what two machines see of each other when the network between them is gone: nothing arrives, nobody is told,
//! and what was sent arrives when it is back. It needs no rights, and ends with this process.

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Wire {
    pub port: u16,
    cut: watch::Sender<bool>,
}

impl Wire {
    /// To a port of this machine.
    pub async fn to(server: u16) -> Result<Wire> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("a port for a wire")?;
        let port = listener.local_addr()?.port();
        let (cut, state) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(join(client, server, state.clone()));
            }
        });
        Ok(Wire { port, cut })
    }

    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

/// Both ends learn that a connection is over when either one has ended it, but not while the wire is cut.
async fn join(client: TcpStream, server: u16, state: watch::Receiver<bool>) {
    let mut whole = state.clone();
    if whole.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, state.clone()) => {}
        () = pump(from_server, to_client, state) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // What was under way when it was cut waits here, the end of the connection included.
        if state.wait_for(|cut| !cut).await.is_err()
            || read == 0
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn what_is_sent_over_a_cut_wire_arrives_when_it_is_whole() {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let wire = Wire::to(server.local_addr().unwrap().port()).await.unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", wire.port)).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut byte = [0; 1];
        client.write_all(b"a").await.unwrap();
        served.read_exact(&mut byte).await.unwrap();
        wire.cut(true);
        client.write_all(b"b").await.unwrap();
        assert!(timeout(Duration::from_millis(200), served.read_exact(&mut byte)).await.is_err());
        wire.cut(false);
        served.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"b");
        drop(client);
        assert_eq!(served.read(&mut byte).await.unwrap(), 0);
    }
}
