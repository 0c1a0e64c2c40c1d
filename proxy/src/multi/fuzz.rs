//! Arbitrary bytes as what is cut and merged: COPY streams, rows, errors, Binds.

use shard_config::{KeyHash, KeyType};

use super::copy_lines::{LineCount, Lines};
use super::copy_split::{CopyError, Piece, Splitter};
use super::{apply, copy_out, exchange, pour, prepared};
use crate::route::plan::CopyFormat;
use crate::route::values::KeyReader;
use crate::wire::read;

/// Bytes, key (none of a head), lines, the client's last line.
type Row = (Vec<u8>, Option<Option<KeyHash>>, LineCount, u64);
type Cut = (Vec<Row>, Result<(), CopyError>);

/// Format, key and size of messages in the first three bytes, then the stream: however it is cut into messages, the same
/// rows come out.
pub fn copy(data: &[u8]) {
    let Some((&[format, key, size], stream)) = data.split_first_chunk::<3>() else { return };
    let position = usize::from(key >> 5);
    let types = [KeyType::Int8, KeyType::Text, KeyType::Uuid];
    let reader = KeyReader { key_type: types[usize::from(key & 3) % types.len()], utf8: true };
    let splitter = || {
        let format = match format & 3 {
            0 => CopyFormat::Text { delimiter: b'\t', null: b"\\N".to_vec() },
            1 => CopyFormat::Csv {
                delimiter: b',',
                quote: b'"',
                escape: if format & 4 == 0 { b'"' } else { b'\\' },
                null: Vec::new(),
                header: format & 8 != 0,
            },
            2 => CopyFormat::Text { delimiter: b'|', null: Vec::new() },
            _ => CopyFormat::Binary,
        };
        Splitter::new(format, position, reader, "public.t".to_owned())
    };
    let whole = cut(splitter(), stream, stream.len().max(1));
    let parts = cut(splitter(), stream, usize::from(size).max(1));
    assert_eq!(whole, parts, "rows depend on where messages end");
    let mut lines = Lines::default();
    for (bytes, key, count, line) in &whole.0 {
        match key {
            None => lines.head(*count),
            Some(_) => lines.row(*count, *line, bytes.len()),
        }
    }
    let _ = lines.translate(&format!("COPY t, line {}", String::from_utf8_lossy(stream)));
}

fn cut(mut splitter: Splitter, stream: &[u8], size: usize) -> Cut {
    let (mut rows, mut consumed, mut pieces) = (Vec::new(), 0, Vec::new());
    let mut result = Ok(());
    for chunk in stream.chunks(size) {
        result = splitter.push(chunk, &mut consumed, &mut pieces);
        take(&splitter, &pieces, &mut rows);
        if result.is_err() {
            return (rows, result);
        }
    }
    if result.is_ok() {
        result = splitter.finish(&mut consumed, &mut pieces);
        take(&splitter, &pieces, &mut rows);
    }
    (rows, result)
}

fn take(splitter: &Splitter, pieces: &[Piece], rows: &mut Vec<Row>) {
    for piece in pieces {
        rows.push(match piece {
            Piece::Head { bytes, lines } => (splitter.bytes()[bytes.clone()].to_vec(), None, *lines, 0),
            Piece::Row { bytes, hash, lines, line } => {
                (splitter.bytes()[bytes.clone()].to_vec(), Some(*hash), *lines, *line)
            }
        });
    }
}

/// What servers answer, and what clients bind.
pub fn rows(data: &[u8]) {
    if let Some(fields) = exchange::fields(data) {
        let bytes: usize = fields.iter().flatten().map(|field| field.len()).sum();
        assert!(bytes <= data.len());
    }
    let same = exchange::change_fields(data, |_, text| Some(text.to_owned()));
    for tag in [b'C', b'M'] {
        let theirs = read::error_field(data, tag).filter(|text| std::str::from_utf8(text).is_ok());
        assert!(theirs.is_none() || read::error_field(&same, tag) == theirs);
    }
    let bound = pour::binary_results(data);
    assert!(bound.ends_with(&[0, 1, 0, 1]));
    apply::any_tail(data);
    copy_out::tail(data);
    if let Ok(text) = std::str::from_utf8(data) {
        for standard in [true, false] {
            let parts = prepared::split_list(text, standard);
            assert!(parts.iter().map(|part| part.len()).sum::<usize>() <= text.len());
        }
    }
}
