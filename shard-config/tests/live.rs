//! The oracle is a live PostgreSQL: it says the hash of 10,000 random keys of each type, and which spellings of a
//! key it accepts.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use shard_config::{BUCKETS_DEFAULT, Bucket, KeyHash, KeyType, Scope};
use testpg::TempPostgres;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

const KEYS: usize = 10_000;

async fn connect(server: &TempPostgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url("postgres"), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The same keys in every run, so that a failure is found again.
fn random<S: Strategy>(strategy: &S) -> Vec<S::Value> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..KEYS).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// PostgreSQL's buckets of `keys`, in order; `sql` has `key` where the key goes.
async fn buckets(client: &Client, sql: &str, array: &str, keys: &(dyn ToSql + Sync)) -> Vec<i64> {
    let query =
        format!("SELECT {sql} FROM unnest($1::{array}) WITH ORDINALITY AS keys (key, ord) ORDER BY ord");
    client.query(&query, &[keys]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn check<K: std::fmt::Debug>(
    client: &Client,
    key_type: KeyType,
    keys: Vec<K>,
    bucket: impl Fn(&K) -> Bucket,
) where
    Vec<K>: ToSql + Sync,
{
    let theirs =
        buckets(client, &key_type.sql("key", BUCKETS_DEFAULT), &format!("{key_type}[]"), &keys).await;
    assert_eq!(theirs.len(), KEYS);
    for (key, theirs) in keys.iter().zip(theirs) {
        assert_eq!(i64::from(bucket(key).get()), theirs, "{key_type} {key:?}");
    }
}

/// Spellings near the border of what is accepted. PostgreSQL answers NULL where it raises an error.
async fn check_spellings(client: &Client, key_type: KeyType, texts: Vec<String>) {
    let name = key_type.name();
    client
        .batch_execute(&format!(
            "CREATE FUNCTION bucket_{name}(key text) RETURNS bigint LANGUAGE plpgsql AS $$
             BEGIN RETURN {}; EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
            key_type.sql(&format!("key::{name}"), BUCKETS_DEFAULT)
        ))
        .await
        .unwrap();
    let query = format!(
        "SELECT bucket_{name}(key) FROM unnest($1::text[]) WITH ORDINALITY AS k (key, ord) ORDER BY ord"
    );
    let rows = client.query(&query, &[&texts]).await.unwrap();
    let mut accepted = 0;
    for (text, row) in texts.iter().zip(rows) {
        let theirs: Option<i64> = row.get(0);
        let ours = key_type.bucket_of_text_value(text.as_bytes(), BUCKETS_DEFAULT);
        assert_eq!(ours.map(|bucket| i64::from(bucket.get())), theirs, "{name} {text:?}");
        accepted += usize::from(theirs.is_some());
    }
    assert!(
        accepted > KEYS / 20 && accepted < KEYS * 19 / 20,
        "{name}: {accepted} accepted tests one side only"
    );
}

#[tokio::test]
async fn h24_a_live_server_says_the_same_bucket() {
    let server = TempPostgres::start(&[]);
    let client = connect(&server).await;
    let n = BUCKETS_DEFAULT;

    let uuids: Vec<uuid::Uuid> =
        random(&proptest::num::u128::ANY).into_iter().map(uuid::Uuid::from_u128).collect();
    let text = |key: &uuid::Uuid| KeyType::Uuid.bucket_of_text_value(key.to_string().as_bytes(), n).unwrap();
    check(&client, KeyType::Uuid, uuids.clone(), text).await;
    check(&client, KeyType::Uuid, uuids, |key| shard_config::bucket_of_uuid(key.as_bytes(), n)).await;
    check(&client, KeyType::Int8, random(&proptest::num::i64::ANY), |&key| {
        shard_config::bucket_of_int8(key, n)
    })
    .await;
    check(&client, KeyType::Int4, random(&proptest::num::i32::ANY), |&key| {
        shard_config::bucket_of_int8(key.into(), n)
    })
    .await;
    check(&client, KeyType::Int2, random(&proptest::num::i16::ANY), |&key| {
        shard_config::bucket_of_int8(key.into(), n)
    })
    .await;
    check(&client, KeyType::Text, random(&"\\PC{0,40}"), |key: &String| {
        shard_config::bucket_of_text(key.as_bytes(), n)
    })
    .await;

    check_spellings(&client, KeyType::Uuid, random(&"\\{?([0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{3,4}[g-]?\\}?"))
        .await;
    for key_type in [KeyType::Int2, KeyType::Int4, KeyType::Int8] {
        check_spellings(
            &client,
            key_type,
            random(&"[ \\n\\t\\x0b]?[+-]?(0|[0-9]{1,5}|[0-9]{9,19})[ ._x]?[0-9 ]?"),
        )
        .await;
    }

    // What PostgreSQL partitions by has the same seed. hash_combine64(0, hash) adds a constant, 2275 modulo 4096.
    let keys: Vec<uuid::Uuid> =
        random(&proptest::num::u128::ANY).into_iter().map(uuid::Uuid::from_u128).collect();
    let remainders: Vec<i32> = keys
        .iter()
        .map(|key| (i32::from(shard_config::bucket_of_uuid(key.as_bytes(), 4096).get()) + 2275) & 4095)
        .collect();
    client.batch_execute("CREATE TABLE parted (key uuid) PARTITION BY HASH (key)").await.unwrap();
    let sql = "SELECT count(*) FROM unnest($1::uuid[], $2::int4[]) AS k (key, remainder)
               WHERE satisfies_hash_partition('parted'::regclass, 4096, remainder, key)";
    let satisfied: i64 = client.query_one(sql, &[&keys, &remainders]).await.unwrap().get(0);
    assert_eq!(satisfied, KEYS as i64);
}

/// What a scope's predicate finds on a shard is what the proxy takes for the scope's, row for row.
#[tokio::test]
async fn a_live_server_says_the_same_scope() {
    let server = TempPostgres::start(&[]);
    let client = connect(&server).await;
    let keys: Vec<uuid::Uuid> =
        random(&proptest::num::u128::ANY).into_iter().map(uuid::Uuid::from_u128).collect();
    let hashes: Vec<KeyHash> = keys.iter().map(|key| shard_config::hash_of_uuid(key.as_bytes())).collect();
    let sql = format!(
        "SELECT {} FROM unnest($1::uuid[]) WITH ORDINALITY AS keys (key, ord) ORDER BY ord",
        KeyType::Uuid.sql_hash("key")
    );
    let theirs: Vec<i64> = client.query(&sql, &[&keys]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(hashes.iter().map(|hash| hash.get()).collect::<Vec<_>>(), theirs);

    let scopes = [
        Scope::new(&[(0, 511), (4095, 4095)], &[]).unwrap(),
        Scope::new(&[], &hashes[..3]).unwrap(),
        Scope::new(&[(1024, 2047)], &hashes[5..6]).unwrap(),
        Scope::default(),
    ];
    for scope in scopes {
        let predicate = format!("({})::int::int8", scope.sql("key", KeyType::Uuid, BUCKETS_DEFAULT));
        let theirs = buckets(&client, &predicate, "uuid[]", &keys).await;
        let ours: Vec<i64> =
            hashes.iter().map(|hash| i64::from(scope.contains_hash(*hash, BUCKETS_DEFAULT))).collect();
        assert_eq!(ours, theirs, "{scope}");
    }
}
