//! Cancel requests between the proxies of one cluster (H38).
//!
//! Behind a balancer a client's CancelRequest may reach another proxy than its session. A key of protocol 3.0 has 8
//! bytes and no room for the name of who issued it, so it is shown to all peers, and the one that issued it knows
//! it again. The request travels over the peers' HTTP doors, under an HMAC that only a proxy of the cluster can make:
//! its key comes from the password of `[control]`. What arrives here is looked up among this proxy's own clients and
//! never passed on, so nothing can go in a circle.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use futures_util::future::join_all;
use shard_config::{Config, HostPort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::auth::client_side::hmac_sha256;
use crate::limits;

/// Where a peer's HTTP door takes cancel requests.
pub const PATH: &str = "/cancel";

/// A client's key: process id and secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub id: u32,
    pub secret: Vec<u8>,
}

/// Shows the key to every peer. Which of them knows it is not told, like all of cancelling.
pub async fn ask(config: &Config, key: &Key) {
    let body = message(config, now(), key);
    let asks = config.proxy.peers.iter().map(|peer| {
        let body = &body;
        async move {
            match timeout(limits::CANCEL_TIMEOUT, post(peer, body)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(%peer, ?error, "cancel request not passed on"),
                Err(_) => tracing::info!(%peer, "cancel request not passed on: no answer"),
            }
        }
    });
    join_all(asks).await;
}

async fn post(peer: &HostPort, body: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect((peer.host.as_str(), peer.port)).await?;
    let length = body.len();
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: {peer}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(limits::PEER_MESSAGE as u64).read_to_end(&mut answer).await?;
    let status = answer.split(|byte| *byte == b' ').nth(1).context("no HTTP answer")?;
    ensure!(status == b"204", "HTTP status {}", String::from_utf8_lossy(status));
    Ok(())
}

/// The key in a peer's request. The error says what is wrong with it, for the log; the sender learns nothing.
pub fn open(config: &Config, body: &[u8]) -> anyhow::Result<Key> {
    read(config, now(), body)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// `<Unix time in s> <process id> <secret> <HMAC>`, all but the first in hexadecimal digits.
fn message(config: &Config, at: u64, key: &Key) -> String {
    let text = format!("{at} {:08x} {}", key.id, hex(&key.secret));
    let signature = hex(&sign(config, &text));
    format!("{text} {signature}")
}

fn read(config: &Config, now: u64, body: &[u8]) -> anyhow::Result<Key> {
    let body = std::str::from_utf8(body)?;
    let (text, signature) = body.rsplit_once(' ').context("not of this form")?;
    ensure!(same_secret(&unhex(signature)?, &sign(config, text)), "another password of [control]");
    let mut parts = text.split(' ');
    let (Some(at), Some(id), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("not of this form");
    };
    // Who listens in on the network could repeat it, but not for long: later another statement would be hit.
    ensure!(now.abs_diff(at.parse()?) <= limits::PEER_CLOCKS.as_secs(), "too old, or the clocks differ");
    Ok(Key { id: u32::from_str_radix(id, 16)?, secret: unhex(secret)? })
}

fn sign(config: &Config, text: &str) -> [u8; 32] {
    // Not the password itself: the same key must not serve two purposes.
    let password = config.control.password.expose().as_bytes();
    let key = hmac_sha256(password, &[b"shard_proxy cancel ", config.proxy.database.as_bytes()]);
    hmac_sha256(&key, &[text.as_bytes()])
}

/// Takes the same time whatever the first difference.
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "not hexadecimal");
    let digits = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    Ok(digits.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(password: &str) -> Config {
        let text = format!("[control]\npassword = \"{password}\"\n[[shard]]\nid = 1\nprimary = \"h:1\"\n");
        Config::parse(&text).expect("valid")
    }

    #[test]
    fn h38_a_key_must_match_in_full() {
        assert!(same_secret(b"abcd", b"abcd"));
        assert!(!same_secret(b"abcd", b"abce"));
        assert!(!same_secret(b"abcd", b"abc"));
        assert!(!same_secret(b"abcd", b""));
    }

    #[test]
    fn h38_only_a_peer_can_pass_a_cancel_request_on() {
        let key = Key { id: 0x0200_0007, secret: vec![0, 255, 16, 1] };
        let sent = message(&config("ours"), 1000, &key);
        assert_eq!(read(&config("ours"), 1000, sent.as_bytes()).expect("authentic"), key);
        assert!(read(&config("ours"), 1010, sent.as_bytes()).is_ok(), "clocks may differ a little");
        assert!(read(&config("ours"), 2000, sent.as_bytes()).is_err(), "repeated later");
        assert!(read(&config("theirs"), 1000, sent.as_bytes()).is_err(), "another cluster");
        let other = sent.replace("02000007", "02000008");
        assert!(read(&config("ours"), 1000, other.as_bytes()).is_err(), "changed on its way");
        for broken in ["", " ", "1000 02000007 00ff1001", "x y z \u{e4}\u{e4}", "1000 02000007 00ff1001 0"] {
            assert!(read(&config("ours"), 1000, broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
