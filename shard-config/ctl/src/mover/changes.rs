//! Which rows changed, from the messages of `pgoutput` (protocol version 1; src/backend/replication/logical/proto.c).
//! PURE. Only the key columns of each change are kept: what the row is now, is asked of both shards.

use std::collections::{BTreeMap, BTreeSet};

/// A row's primary key as texts, in the order of the key.
pub type Key = Vec<String>;

/// Changed rows by `schema.table`.
pub type Changed = BTreeMap<String, BTreeSet<Key>>;

#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// The message ends in the middle of something.
    Short,
    /// A message of a table that no relation message has named.
    Unknown(u32),
    /// A key column without a value.
    NoKey(String),
    /// A message that a publication of inserts, updates and deletes cannot send.
    Unexpected(u8),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => f.write_str("a replication message ends too early"),
            Self::Unknown(id) => {
                write!(f, "a replication message names relation {id}, which was never described")
            }
            Self::NoKey(table) => write!(f, "a replication message for {table} lacks a key column"),
            Self::Unexpected(tag) => write!(f, "a replication message of type {:?}", char::from(*tag)),
        }
    }
}

impl std::error::Error for Error {}

struct Relation {
    name: String,
    /// Where each column of the primary key is in a tuple.
    key: Vec<usize>,
}

/// Collects changes. Relations are remembered between messages, as the protocol wants.
pub struct Collector {
    /// Columns of the primary key by `schema.table`; other tables are ignored.
    keys: BTreeMap<String, Vec<String>>,
    relations: BTreeMap<u32, Option<Relation>>,
    pub changed: Changed,
}

impl Collector {
    pub fn new(keys: BTreeMap<String, Vec<String>>) -> Self {
        Self { keys, relations: BTreeMap::new(), changed: Changed::new() }
    }

    pub fn rows(&self) -> usize {
        self.changed.values().map(BTreeSet::len).sum()
    }

    pub fn message(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut reader = Reader(bytes);
        match reader.u8()? {
            b'R' => self.relation(&mut reader),
            b'I' => {
                let id = reader.u32()?;
                reader.tag(b'N')?;
                self.tuple(id, &mut reader)
            }
            b'U' => {
                let id = reader.u32()?;
                let tag = reader.u8()?;
                if tag != b'N' {
                    // The old key: the row under that name is gone.
                    self.tuple(id, &mut reader)?;
                    reader.tag(b'N')?;
                }
                self.tuple(id, &mut reader)
            }
            b'D' => {
                let id = reader.u32()?;
                reader.u8()?;
                self.tuple(id, &mut reader)
            }
            // Begin, commit, origin, type.
            b'B' | b'C' | b'O' | b'Y' => Ok(()),
            other => Err(Error::Unexpected(other)),
        }
    }

    fn relation(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let id = reader.u32()?;
        let name = format!("{}.{}", reader.text()?, reader.text()?);
        reader.u8()?;
        let mut columns = Vec::new();
        for _ in 0..reader.u16()? {
            reader.u8()?;
            columns.push(reader.text()?);
            reader.u32()?;
            reader.u32()?;
        }
        let relation = match self.keys.get(&name) {
            None => None,
            Some(wanted) => {
                let place = |column: &String| columns.iter().position(|name| name == column);
                let key = wanted.iter().map(place).collect::<Option<Vec<_>>>();
                Some(Relation { key: key.ok_or_else(|| Error::NoKey(name.clone()))?, name })
            }
        };
        self.relations.insert(id, relation);
        Ok(())
    }

    fn tuple(&mut self, id: u32, reader: &mut Reader<'_>) -> Result<(), Error> {
        let mut values = Vec::new();
        for _ in 0..reader.u16()? {
            values.push(match reader.u8()? {
                b't' | b'b' => {
                    let length = reader.u32()?;
                    Some(reader.take(length as usize)?)
                }
                // NULL, or a toasted value that did not change.
                _ => None,
            });
        }
        let relation = match self.relations.get(&id) {
            None => return Err(Error::Unknown(id)),
            Some(None) => return Ok(()),
            Some(Some(relation)) => relation,
        };
        let value = |&at: &usize| {
            let bytes = values.get(at).copied().flatten()?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        };
        let key: Option<Key> = relation.key.iter().map(value).collect();
        let key = key.ok_or_else(|| Error::NoKey(relation.name.clone()))?;
        self.changed.entry(relation.name.clone()).or_default().insert(key);
        Ok(())
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Error::Short)?;
        self.0 = rest;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    fn tag(&mut self, wanted: u8) -> Result<(), Error> {
        match self.u8()? {
            tag if tag == wanted => Ok(()),
            tag => Err(Error::Unexpected(tag)),
        }
    }

    fn u16(&mut self) -> Result<u16, Error> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String, Error> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Error::Short)?;
        let text = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(id: u32, table: &str, columns: &[&str]) -> Vec<u8> {
        let mut m = vec![b'R'];
        m.extend(id.to_be_bytes());
        m.extend(format!("public\0{table}\0d").bytes());
        m.extend((columns.len() as u16).to_be_bytes());
        for column in columns {
            m.push(1);
            m.extend(format!("{column}\0").bytes());
            m.extend([0; 8]);
        }
        m
    }

    fn tuple(values: &[Option<&str>]) -> Vec<u8> {
        let mut m = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            match value {
                None => m.push(b'n'),
                Some(text) => {
                    m.push(b't');
                    m.extend((text.len() as u32).to_be_bytes());
                    m.extend(text.bytes());
                }
            }
        }
        m
    }

    fn change(tag: u8, id: u32, parts: &[(u8, &[Option<&str>])]) -> Vec<u8> {
        let mut m = vec![tag];
        m.extend(id.to_be_bytes());
        for (kind, values) in parts {
            m.push(*kind);
            m.extend(tuple(values));
        }
        m
    }

    fn collector() -> Collector {
        Collector::new(BTreeMap::from([("public.t".into(), vec!["b".into(), "a".into()])]))
    }

    #[test]
    fn keys_of_every_kind_of_change_are_collected() {
        let mut c = collector();
        let row = |a, b, x| [Some(a), Some(b), x];
        for message in [
            relation(7, "t", &["a", "b", "x"]),
            relation(8, "shard_mark", &["id"]),
            change(b'I', 7, &[(b'N', &row("1", "2", Some("x")))]),
            change(b'U', 7, &[(b'N', &row("1", "2", None))]),
            change(b'U', 7, &[(b'K', &[Some("3"), Some("4"), None]), (b'N', &row("5", "6", None))]),
            change(b'D', 7, &[(b'K', &[Some("7"), Some("8"), None])]),
            change(b'I', 8, &[(b'N', &[Some("1")])]),
            vec![b'B'],
            vec![b'C'],
        ] {
            c.message(&message).unwrap();
        }
        let keys: Vec<_> = c.changed["public.t"].iter().map(|key| key.join(" ")).collect();
        assert_eq!(keys, ["2 1", "4 3", "6 5", "8 7"]);
        assert_eq!((c.rows(), c.changed.len()), (4, 1));
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        let mut c = collector();
        assert_eq!(c.message(&[]), Err(Error::Short));
        assert_eq!(c.message(&[b'T', 0]), Err(Error::Unexpected(b'T')));
        assert_eq!(c.message(&change(b'I', 9, &[(b'N', &[])])), Err(Error::Unknown(9)));
        assert!(matches!(c.message(&relation(7, "t", &["a"])), Err(Error::NoKey(_))));
        let whole = relation(7, "t", &["a", "b"]);
        for length in 0..whole.len() {
            assert_eq!(c.message(&whole[..length]), Err(Error::Short), "{length}");
        }
        c.message(&whole).unwrap();
        assert!(matches!(c.message(&change(b'I', 7, &[(b'N', &[None, Some("1")])])), Err(Error::NoKey(_))));
    }
}
