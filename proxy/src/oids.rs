//! PURE: one numbering of types and tables, whichever shard answers (H23).
//!
//! Every server numbers what users create by itself. Drivers look a type up once, in the `pg_type` that the default
//! shard shows, and keep its OID; so the default shard's numbers are the ones that clients see. What other shards say
//! in RowDescription and ParameterDescription is renumbered, and what clients declare in Parse is numbered back.
//!
//! Values are not touched: an array, record or range in binary format holds its elements' type OIDs. PostgreSQL refuses
//! a foreign one in a parameter (`array_recv`, `record_recv`), and drivers do not read it in a result.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

/// OIDs below are the same on every shard (FirstNormalObjectId in src/include/access/transam.h).
pub const FIRST_USER_OID: u32 = 16_384;

type Name = (String, String);

/// What one shard numbers otherwise than the default shard. Empty when it does not.
#[derive(Debug, Default, Clone)]
pub struct OidMap {
    /// `pg_type.oid`: the shard's by the default shard's, and back.
    type_of_shard: FxHashMap<u32, u32>,
    type_of_default: FxHashMap<u32, u32>,
    /// `pg_class.oid`: the default shard's by the shard's.
    relation_of_default: FxHashMap<u32, u32>,
}

impl OidMap {
    /// Types and relations of the default shard and of another one, by (schema, name).
    pub fn new(
        types: (&BTreeMap<Name, u32>, &BTreeMap<Name, u32>),
        relations: (&BTreeMap<Name, u32>, &BTreeMap<Name, u32>),
    ) -> Self {
        let mut map = Self::default();
        for (ours, theirs) in differing(types) {
            map.type_of_shard.insert(ours, theirs);
            map.type_of_default.insert(theirs, ours);
        }
        map.relation_of_default = differing(relations).map(|(ours, theirs)| (theirs, ours)).collect();
        map
    }

    pub fn is_empty(&self) -> bool {
        self.type_of_shard.is_empty() && self.relation_of_default.is_empty()
    }

    /// A RowDescription or ParameterDescription of this shard as the default shard would send it; `None`: as it is.
    pub fn described(&self, message: &[u8]) -> Option<Vec<u8>> {
        match message.first()? {
            b'T' => self.row_description(message),
            b't' => {
                let mut out = message.to_vec();
                renumber(out.get_mut(7..)?, &self.type_of_default).then_some(out)
            }
            _ => None,
        }
    }

    /// Parameter types of a Parse, 4 bytes each, for this shard; `None`: as they are.
    pub fn declared(&self, oids: &[u8]) -> Option<Vec<u8>> {
        if self.type_of_shard.is_empty() || oids.is_empty() {
            return None;
        }
        let mut out = oids.to_vec();
        renumber(&mut out, &self.type_of_shard).then_some(out)
    }

    fn row_description(&self, message: &[u8]) -> Option<Vec<u8>> {
        // Behind the name: table OID, attribute number (2), type OID, length (2), modifier (4), format (2).
        const FIELDS: usize = 18;
        const TYPE: usize = 6;
        let mut out = message.to_vec();
        let mut changed = false;
        let mut at = 7;
        while let Some(end) = out.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) {
            let fields = at + end + 1;
            let Some(field) = out.get_mut(fields..fields + FIELDS) else { break };
            changed |= renumber(&mut field[..4], &self.relation_of_default);
            changed |= renumber(&mut field[TYPE..TYPE + 4], &self.type_of_default);
            at = fields + FIELDS;
        }
        changed.then_some(out)
    }
}

fn differing<'a>(
    (ours, theirs): (&'a BTreeMap<Name, u32>, &'a BTreeMap<Name, u32>),
) -> impl Iterator<Item = (u32, u32)> + 'a {
    theirs
        .iter()
        .filter_map(|(name, oid)| ours.get(name).filter(|known| *known != oid).map(|known| (*known, *oid)))
}

/// Of a list of OIDs; was anything changed?
fn renumber(oids: &mut [u8], map: &FxHashMap<u32, u32>) -> bool {
    let mut changed = false;
    for oid in oids.chunks_exact_mut(4) {
        if let Some(other) = map.get(&u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]])) {
            oid.copy_from_slice(&other.to_be_bytes());
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build;

    fn named(pairs: &[(&str, u32)]) -> BTreeMap<Name, u32> {
        pairs.iter().map(|(name, oid)| (("public".to_owned(), (*name).to_owned()), *oid)).collect()
    }

    /// A shard that gives `mood` the number which `size` has on the default shard, and the other way round.
    fn crossed() -> OidMap {
        OidMap::new(
            (
                &named(&[("mood", 16_400), ("size", 16_500), ("same", 16_600)]),
                &named(&[("mood", 16_500), ("size", 16_400), ("same", 16_600), ("theirs", 16_700)]),
            ),
            (&named(&[("t", 17_000)]), &named(&[("t", 17_001)])),
        )
    }

    fn column(out: &mut Vec<u8>, name: &str, table: u32, type_oid: u32) {
        build::cstr(out, name.as_bytes());
        out.extend_from_slice(&table.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out.extend_from_slice(&type_oid.to_be_bytes());
        out.extend_from_slice(&[0, 4, 255, 255, 255, 255, 0, 0]);
    }

    fn row_description(columns: &[(&str, u32, u32)]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = build::begin(&mut out, b'T');
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for (name, table, type_oid) in columns {
            column(&mut out, name, *table, *type_oid);
        }
        build::end(&mut out, start);
        out
    }

    #[test]
    fn h23_descriptions_are_renumbered_both_ways() {
        let map = crossed();
        let theirs = row_description(&[("m", 17_001, 16_500), ("s", 17_001, 16_400), ("i", 0, 23)]);
        let ours = row_description(&[("m", 17_000, 16_400), ("s", 17_000, 16_500), ("i", 0, 23)]);
        assert_eq!(map.described(&theirs), Some(ours));
        assert_eq!(map.described(&row_description(&[("i", 0, 23), ("x", 0, 16_600)])), None);
        assert_eq!(
            map.declared(&[16_400_u32.to_be_bytes(), 25_u32.to_be_bytes()].concat()),
            Some([16_500_u32.to_be_bytes(), 25_u32.to_be_bytes()].concat())
        );
        assert_eq!(map.declared(&25_u32.to_be_bytes()), None);
        let mut parameters = Vec::new();
        let start = build::begin(&mut parameters, b't');
        parameters.extend_from_slice(&[0, 1]);
        parameters.extend_from_slice(&16_500_u32.to_be_bytes());
        build::end(&mut parameters, start);
        let seen = map.described(&parameters).unwrap_or_default();
        assert_eq!(seen.get(7..), Some(&16_400_u32.to_be_bytes()[..]));
    }

    #[test]
    fn equal_numbers_make_an_empty_map_and_cut_messages_no_panic() {
        let same = named(&[("mood", 16_400)]);
        assert!(OidMap::new((&same, &same), (&same, &same)).is_empty());
        let whole = row_description(&[("m", 17_001, 16_500), ("s", 17_001, 16_400)]);
        for cut in 0..whole.len() {
            let _ = crossed().described(&whole[..cut]);
        }
    }
}
