//! Which bucket a key falls in. The hash is PostgreSQL's own (`src/common/hashfn.c`, `hash_bytes_extended`, from
//! Bob Jenkins' lookup3), because then a COPY, a CHECK, a publication's row filter or a DBA in psql can say the
//! bucket with built-in SQL and no extra column:
//!
//! ```sql
//! uuid_hash_extended(tenant_id, 8816678312871386365) & 4095
//! hashint8extended(id, 8816678312871386365) & 4095
//! hashtextextended(name, 8816678312871386365) & 4095      -- deterministic collations only
//! ```
//!
//! `&` and not `%`: the hash is signed in SQL, and `%` of a negative number is negative.

/// Number of buckets of a new cluster. Fixed once rows exist.
pub const BUCKETS_DEFAULT: u16 = 4096;

/// Seed of the bucket hash: PostgreSQL's own `HASH_PARTITION_SEED` (`src/include/catalog/partition.h`), so that
/// `satisfies_hash_partition` can check us. Shards own ranges, so a shard's tables may still be hash-partitioned
/// by the key: the partition is in the low bits of the bucket, the shard in the high ones.
pub const HASH_SEED: i64 = 8_816_678_312_871_386_365;

const _: () = assert!(BUCKETS_DEFAULT.is_power_of_two());

/// 0..N-1, where N is the number of buckets of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u16);

impl Bucket {
    /// `None` when there is no such bucket among `buckets`.
    pub const fn new(bucket: u16, buckets: u16) -> Option<Self> {
        if bucket < buckets { Some(Self(bucket)) } else { None }
    }

    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The whole hash of a key, signed as SQL shows it. The bucket is its low bits; a single tenant that lives elsewhere than
/// its bucket is named by all of them, so that nobody needs the tenant's spelling.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(i64);

impl KeyHash {
    /// What the hash function of the key's type says in SQL.
    pub const fn new(hash: i64) -> Self {
        Self(hash)
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    /// `buckets` is a power of two (validated where the configuration and the map are read), so the mask takes
    /// the hash's low bits, as the SQL above does.
    #[inline]
    pub const fn bucket(self, buckets: u16) -> Bucket {
        debug_assert!(buckets.is_power_of_two());
        Bucket((self.0 as u16) & (buckets - 1))
    }
}

impl std::fmt::Display for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// `uuid_hash_extended`.
#[inline]
pub fn hash_of_uuid(key: &[u8; 16]) -> KeyHash {
    KeyHash(hash_bytes(key, HASH_SEED as u64) as i64)
}

/// `hashint8extended`, which equals `hashint4extended` and `hashint2extended` of the same number.
#[inline]
pub fn hash_of_int8(key: i64) -> KeyHash {
    KeyHash(hash_int8(key, HASH_SEED as u64) as i64)
}

/// `hashtextextended`. `key` must be the UTF-8 that the server stores: text in another client encoding has other
/// bytes and so another hash (H24), which is why callers refuse it.
#[inline]
pub fn hash_of_text(key: &[u8]) -> KeyHash {
    KeyHash(hash_bytes(key, HASH_SEED as u64) as i64)
}

#[inline]
pub fn bucket_of_uuid(key: &[u8; 16], buckets: u16) -> Bucket {
    hash_of_uuid(key).bucket(buckets)
}

#[inline]
pub fn bucket_of_int8(key: i64, buckets: u16) -> Bucket {
    hash_of_int8(key).bucket(buckets)
}

#[inline]
pub fn bucket_of_text(key: &[u8], buckets: u16) -> Bucket {
    hash_of_text(key).bucket(buckets)
}

/// Three 32-bit words of state, named as in `hashfn.c`.
struct Jenkins {
    a: u32,
    b: u32,
    c: u32,
}

impl Jenkins {
    /// `len` in bytes. 3923095 is PostgreSQL's own constant, added to lookup3's golden ratio.
    #[inline]
    fn new(len: u32, seed: u64) -> Self {
        let start = 0x9e37_79b9_u32.wrapping_add(len).wrapping_add(3_923_095);
        let mut state = Self { a: start, b: start, c: start };
        if seed != 0 {
            state.a = state.a.wrapping_add((seed >> 32) as u32);
            state.b = state.b.wrapping_add(seed as u32);
            state.mix();
        }
        state
    }

    #[inline]
    fn mix(&mut self) {
        let Self { mut a, mut b, mut c } = *self;
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        *self = Self { a, b, c };
    }

    #[inline]
    fn finish(self) -> u64 {
        let Self { mut a, mut b, mut c } = self;
        c = (c ^ b).wrapping_sub(b.rotate_left(14));
        a = (a ^ c).wrapping_sub(c.rotate_left(11));
        b = (b ^ a).wrapping_sub(a.rotate_left(25));
        c = (c ^ b).wrapping_sub(b.rotate_left(16));
        a = (a ^ c).wrapping_sub(c.rotate_left(4));
        b = (b ^ a).wrapping_sub(a.rotate_left(14));
        c = (c ^ b).wrapping_sub(b.rotate_left(24));
        (u64::from(b) << 32) | u64::from(c)
    }
}

/// `hash_bytes_extended` as a little-endian server computes it (PostgreSQL's hash depends on the byte order of the
/// server; every platform we serve is little-endian).
#[inline]
pub fn hash_bytes(key: &[u8], seed: u64) -> u64 {
    let mut state = Jenkins::new(key.len() as u32, seed);
    let mut blocks = key.chunks_exact(12);
    for block in &mut blocks {
        state.a = state.a.wrapping_add(word(&block[0..4]));
        state.b = state.b.wrapping_add(word(&block[4..8]));
        state.c = state.c.wrapping_add(word(&block[8..12]));
        state.mix();
    }
    let rest = blocks.remainder();
    let (first, rest) = rest.split_at(rest.len().min(4));
    let (second, third) = rest.split_at(rest.len().min(4));
    state.a = state.a.wrapping_add(word(first));
    state.b = state.b.wrapping_add(word(second));
    // The lowest byte of `c` is reserved for the length, so the last bytes are shifted up by one.
    state.c = state.c.wrapping_add(word(third) << 8);
    state.finish()
}

/// `hashint8extended`: folded so that a number has the same hash in int2, int4 and int8.
#[inline]
pub fn hash_int8(key: i64, seed: u64) -> u64 {
    let high = (key >> 32) as u32;
    let folded = (key as u32) ^ if key >= 0 { high } else { !high };
    let mut state = Jenkins::new(4, seed);
    state.a = state.a.wrapping_add(folded);
    state.finish()
}

/// Up to four bytes, little-endian, the missing ones zero.
#[inline]
fn word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_uuid(key: &str, hash: i64, bucket: u16) {
        let key = uuid::Uuid::parse_str(key).unwrap();
        assert_eq!(hash_bytes(key.as_bytes(), HASH_SEED as u64) as i64, hash, "{key}");
        assert_eq!(bucket_of_uuid(key.as_bytes(), 4096).get(), bucket, "{key}");
    }

    fn check_int8(key: i64, hash: i64, bucket: u16) {
        assert_eq!(hash_int8(key, HASH_SEED as u64) as i64, hash, "{key}");
        assert_eq!(bucket_of_int8(key, 4096).get(), bucket, "{key}");
    }

    fn check_text(key: &str, hash: i64, bucket: u16) {
        assert_eq!(hash_bytes(key.as_bytes(), HASH_SEED as u64) as i64, hash, "{key:?}");
        assert_eq!(bucket_of_text(key.as_bytes(), 4096).get(), bucket, "{key:?}");
    }

    // Values that PostgreSQL 15.18 printed. If one of these fails, rows would be looked for on the wrong shard.
    #[test]
    fn uuid_vectors() {
        check_uuid("00000000-0000-0000-0000-000000000000", -5281082146396728638, 706);
        check_uuid("00000000-0000-0000-0000-000000000001", 5260903147514422602, 1354);
        check_uuid("ffffffff-ffff-ffff-ffff-ffffffffffff", -148986464341306210, 1182);
        check_uuid("018f3c1e-7b2a-7c3d-8e4f-5a6b7c8d9e0f", 4271592876111069713, 529);
        check_uuid("550e8400-e29b-41d4-a716-446655440000", -3467891652331307802, 3302);
    }

    #[test]
    fn int8_vectors() {
        check_int8(0, -4403592609991167795, 205);
        check_int8(1, 5968994663651403477, 1749);
        check_int8(-1, -5017072347659237694, 1730);
        check_int8(42, 7363975540656877951, 383);
        check_int8(i64::MAX, 4938542303000433043, 403);
        check_int8(i64::MIN, -6050265599104649060, 2204);
        check_int8(1 << 40, 5769331814454937003, 1451);
    }

    #[test]
    fn text_vectors() {
        check_text("", -5700645584453517373, 4035);
        check_text("a", -6705225459120232837, 1659);
        check_text("tenant-1", -8558707084186436496, 3184);
        check_text("漢字", -1607828068958412497, 303);
        check_text("abcdefghijklm", -6785754114725280077, 1715);
    }

    #[test]
    fn the_seed_is_the_one_written_in_sql() {
        assert_eq!(HASH_SEED as u64, 0x7A5B_2236_7996_DCFD);
    }
}
