use shard_config::{KeyHash, KeyType, hash_of_int8, hash_of_text};

use super::*;

const TEXT: fn() -> CopyFormat = || CopyFormat::Text { delimiter: b'\t', null: b"\\N".to_vec() };
const CSV: fn(bool) -> CopyFormat =
    |header| CopyFormat::Csv { delimiter: b',', quote: b'"', escape: b'"', null: Vec::new(), header };

fn splitter(format: CopyFormat, key_position: usize, key_type: KeyType) -> Splitter {
    Splitter::new(format, key_position, KeyReader { key_type, utf8: true }, "t".into())
}

/// Feeds `input` in pieces of `size`; returns (bytes, bucket, last line) of each row, heads with no bucket and line 0.
fn cut(
    mut splitter: Splitter,
    input: &[u8],
    size: usize,
) -> Result<Vec<(Vec<u8>, Option<KeyHash>, u64)>, CopyError> {
    let (mut consumed, mut pieces, mut rows) = (0, Vec::new(), Vec::new());
    let take = |splitter: &Splitter, pieces: &[Piece], rows: &mut Vec<_>| {
        for piece in pieces {
            match piece {
                Piece::Head { bytes, .. } => rows.push((splitter.bytes()[bytes.clone()].to_vec(), None, 0)),
                Piece::Row { bytes, hash, line, .. } => {
                    rows.push((splitter.bytes()[bytes.clone()].to_vec(), *hash, *line));
                }
            }
        }
    };
    for chunk in input.chunks(size) {
        splitter.push(chunk, &mut consumed, &mut pieces)?;
        take(&splitter, &pieces, &mut rows);
    }
    splitter.finish(&mut consumed, &mut pieces)?;
    take(&splitter, &pieces, &mut rows);
    Ok(rows)
}

/// The same whatever the pieces of the stream are.
fn check(
    format: fn() -> CopyFormat,
    key: usize,
    key_type: KeyType,
    input: &[u8],
    expected: &[(&[u8], Option<KeyHash>, u64)],
) {
    let expected: Vec<_> = expected.iter().map(|(b, k, l)| (b.to_vec(), *k, *l)).collect();
    for size in [1, 2, 3, 7, 1000] {
        assert_eq!(
            cut(splitter(format(), key, key_type), input, size),
            Ok(expected.clone()),
            "pieces of {size}"
        );
    }
}

fn text(key: &str) -> Option<KeyHash> {
    Some(hash_of_text(key.as_bytes()))
}

fn int(key: i64) -> Option<KeyHash> {
    Some(hash_of_int8(key))
}

#[test]
fn text_rows_and_their_keys() {
    check(
        TEXT,
        1,
        KeyType::Int8,
        b"a\t1\tx\nb\t2\ty\n",
        &[(b"a\t1\tx\n", int(1), 1), (b"b\t2\ty\n", int(2), 2)],
    );
    check(TEXT, 0, KeyType::Int8, b"5\r\n6\r\n", &[(b"5\r\n", int(5), 1), (b"6\r\n", int(6), 2)]);
    check(TEXT, 0, KeyType::Int8, b"5\n6", &[(b"5\n", int(5), 1), (b"6", int(6), 2)]);
    check(TEXT, 0, KeyType::Int8, b"5\n\\.\n7\n", &[(b"5\n", int(5), 1)]);
}

#[test]
fn text_escapes_are_read_as_the_server_reads_them() {
    check(TEXT, 0, KeyType::Text, b"a\\tb\tx\n", &[(b"a\\tb\tx\n", text("a\tb"), 1)]);
    check(TEXT, 0, KeyType::Text, b"\\101\\x42C\tx\n", &[(b"\\101\\x42C\tx\n", text("ABC"), 1)]);
    check(
        TEXT,
        0,
        KeyType::Text,
        b"a\\\nb\tx\nc\ty\n",
        &[(b"a\\\nb\tx\n", text("a\nb"), 1), (b"c\ty\n", text("c"), 2)],
    );
    check(TEXT, 1, KeyType::Text, b"a\\\tb\tk\n", &[(b"a\\\tb\tk\n", text("k"), 1)]);
}

#[test]
fn csv_rows_and_their_keys() {
    check(
        || CSV(true),
        1,
        KeyType::Int8,
        b"a,k\n\"x,\n1\",7\ny,\"8\"\n",
        &[(b"a,k\n", None, 0), (b"\"x,\n1\",7\n", int(7), 3), (b"y,\"8\"\n", int(8), 4)],
    );
    // What a newline within quotes is, is not known before the first line has ended.
    check(
        || CSV(false),
        1,
        KeyType::Int8,
        b"\"x\n\n1\",7\n\"x\n\n1\",8\n9,9\n",
        &[(b"\"x\n\n1\",7\n", int(7), 1), (b"\"x\n\n1\",8\n", int(8), 4), (b"9,9\n", int(9), 5)],
    );
    check(|| CSV(false), 0, KeyType::Text, b"\"a\"\"b\",1\n", &[(b"\"a\"\"b\",1\n", text("a\"b"), 1)]);
    check(|| CSV(false), 0, KeyType::Text, b"\"\",1\n", &[(b"\"\",1\n", text(""), 1)]);
}

#[test]
fn binary_rows_and_their_keys() {
    let mut input = BINARY_SIGNATURE.to_vec();
    input.extend_from_slice(&[0; 8]);
    let head = input.clone();
    let mut row = vec![0, 2, 0, 0, 0, 1, b'x', 0, 0, 0, 8];
    row.extend_from_slice(&42i64.to_be_bytes());
    input.extend_from_slice(&row);
    input.extend_from_slice(&row);
    input.extend_from_slice(&[0xff, 0xff]);
    check(
        || CopyFormat::Binary,
        1,
        KeyType::Int8,
        &input,
        &[(&head, None, 0), (&row, int(42), 1), (&row, int(42), 2)],
    );
}

#[test]
fn what_is_wrong_is_told_with_the_line() {
    let fails = |format: CopyFormat, input: &[u8]| {
        let error = cut(splitter(format, 1, KeyType::Int8), input, 5).expect_err("refused");
        (error.sqlstate, error.line)
    };
    assert_eq!(fails(TEXT(), b"a\t1\nb\t\\N\n"), ("23502", 2));
    assert_eq!(fails(CSV(false), b"a,1\nb,\n"), ("23502", 2));
    assert_eq!(fails(TEXT(), b"a\t1\nb\tzz\n"), ("22P02", 2));
    assert_eq!(fails(TEXT(), b"a\t1\nb\r\t2\n"), ("22P04", 2));
    assert_eq!(fails(TEXT(), b"a\t1\r\nb\t2\n"), ("22P04", 2));
    assert_eq!(fails(CSV(false), b"a,1\nb,\"2\n"), ("22P04", 3));
    assert_eq!(fails(CopyFormat::Binary, b"no signature at all"), ("22P04", 0));
}

#[test]
fn a_row_without_the_key_column_is_for_any_server_to_report() {
    check(TEXT, 3, KeyType::Int8, b"a\t1\n", &[(b"a\t1\n", None, 1)]);
}
