//! H23: shards that number types and tables differently look like one database.

use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::copies::Raw;
use crate::proxy::{World, key};

/// Like a driver's own class for an enum: its OID comes from what the server says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label(String);

impl<'a> FromSql<'a> for Label {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8(raw.to_vec())?))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Label {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h23_types_and_tables_have_one_number() {
    let world = World::start("multi-oids").await;
    // Each shard has drawn another number of OIDs before.
    for (n, shard) in world.cluster.primaries.iter().enumerate() {
        let client = shard.client("postgres").await;
        for _ in 0..n * 3 {
            client.batch_execute("CREATE TYPE gone AS ENUM ('x'); DROP TYPE gone").await.unwrap();
        }
    }
    let client = world.proxy.client().await;
    client.batch_execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')").await.unwrap();
    client.batch_execute("CREATE TYPE size AS ENUM ('s', 'm')").await.unwrap();
    client
        .batch_execute("CREATE TABLE felt (k int8 NOT NULL, m mood, s size[], PRIMARY KEY (k))")
        .await
        .unwrap();
    let distinct = world.each("SELECT 'mood'::regtype::oid::int8").await;
    assert!(distinct.iter().skip(1).all(|oid| *oid != distinct[0]), "the numbers differ: {distinct:?}");

    // A driver binds an enum by the number that it was told, whichever shard the row is for.
    let typed = client.prepare("SELECT m, s FROM felt WHERE k = $1").await.unwrap();
    let (mood, sizes) = (typed.columns()[0].type_().clone(), typed.columns()[1].type_().clone());
    assert_eq!((mood.name(), sizes.name()), ("mood", "_size"));
    assert_eq!(i64::from(mood.oid()), distinct[0]);
    let insert = "INSERT INTO felt VALUES ($1, $2, '{s,m}')";
    let insert = client.prepare_typed(insert, &[Type::INT8, mood.clone()]).await.unwrap();
    for shard in 1..=4 {
        let label = Label(["sad", "ok", "happy", "ok"][usize::from(shard) - 1].to_owned());
        assert_eq!(client.execute(&insert, &[&key(shard), &label]).await.unwrap(), 1);
        let row = client.query_one(&typed, &[&key(shard)]).await.unwrap();
        assert_eq!(row.get::<_, Label>(0), label);
        assert_eq!(row.get::<_, Vec<Label>>(1), [Label("s".into()), Label("m".into())]);
    }

    // What each answer says of its columns can be looked up in the one catalog that clients see.
    let mut raw = Raw::connect(world.proxy.port).await;
    let table: u32 = client.query_one("SELECT 'felt'::regclass::oid", &[]).await.unwrap().get(0);
    let expected = [(table, 20), (table, mood.oid()), (table, sizes.oid())];
    for shard in 1..=4 {
        let of_one = format!("SELECT k, m, s FROM felt WHERE k = {}", key(shard));
        assert_eq!(raw.columns(&of_one).await, expected, "shard {shard}");
        let within = format!("BEGIN; {of_one}; COMMIT");
        assert_eq!(raw.columns(&within).await, expected, "shard {shard} in a block");
    }
    assert_eq!(raw.columns("SELECT k, m, s FROM felt").await, expected);
    // A cursor's columns come from where those of its query do.
    for sql in [
        "SELECT k, m, s FROM felt ORDER BY k",
        "SELECT a.s AS other, b.k FROM felt a JOIN felt b ON a.m = b.m",
        "SELECT m, count(*), 'x'::varchar(3) FROM felt GROUP BY m",
        "SELECT k FROM felt",
    ] {
        let query = raw.fields(sql).await;
        raw.query("BEGIN").await;
        assert_eq!(raw.query(&format!("DECLARE c CURSOR FOR {sql}")).await, ["CDECLARE CURSOR", "ZT"]);
        assert_eq!(raw.fields("FETCH c").await, query, "{sql}");
        assert_eq!(raw.fields("MOVE c").await, []);
        raw.query(&format!("DECLARE d BINARY CURSOR FOR {sql}")).await;
        let binary = raw.fields("FETCH ALL FROM d").await;
        assert!(
            binary
                .iter()
                .zip(&query)
                .all(|(b, q)| b.0 == q.0 && b.1[..16] == q.1[..16] && b.1[16..] == [0, 1]),
            "{sql}"
        );
        raw.query("ROLLBACK").await;
    }
    let moods: Vec<String> = client
        .query("SELECT m::text AS label FROM felt WHERE m > $1 ORDER BY m, k", &[&Label("sad".into())])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(moods, ["ok", "ok", "happy"], "in the order of the type, not of its names");

    // Arrays of such types are brought together, and rows with them moved.
    let rows = client.query("SELECT s FROM felt ORDER BY m, k", &[]).await.unwrap();
    assert_eq!(rows.len(), 4);
    for row in &rows {
        assert_eq!(row.get::<_, Vec<Label>>(0), [Label("s".into()), Label("m".into())]);
    }
    let both = client
        .query("SELECT array_agg(s ORDER BY k) FROM (SELECT DISTINCT k, s FROM felt) f", &[])
        .await
        .unwrap();
    assert_eq!(both.len(), 1);
    assert_eq!(client.execute("INSERT INTO felt SELECT k + 5000000, m, s FROM felt", &[]).await.unwrap(), 4);
    assert_eq!(
        client.execute("UPDATE felt SET k = k + 1, s = s || 'm'::size WHERE k > 4000000", &[]).await.unwrap(),
        4
    );
    let grown = client.query_one("SELECT count(*) FROM felt WHERE s::text = '{s,m,m}'", &[]).await.unwrap();
    assert_eq!(grown.get::<_, i64>(0), 4);
    client.batch_execute("DELETE FROM felt WHERE k > 4000000").await.unwrap();

    // One statement for rows of several shards declares its parameters to each of them.
    let several = client
        .prepare_typed(
            "INSERT INTO felt (k, m) VALUES ($1, $3), ($2, $3) RETURNING m",
            &[Type::INT8, Type::INT8, mood.clone()],
        )
        .await
        .unwrap();
    let more = [key(2) + 1_000_000, key(3) + 1_000_000];
    let rows = client.query(&several, &[&more[0], &more[1], &Label("happy".into())]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, Label>(0).0).collect::<Vec<_>>(), ["happy", "happy"]);

    // A type that comes later is known at once; one that is replaced is not taken for the old one.
    client.batch_execute("DROP TABLE felt; DROP TYPE mood; CREATE TYPE mood AS ENUM ('new')").await.unwrap();
    client.batch_execute("CREATE TABLE felt (k int8 PRIMARY KEY, m mood)").await.unwrap();
    let now: u32 = client.query_one("SELECT 'mood'::regtype::oid", &[]).await.unwrap().get(0);
    assert_ne!(now, mood.oid());
    for shard in 1..=4 {
        let of_one = format!("SELECT m FROM felt WHERE k = {}", key(shard));
        assert_eq!(raw.columns(&of_one).await[0].1, now, "shard {shard}");
    }
}
