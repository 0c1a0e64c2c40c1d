//! What makes two relations of one name alike on two shards, part by part, so that it can be said what differs.

use std::collections::{BTreeMap, BTreeSet};

use shard_config::{CONSTRAINT_SQL, NOISE_SQL, ShardId};

use super::scope::literal;
use super::tables::Table;
use crate::direct::Db;

/// Each part is one text for people: "column id integer not null".
pub type Parts = BTreeSet<String>;

/// So many parts of either side are shown.
const SHOWN: usize = 2;
/// And so much of each.
const LETTERS: usize = 160;

/// An expression as the server prints it. Only lists of `IN` are printed in another way after a dump was restored, so the
/// noise of others is left: it may be within a text.
fn expression(printed: &str) -> String {
    format!(
        "CASE WHEN {printed} LIKE '%ARRAY[%' THEN regexp_replace({printed}, {NOISE_SQL}, '', 'g') ELSE {printed} END"
    )
}

/// (name, part) of every relation that `relations` gives as (name, oid, place), where `place` is a text before each part, empty
/// but for partitions that stand for a part of their root: through the root, nobody meets their owner, grants, policies
/// and rules. What a move has installed is no part.
pub fn parts_sql(relations: &str) -> String {
    let default = expression("pg_get_expr(d.adbin, d.adrelid)");
    let index =
        expression("regexp_replace(pg_get_indexdef(i.indexrelid), '^CREATE UNIQUE INDEX .*? USING ', '')");
    let trigger =
        expression("replace(pg_get_triggerdef(g.oid), format(' ON %I.%I ', n.nspname, c.relname), ' ')");
    let using = expression("pg_get_expr(p.polqual, p.polrelid)");
    let check = expression("pg_get_expr(p.polwithcheck, p.polrelid)");
    let view = expression("pg_get_viewdef(c.oid)");
    let types = types_sql();
    // MAINTAIN is not known to servers before 17, and a move may go from one version to another.
    let grants = "CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END
            || CASE WHEN x.is_grantable THEN ' with grant option' ELSE '' END";
    format!(
        "SELECT r.name, r.place || s.part AS part
    FROM ({relations}) AS r (name, oid, place)
    JOIN pg_catalog.pg_class c ON c.oid = r.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        SELECT CASE WHEN c.relpersistence = 'u' THEN 'unlogged ' ELSE '' END || CASE c.relkind WHEN 'r' THEN 'table'
            WHEN 'p' THEN 'table partitioned by ' || pg_get_partkeydef(c.oid) WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
            ELSE 'relation of kind ' || c.relkind::text END
        UNION ALL SELECT 'replica identity ' || CASE c.relreplident WHEN 'f' THEN 'full' WHEN 'n' THEN 'nothing' ELSE 'by an index' END
            WHERE c.relkind = 'r' AND c.relreplident <> 'd'
        UNION ALL SELECT 'partition ' || pg_get_expr(c.relpartbound, c.oid) WHERE c.relpartbound IS NOT NULL
        UNION ALL SELECT 'column ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
            || coalesce((SELECT ' collate ' || l.collname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
                          WHERE t.oid = a.atttypid AND t.typcollation <> a.attcollation), '')
            || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
            || CASE a.attidentity WHEN 'a' THEN ' identity always' WHEN 'd' THEN ' identity by default' ELSE '' END
            || coalesce((SELECT CASE a.attgenerated WHEN '' THEN ' default ' WHEN 's' THEN ' generated as ' ELSE ' generated virtual as ' END || {default}
                          FROM pg_catalog.pg_attrdef d WHERE d.adrelid = c.oid AND d.adnum = a.attnum), '')
            FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT {CONSTRAINT_SQL} FROM pg_catalog.pg_constraint k
            WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'c', 'f', 'x') AND (k.contype <> 'f' OR k.conparentid = 0)
        UNION ALL SELECT 'unique index by ' || {index} FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
                WHERE k.conrelid = c.oid AND k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
        UNION ALL SELECT {trigger} || CASE g.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'A' THEN ' (always)' ELSE ' (replica)' END
            FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgname NOT LIKE 'zzz_shard_move_%'
        UNION ALL SELECT 'defined as ' || {view} WHERE c.relkind IN ('v', 'm')
        UNION ALL SELECT u.part FROM ({types}) u (part) WHERE NOT c.relispartition
        UNION ALL SELECT o.part FROM (
            SELECT 'row-level security' || CASE WHEN c.relforcerowsecurity THEN ' (forced)' ELSE '' END
                || CASE WHEN c.relrowsecurity THEN '' ELSE ' (disabled)' END AS part
                WHERE c.relrowsecurity OR c.relforcerowsecurity
            UNION ALL SELECT 'policy ' || p.polname || CASE WHEN p.polpermissive THEN '' ELSE ' (restrictive)' END || ' for '
                || CASE p.polcmd WHEN 'r' THEN 'select' WHEN 'a' THEN 'insert' WHEN 'w' THEN 'update' WHEN 'd' THEN 'delete' ELSE 'all' END
                || ' to ' || (SELECT string_agg(CASE WHEN m.role = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(m.role) END, ', '
                                ORDER BY pg_get_userbyid(m.role) COLLATE \"C\") FROM unnest(p.polroles) m (role))
                || coalesce(' using ' || {using}, '') || coalesce(' with check ' || {check}, '')
                FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid
            UNION ALL SELECT pg_get_ruledef(w.oid) || CASE w.ev_enabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'A' THEN ' (always)'
                ELSE ' (replica)' END FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN'
            UNION ALL SELECT 'owner ' || pg_get_userbyid(c.relowner)
            UNION ALL SELECT 'grant ' || x.privilege_type || ' to ' || {grants}
                FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) x WHERE x.privilege_type <> 'MAINTAIN'
            UNION ALL SELECT 'grant ' || x.privilege_type || ' (' || a.attname || ') to ' || {grants}
                FROM pg_catalog.pg_attribute a CROSS JOIN aclexplode(a.attacl) x
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ) o WHERE r.place = ''
    ) AS s (part)"
    )
}

/// What the types of the columns of the relation `c` are, however deep (arrays, domains, ranges, composites): equal names say nothing
/// of it, and a value that one shard does not take stops a copy and the way back. A partition has its root's types.
fn types_sql() -> String {
    let default = expression("pg_get_expr(t.typdefaultbin, 0)");
    // Few relations have such a type; each of thousands is not to be joined with all types there are.
    let of_used = "(SELECT * FROM pg_catalog.pg_type t WHERE t.oid = used.oid OFFSET 0)";
    // An object with an oid below 16384 is PostgreSQL's own. Each label is told by the one before it, so that one more label is
    // one part. The names of what a collation is by are not the same in all versions.
    format!(
        "WITH RECURSIVE used (oid) AS (
            SELECT a.atttypid FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
            UNION SELECT x.oid FROM used CROSS JOIN LATERAL {of_used} t CROSS JOIN LATERAL (
                SELECT t.typelem UNION ALL SELECT t.typbasetype
                UNION ALL SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE t.oid IN (g.rngtypid, g.rngmultitypid)
                UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            ) x (oid) WHERE x.oid >= 16384
        )
        SELECT format('type %I.%I: ', n.nspname, t.typname) || y.part
        FROM used CROSS JOIN LATERAL {of_used} t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace CROSS JOIN LATERAL (
            SELECT 'label ' || quote_literal(e.enumlabel)
                || coalesce(' after ' || quote_literal(lag(e.enumlabel) OVER (ORDER BY e.enumsortorder)), ' first')
                FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid
            UNION ALL SELECT 'domain over ' || format_type(t.typbasetype, t.typtypmod)
                || coalesce((SELECT ' collate ' || l.collname FROM pg_catalog.pg_type b JOIN pg_catalog.pg_collation l ON l.oid = t.typcollation
                              WHERE b.oid = t.typbasetype AND b.typcollation <> t.typcollation), '')
                || CASE WHEN t.typnotnull THEN ' not null' ELSE '' END || coalesce(' default ' || {default}, '') WHERE t.typtype = 'd'
            UNION ALL SELECT {CONSTRAINT_SQL} FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'
            UNION ALL SELECT 'attribute ' || row_number() OVER (ORDER BY a.attnum) || ' is ' || a.attname || ' '
                || format_type(a.atttypid, a.atttypmod)
                || coalesce((SELECT ' collate ' || l.collname FROM pg_catalog.pg_type b JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
                              WHERE b.oid = a.atttypid AND b.typcollation <> a.attcollation), '')
                FROM pg_catalog.pg_attribute a
                WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL SELECT 'range of ' || format_type(g.rngsubtype, NULL) || ' by ' || o.opcname
                || coalesce(' collate ' || l.collname, '')
                FROM pg_catalog.pg_range g JOIN pg_catalog.pg_opclass o ON o.oid = g.rngsubopc
                LEFT JOIN pg_catalog.pg_collation l ON l.oid = g.rngcollation WHERE g.rngtypid = t.oid OR g.rngmultitypid = t.oid
        ) y (part)
        UNION SELECT format('collation %I.%I: ', n.nspname, l.collname) || CASE l.collprovider WHEN 'i' THEN 'icu ' WHEN 'c' THEN 'libc '
            ELSE '' END || coalesce(to_jsonb(l) ->> 'colllocale', to_jsonb(l) ->> 'colliculocale', l.collcollate::text, '')
            || CASE WHEN l.collisdeterministic THEN '' ELSE ' not deterministic' END
            || coalesce(' rules ' || (to_jsonb(l) ->> 'collicurules'), '')
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation AND l.oid >= 16384
        JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    )
}

/// Thousands of partitions have many parts.
const READING: std::time::Duration = std::time::Duration::from_secs(300);

/// Everything of a definition that must be equal for rows to be the same on both shards, and for the application to find them in
/// the same way, by table. A table that is not there is not in the answer.
pub async fn definitions(db: &Db, tables: &[Table]) -> anyhow::Result<BTreeMap<String, Parts>> {
    let names: Vec<_> = tables.iter().map(|table| literal(&table.sql())).collect();
    // `pg_partition_tree` knows nothing of a table that is neither partitioned nor a partition.
    let relations = format!(
        "SELECT w.name, t.oid, ''::text FROM unnest(ARRAY[{}]::text[]) w (name) JOIN pg_class t ON t.oid = to_regclass(w.name)
         UNION ALL SELECT w.name, l.relid::oid, (SELECT 'partition ' || string_agg(pg_get_expr(p.relpartbound, p.oid), ' / ' ORDER BY a.n DESC) || ': '
                 FROM pg_partition_ancestors(l.relid) WITH ORDINALITY a (relid, n) JOIN pg_class p ON p.oid = a.relid WHERE p.relispartition)
             FROM unnest(ARRAY[{0}]::text[]) w (name) CROSS JOIN pg_partition_tree(to_regclass(w.name)) l WHERE l.level > 0",
        names.join(", ")
    );
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    for row in db.rows_within(READING, &parts_sql(&relations), &[]).await? {
        found.entry(row.try_get(0)?).or_default().insert(row.try_get(1)?);
    }
    Ok(found)
}

/// What only one of the two has, for people; `None`: they are alike. PURE.
pub fn difference(one: (ShardId, &Parts), other: (ShardId, &Parts)) -> Option<String> {
    let only = |(shard, ours): (ShardId, &Parts), theirs: &Parts| {
        let all: Vec<&String> = ours.difference(theirs).collect();
        let shown: Vec<String> = all.iter().take(SHOWN).map(|part| short(part)).collect();
        let more = all.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        (!all.is_empty()).then(|| format!("only on shard {shard}: {}{more}", shown.join(", ")))
    };
    let both: Vec<String> = [only(one, other.1), only(other, one.1)].into_iter().flatten().collect();
    (!both.is_empty()).then(|| both.join("; "))
}

/// On one line.
fn short(part: &str) -> String {
    let words: Vec<&str> = part.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parts_that_differ_are_named_of_either_side() {
        let parts = |all: &[&str]| all.iter().map(|part| (*part).to_owned()).collect::<Parts>();
        let (one, two) = (ShardId(1), ShardId(2));
        let both = parts(&["column a int", "owner app"]);
        assert_eq!(difference((one, &both), (two, &both)), None);
        assert_eq!(
            difference(
                (one, &parts(&["column a int", "b", "c", "d", "e"])),
                (two, &parts(&["column a\n    bigint", "b"]))
            )
            .unwrap(),
            "only on shard 1: c, column a int, and 2 more; only on shard 2: column a bigint"
        );
        let long = "é".repeat(LETTERS + 1);
        let shown = difference((one, &parts(&[long.as_str()])), (two, &parts(&[]))).unwrap();
        assert_eq!(shown, format!("only on shard 1: {}...", "é".repeat(LETTERS)));
    }
}
