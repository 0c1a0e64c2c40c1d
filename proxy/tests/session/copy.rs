//! COPY FROM STDIN on one shard.

use crate::raw::{Batch, Raw};
use shard_proxy::wire::build;

fn data(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let start = build::begin(&mut out, b'd');
    out.extend_from_slice(text.as_bytes());
    build::end(&mut out, start);
    out
}

fn done() -> Vec<u8> {
    let mut out = Vec::new();
    let start = build::begin(&mut out, b'c');
    build::end(&mut out, start);
    out
}

/// As tokio-postgres and libpq do: Sync behind Execute, data when the server asks for it, and another Sync.
fn begin_copy(raw: &mut Raw, sql: &str) {
    raw.send(&Batch::default().parse("", sql).bind("", &[]).execute().sync().0);
    let mut seen = String::new();
    while !seen.ends_with('G') {
        let (tag, body) = raw.message().expect("CopyInResponse");
        assert!(!matches!(tag, b'E' | b'Z'), "{}", String::from_utf8_lossy(&body));
        seen.push(tag.into());
    }
    assert_eq!(seen, "12G");
}

#[test]
fn copy_by_the_extended_protocol() {
    for sql in ["COPY plain FROM STDIN", "/* why */ COPY plain FROM STDIN"] {
        let mut raw = Raw::login();
        raw.query("DELETE FROM plain WHERE id BETWEEN 9100 AND 9199");
        begin_copy(&mut raw, sql);
        raw.send(
            &[data("9100\tx\n9101\ty\n"), Batch::default().flush().sync().0, data("9102\tz\n")].concat(),
        );
        raw.send(&[done(), Batch::default().sync().0].concat());
        assert_eq!(raw.answers(1), ["CCOPY 3", "ZI"]);
        assert_eq!(raw.value("SELECT count(*) FROM plain WHERE id BETWEEN 9100 AND 9199"), "3");
    }
}

#[test]
fn a_copy_that_fails_ends_at_its_last_sync() {
    let mut raw = Raw::login();
    for block in [false, true] {
        if block {
            raw.query("BEGIN");
        }
        begin_copy(&mut raw, "COPY plain FROM STDIN");
        raw.send(&[data("9200\tx\nnumber\ty\n"), done(), Batch::default().sync().0].concat());
        assert_eq!(raw.answers(1), ["E22P02", if block { "ZE" } else { "ZI" }]);
        raw.query("ROLLBACK");
        // One that fails before the server asks for data: its first Sync is answered.
        let fails =
            Batch::default().parse("", "COPY plain (id, id) FROM STDIN").bind("", &[]).execute().sync();
        let answers = fails.run(&mut raw);
        assert_eq!(answers[answers.len() - 2..], ["E42701", "ZI"]);
        assert_eq!(raw.value("SELECT count(*) FROM plain WHERE id = 9200"), "0");
    }
    // Not COPY FROM: nothing asks for data.
    let out =
        Batch::default().parse("", "COPY (SELECT 1) TO STDOUT").bind("", &[]).execute().sync().run(&mut raw);
    assert_eq!(out, ["1", "2", "H", "d", "c", "CCOPY 1", "ZI"]);
}

#[test]
fn sync_and_flush_within_a_simple_copy_are_ignored() {
    let mut raw = Raw::login();
    raw.query("DELETE FROM plain WHERE id = 9300");
    let mut query = Vec::new();
    build::query(&mut query, b"COPY plain FROM STDIN");
    raw.send(&query);
    assert_eq!(raw.message().expect("CopyInResponse").0, b'G');
    raw.send(&[Batch::default().flush().sync().0, data("9300\tx\n"), done()].concat());
    assert_eq!(raw.answers(1), ["CCOPY 1", "ZI"]);
    // What is not part of COPY ends the session, as nothing can be told from it any more.
    raw.send(&query);
    assert_eq!(raw.message().expect("CopyInResponse").0, b'G');
    raw.send(&query);
    assert_eq!(raw.answers(1), ["E08P01", "closed"]);
}
