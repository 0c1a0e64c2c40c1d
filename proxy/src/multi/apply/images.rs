//! Rows on their way from the copies to the shards. PURE.
//!
//! A column's values travel as one parameter, an array, which a shard takes apart by unnest(): built-in types in
//! PostgreSQL's binary format, which is exact and the same everywhere; arrays, types of the user and names of
//! catalog objects as text, cast to the column's type, because their binary format holds OIDs (H23).

use super::shape::Column;
use crate::wire::read::Reader;

/// `TEXTOID`, `INT4OID`, `OIDOID` and `TIDOID` of src/include/catalog/pg_type.dat.
const TEXT: u32 = 25;
const OID: u32 = 26;
const TID: u32 = 27;

/// Where a row of the target is: unchanged for as long as we hold its lock.
pub(super) struct Address<'a> {
    pub(super) table: &'a [u8],
    pub(super) ctid: &'a [u8],
}

impl<'a> Address<'a> {
    pub(super) fn copied(&self) -> Address<'a> {
        Address { table: self.table, ctid: self.ctid }
    }
}

/// Array in binary format (`array_recv` of src/backend/utils/adt/arrayfuncs.c).
fn array<'a>(element: u32, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) -> Vec<u8> {
    let mut out = Vec::new();
    let count = values.len() as i32;
    out.extend_from_slice(&i32::from(count > 0).to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&element.to_be_bytes());
    if count > 0 {
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
    }
    let mut nulls = false;
    for value in values {
        match value {
            Some(value) => {
                out.extend_from_slice(&(value.len() as i32).to_be_bytes());
                out.extend_from_slice(value);
            }
            None => {
                nulls = true;
                out.extend_from_slice(&(-1i32).to_be_bytes());
            }
        }
    }
    out[7] = u8::from(nulls);
    out
}

/// One array for each column, of these rows.
pub(super) fn columns(columns: &[&Column], rows: &[&[Option<&[u8]>]]) -> Vec<Vec<u8>> {
    let one = |(n, column): (usize, &&Column)| {
        let element = if column.binary { column.type_oid } else { TEXT };
        array(element, rows.iter().map(|row| row.get(n).copied().flatten()))
    };
    columns.iter().enumerate().map(one).collect()
}

pub(super) fn addresses(rows: &[Address<'_>]) -> [Vec<u8>; 2] {
    [array(TID, rows.iter().map(|row| Some(row.ctid))), array(OID, rows.iter().map(|row| Some(row.table)))]
}

/// `unnest(...)` of arrays that begin at parameter `first` (from 1).
pub(super) fn unnest(types: &[String], first: usize) -> String {
    let arrays: Vec<String> = types
        .iter()
        .enumerate()
        .map(|(n, name)| format!("pg_catalog.unnest(${}::{name}[])", first + n))
        .collect();
    format!("ROWS FROM ({})", arrays.join(", "))
}

/// The type whose array a column's values travel as.
pub(super) fn carrier(column: &Column) -> String {
    if column.binary { column.type_name.clone() } else { "pg_catalog.text".to_owned() }
}

/// The n-th column of the array rows, in the column's own type.
pub(super) fn value(column: &Column, n: usize) -> String {
    if column.binary { format!("shard_v.c{n}") } else { format!("shard_v.c{n}::{}", column.type_name) }
}

/// The parts of a client's Bind behind its names.
pub(super) struct Tail<'a> {
    /// Format codes, 2 bytes each.
    formats: &'a [u8],
    count: u16,
    values: &'a [u8],
    /// Their number and the format codes of the result's columns.
    pub(super) results: &'a [u8],
}

impl<'a> Tail<'a> {
    pub(super) fn of(tail: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(tail);
        let formats = reader.u16()?;
        let formats = reader.bytes(usize::from(formats) * 2)?;
        let count = reader.u16()?;
        let start = reader.rest();
        for _ in 0..count {
            let length = reader.i32()?;
            reader.bytes(usize::try_from(length).unwrap_or(0))?;
        }
        let results = reader.rest();
        Some(Self { formats, count, values: &start[..start.len() - results.len()], results })
    }

    fn format(&self, n: u16) -> [u8; 2] {
        let at = match self.formats.len() {
            0 => return [0, 0],
            2 => 0,
            _ => usize::from(n) * 2,
        };
        self.formats.get(at..at + 2).and_then(|code| code.try_into().ok()).unwrap_or([0, 0])
    }
}

/// A Bind's tail: the client's parameters, if `client` is given, then arrays in binary; and the result's formats.
/// `None`: too many parameters.
pub(super) fn bind_tail(client: Option<&Tail<'_>>, arrays: &[Vec<u8>], results: &[u8]) -> Option<Vec<u8>> {
    let theirs = client.map_or(0, |tail| tail.count);
    let count = theirs.checked_add(u16::try_from(arrays.len()).ok()?)?;
    let mut out = Vec::new();
    out.extend_from_slice(&count.to_be_bytes());
    if let Some(client) = client {
        (0..theirs).for_each(|n| out.extend_from_slice(&client.format(n)));
    }
    arrays.iter().for_each(|_| out.extend_from_slice(&[0, 1]));
    out.extend_from_slice(&count.to_be_bytes());
    if let Some(client) = client {
        out.extend_from_slice(client.values);
    }
    for array in arrays {
        out.extend_from_slice(&i32::try_from(array.len()).ok()?.to_be_bytes());
        out.extend_from_slice(array);
    }
    out.extend_from_slice(results);
    Some(out)
}

/// What is built of any client's Bind reads back.
#[cfg(any(test, fuzzing))]
pub(in crate::multi) fn any_tail(bytes: &[u8]) {
    if let Some(tail) = Tail::of(bytes) {
        let built = bind_tail(Some(&tail), &[bytes.to_vec()], tail.results);
        assert!(
            built.is_none_or(|built| Tail::of(&built).is_some_and(|again| again.results == tail.results))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_as_postgres_reads_them() {
        let empty: [Option<&[u8]>; 0] = [];
        assert_eq!(array(23, empty.into_iter()), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]);
        let two = [Some(&b"\0\0\0\x07"[..]), None];
        assert_eq!(
            array(23, two.into_iter()),
            [
                0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7, 255,
                255, 255, 255
            ]
        );
    }

    #[test]
    fn a_clients_parameters_keep_their_formats_and_ours_follow() {
        // One format for two parameters: 7 and NULL; results all in binary.
        let tail = [0, 1, 0, 1, 0, 2, 0, 0, 0, 1, 7, 255, 255, 255, 255, 0, 1, 0, 1];
        let client = Tail::of(&tail).unwrap();
        assert_eq!(client.results, [0, 1, 0, 1]);
        let bound = bind_tail(Some(&client), &[vec![9, 9]], client.results).unwrap();
        let expected =
            [0, 3, 0, 1, 0, 1, 0, 1, 0, 3, 0, 0, 0, 1, 7, 255, 255, 255, 255, 0, 0, 0, 2, 9, 9, 0, 1, 0, 1];
        assert_eq!(bound, expected);
    }
}
