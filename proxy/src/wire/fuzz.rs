//! Arbitrary bytes as messages: whatever is read of them, nothing lies outside of them and nothing panics.

use std::collections::BTreeMap;

use super::{build, frame, read};
use crate::oids::OidMap;

/// What clients and servers may send.
pub fn messages(data: &[u8]) {
    let mut rest = data;
    // As a session cuts its buffer. Every step takes a whole message, so this ends.
    while let Ok(Some(size)) = frame::client_frame(rest) {
        let Some((message, after)) = rest.split_at_checked(size) else { break };
        assert!(size >= frame::HEADER);
        client(message);
        rest = after;
    }
    rest = data;
    while let Ok(Some(size)) = frame::server_frame(rest) {
        let Some((message, after)) = rest.split_at_checked(size) else { break };
        server(message);
        rest = after;
    }
    let _ = frame::startup_frame(data);
    client(data);
    server(data);
}

fn client(message: &[u8]) {
    if let Some(sql) = read::query(message) {
        let mut again = Vec::new();
        build::query(&mut again, sql);
        assert_eq!(again.get(frame::HEADER..), message.get(frame::HEADER..));
    }
    if let Some(parse) = read::parse(message) {
        assert_eq!(parse.oids.len() % 4, 0);
        let mut again = Vec::new();
        build::parse(&mut again, parse.name, parse.sql, parse.oids);
        assert_eq!(again.get(frame::HEADER..), message.get(frame::HEADER..));
    }
    if let Some(bind) = read::bind(message) {
        for n in 0..bind.count.min(70) {
            assert!(bind.value(n).is_some(), "a value that was counted");
            let _ = bind.is_binary(n);
        }
        assert!(bind.value(bind.count).is_none());
    }
    let _ = (read::named(message), read::execute(message));
}

fn server(message: &[u8]) {
    for tag in [b'C', b'M', b'P', b'R'] {
        let _ = read::error_field(message, tag);
    }
    let named = |pairs: &[(&str, u32)]| -> BTreeMap<(String, String), u32> {
        pairs.iter().map(|(name, oid)| (("public".to_owned(), (*name).to_owned()), *oid)).collect()
    };
    let ours = named(&[("a", 16_400), ("b", 16_401)]);
    let theirs = named(&[("a", 16_401), ("b", 16_400)]);
    let map = OidMap::new((&ours, &theirs), (&ours, &theirs));
    if let Some(renumbered) = map.described(message) {
        assert_eq!(renumbered.len(), message.len());
    }
    let _ = map.declared(message);
}
