//! The global name of a transaction over several shards. PURE.
//!
//! `shardproxy:<database>:<proxy>:<random>:<first shard>:<xid>`. The full xid of the first participant's transaction
//! is last, because `shard_catalog.decide` accepts a gid only from the transaction it ends in (H16). The random part
//! keeps a promoted standby that issues a lost xid again from deciding for the old transaction.

use std::fmt;

use shard_config::ShardId;

const PREFIX: &str = "shardproxy";
/// GIDSIZE in src/include/access/xact.h is 200 with the terminating zero.
const LENGTH_MAX: usize = 199;
/// Of the database's and the proxy's name, so that the whole always fits.
const NAME_MAX: usize = 63;

const _: () = assert!(PREFIX.len() + 2 * NAME_MAX + 16 + 5 + 20 + 5 <= LENGTH_MAX);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gid {
    database: String,
    proxy: String,
    random: u64,
    pub first: ShardId,
    pub xid: u64,
}

impl Gid {
    pub fn new(database: &str, proxy: &str, random: u64, first: ShardId, xid: u64) -> Self {
        Self { database: clean(database), proxy: clean(proxy), random, first, xid }
    }

    /// `None` for names that others gave.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        if parts.next() != Some(PREFIX) {
            return None;
        }
        let gid = Self {
            database: parts.next()?.to_owned(),
            proxy: parts.next()?.to_owned(),
            random: u64::from_str_radix(parts.next()?, 16).ok()?,
            first: ShardId(parts.next()?.parse().ok()?),
            xid: parts.next()?.parse().ok()?,
        };
        // What does not print the same is not one of ours.
        (parts.next().is_none() && gid.to_string() == text).then_some(gid)
    }

    pub fn is_of(&self, database: &str) -> bool {
        self.database == clean(database)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { database, proxy, random, first, xid } = self;
        write!(f, "{PREFIX}:{database}:{proxy}:{random:016x}:{first}:{xid}")
    }
}

/// No quote, backslash or colon gets into a gid, so it can stand in SQL between quotes as it is.
fn clean(name: &str) -> String {
    let ok = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.chars().map(ok).take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_reads_back_and_foreign_ones_do_not() {
        let gid = Gid::new("pay:'ments", "proxy1", 0xabc, ShardId(3), 18_446_744_073_709_551_615);
        let text = gid.to_string();
        assert_eq!(text, "shardproxy:pay__ments:proxy1:0000000000000abc:3:18446744073709551615");
        assert!(text.ends_with(":18446744073709551615"));
        assert_eq!(Gid::parse(&text), Some(gid.clone()));
        assert!(gid.is_of("pay:'ments") && !gid.is_of("other"));
        for foreign in [
            "",
            "x",
            "shardproxy:a:b:c:1:2:3",
            "shardproxy:a:b:ABC:1:2",
            "shardproxy:a:b:0000000000000abc:03:2",
        ] {
            assert_eq!(Gid::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_longest_gid_fits() {
        let long = "x".repeat(500);
        let gid = Gid::new(&long, &long, u64::MAX, ShardId(u16::MAX), u64::MAX);
        assert!(gid.to_string().len() <= LENGTH_MAX);
    }
}
