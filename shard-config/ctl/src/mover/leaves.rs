//! What the first copy reads: the ordinary tables that hold rows, and how many pages of them were there when its snapshot was
//! made. Rows that are written later are on later pages, too, and not in the snapshot.

use std::collections::BTreeMap;

use super::run::Hopeless;
use super::scope::literal;
use super::snapshot::enter;
use super::tables::{TREE, Table};
use crate::direct::Db;

/// Of a table that is written anew (not every way to do that keeps the rows for those who came before).
const REWRITTEN: &str = "was rewritten meanwhile (VACUUM FULL, CLUSTER)";

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Leaf {
    /// Which of the tables it belongs to.
    pub(super) table: usize,
    /// As SQL reads it.
    pub(super) name: String,
    pub(super) pages: i64,
    /// Of one page, with all that is stored beside it.
    pub(super) page_bytes: i64,
}

/// Of all tables, in their order. In a transaction of its own: it locks partitions.
pub(super) async fn of(source: &Db, snapshot: &str, tables: &[Table]) -> anyhow::Result<Vec<Leaf>> {
    // What catalogs say is of the snapshot, and what functions say is true now: what is rewritten between them is noticed.
    let sql = format!(
        "SELECT a.n, format('%I.%I', s.nspname, c.relname), pg_relation_size(c.oid) / current_setting('block_size')::int8, \
                pg_table_size(c.oid), c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid), c.relkind = 'r' \
         FROM unnest($1::text[]) WITH ORDINALITY a (name, n) \
         CROSS JOIN LATERAL {} t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace s ON s.oid = c.relnamespace \
         WHERE t.isleaf ORDER BY 1, 2",
        TREE.replace("$1", "a.name")
    );
    // Without its code: that the snapshot is gone is nothing that repetition does not mend.
    source.run(&enter(snapshot)).await.map_err(|error| anyhow::anyhow!("the snapshot: {error:#}"))?;
    let rows = source.rows(&sql, &[&names(tables)]).await?;
    source.run("COMMIT").await?;
    let mut leaves = Vec::with_capacity(rows.len());
    for row in rows {
        let (name, pages, bytes): (String, i64, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let (stays, ordinary): (bool, bool) = (row.try_get(4)?, row.try_get(5)?);
        if !ordinary {
            return Err(Hopeless(format!("{name} is no ordinary table, and its rows cannot be moved")).into());
        }
        anyhow::ensure!(stays, "{name} {REWRITTEN}");
        let table = usize::try_from(row.try_get::<_, i64>(0)? - 1)?;
        leaves.push(Leaf { table, name, pages, page_bytes: bytes / pages.max(1) });
    }
    Ok(leaves)
}

/// Keeps the rows of a leaf where they are until the transaction ends, and says whether they are elsewhere already. To be sent at
/// the beginning of a transaction in the snapshot, which keeps its rows from being removed.
pub(super) fn hold_sql(leaf: &str) -> String {
    format!(
        "LOCK TABLE ONLY {leaf} IN ACCESS SHARE MODE; SELECT c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid) AS stays \
         FROM pg_class c WHERE c.oid = {}::regclass",
        literal(leaf)
    )
}

/// What `hold_sql` has answered.
pub(super) fn held(leaf: &str, answer: &BTreeMap<String, String>) -> anyhow::Result<()> {
    anyhow::ensure!(answer.get("stays").is_some_and(|stays| stays == "t"), "{leaf} {REWRITTEN}");
    Ok(())
}

/// Of each table, whether values of its columns mean the same on every server in binary form: those of types with numbers that
/// initdb gives (below `FirstGenbkiObjectId`, access/transam.h), and not numbers of objects that stand for names.
pub(super) async fn portable(db: &Db, tables: &[Table]) -> anyhow::Result<Vec<bool>> {
    let sql = "SELECT coalesce(bool_and(t.oid < 10000 AND t.typsend <> 0 AND t.typreceive <> 0 AND t.typname !~ '^_?reg'), false) \
               FROM unnest($1::text[]) WITH ORDINALITY n (name, n) LEFT JOIN (pg_attribute a JOIN pg_type t ON t.oid = a.atttypid) \
               ON a.attrelid = n.name::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
               GROUP BY n.n ORDER BY n.n";
    let rows = db.rows(sql, &[&names(tables)]).await?;
    anyhow::ensure!(rows.len() == tables.len(), "{} tables, and {} answers", tables.len(), rows.len());
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn names(tables: &[Table]) -> Vec<String> {
    tables.iter().map(Table::sql).collect()
}
