//! What rows of sharded tables refer to and do not contain, so that it does not move along: large objects, and sequences.

use shard_config::ShardId;

use super::job::Job;
use super::tables::{Table, sharded};
use crate::direct::{Db, Servers};

/// Columns that name large objects, with the remedy. A domain of `oid` (the type `lo` is one) is for nothing else; a column of
/// `oid` itself may be about anything, so it counts only while the server has large objects.
pub async fn large(db: &Db, table: &Table) -> anyhow::Result<Vec<(String, String)>> {
    // Down through domains and arrays to the type that is stored.
    let sql = "WITH RECURSIVE part AS (
            SELECT a.attname::text AS name, a.attnum, format_type(a.atttypid, NULL) AS shown, a.atttypid AS type, false AS own
              FROM pg_attribute a WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT p.name, p.attnum, p.shown, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END, p.own OR t.typtype = 'd'
              FROM part p JOIN pg_type t ON t.oid = p.type WHERE t.typtype = 'd' OR (t.typcategory = 'A' AND t.typelem <> 0))
        SELECT name, shown, own FROM part
         WHERE type = 'oid'::regtype AND (own OR EXISTS (SELECT FROM pg_largeobject_metadata)) ORDER BY attnum";
    let mut found = Vec::new();
    for row in db.rows(sql, &[&table.sql()]).await? {
        let (column, shown, own): (String, String, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let name = table.full_name();
        let bytea = format!(
            "keep them in the rows (ALTER TABLE {name} ALTER COLUMN {column} TYPE bytea USING lo_get({column}))"
        );
        found.push(match own {
            true => (
                format!(
                    "column {column} of {name} is of type {shown}: the large objects that it names would stay behind"
                ),
                bytea,
            ),
            false => (
                format!(
                    "column {column} of {name} is of type {shown}, and the server has large objects: those that it names would stay behind"
                ),
                format!(
                    "{bytea}; if it names none, make it bigint; or unlink the large objects (SELECT lo_unlink(oid) FROM \
                     pg_largeobject_metadata) if nobody needs them"
                ),
            ),
        });
    }
    Ok(found)
}

/// Sequences of sharded tables whose numbers do not all come from the proxy, which draws on the shard `drawn_on` for all shards: as
/// sentences, with what must be true. Whoever draws on another shard may get a number there that a row has brought along.
pub async fn sequences(
    db: &Db,
    shard: ShardId,
    drawn_on: ShardId,
    tables: &[Table],
) -> anyhow::Result<Vec<String>> {
    // Of a column: its identity or `serial` sequence, and those that its default calls. The proxy draws on one shard for all of
    // them, unless the default is more than that: then it refuses an INSERT without the column.
    let sql = "SELECT quote_ident(n.nspname) || '.' || quote_ident(s.relname), a.attname::text,
            coalesce(pg_get_expr(d.adbin, d.adrelid) !~ '^nextval\\(''.*''::regclass\\)$', false),
            CASE WHEN has_sequence_privilege(s.oid, 'USAGE, SELECT') THEN pg_sequence_last_value(s.oid) END
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        CROSS JOIN LATERAL (
            SELECT p.objid FROM pg_depend p WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = a.attrelid
                AND p.refobjsubid = a.attnum AND p.classid = 'pg_class'::regclass AND p.deptype IN ('a', 'i')
            UNION SELECT p.refobjid FROM pg_depend p WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                AND p.refclassid = 'pg_class'::regclass) u (sequence)
        JOIN pg_class s ON s.oid = u.sequence AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace
        WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2";
    let mut notes = Vec::new();
    for table in tables {
        for row in db.rows(sql, &[&table.sql()]).await? {
            let (sequence, column, expression): (String, String, bool) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let why = match row.try_get::<_, Option<i64>>(3)? {
                _ if expression => format!(
                    "is drawn from by shard {shard} for itself, by an expression that the proxy does not compute"
                ),
                Some(last) if shard != drawn_on => format!(
                    "stands at {last} on shard {shard}, where the proxy never draws: a function, a trigger or a session past the proxy does"
                ),
                // Drawn from by the proxy, or by nobody.
                _ => continue,
            };
            notes.push(format!(
                "sequence {sequence} (column {column} of {}) {why}. Sequences do not move: a number that a shard gives after a move may be \
                 that of a row that has come to it. There is no duplicate key only if the sequence of each shard stands behind the highest \
                 number of all shards (setval) and gives numbers that no other does (INCREMENT BY the number of shards, each with \
                 another start); or if all numbers come through the proxy, and the sequence of shard {drawn_on} stands behind the highest \
                 one",
                table.full_name()
            ));
        }
    }
    Ok(notes)
}

/// The same of both shards of a move.
pub async fn of_both(servers: &Servers, job: &Job, source: &Db, target: &Db) -> anyhow::Result<Vec<String>> {
    let drawn_on = servers.config.proxy.default_shard;
    let mut notes = Vec::new();
    for (shard, db) in [(job.source, source), (job.target, target)] {
        let tables = sharded(db, &servers.config).await?;
        notes.extend(sequences(db, shard, drawn_on, &tables).await?);
    }
    Ok(notes)
}
