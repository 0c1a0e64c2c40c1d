//! Columns whose binary form holds the numbers of types, which each shard has its own of (H23): arrays and rows of the
//! user's types. While a temporary table is filled from several shards, such columns are text.

use super::Failure;
use super::exchange::{self, fields};
use crate::error::ProxyError;
use crate::session::multi_hook::Participants;

/// For a query of the catalog in which `t` is `pg_type`: the binary form of its values is one server's own.
pub(super) const NUMBERED: &str = "(t.oid >= 16384 AND t.typcategory IN ('A', 'C'))";

/// How the columns of one temporary table are filled.
pub(super) struct Carried {
    /// Each column in its order, quoted; and whether it is text for now.
    columns: Vec<(String, bool)>,
    /// What gives it its own types again.
    pub(super) back: String,
}

impl Carried {
    /// What a shard is asked for: all columns, or those of `names` (quoted).
    pub(super) fn list(&self, names: Option<&[String]>) -> String {
        let wanted = |name: &String| names.is_none_or(|names| names.contains(name));
        let shown = |(name, text): &(String, bool)| match text {
            true => format!("{name}::pg_catalog.text"),
            false => name.clone(),
        };
        self.columns.iter().filter(|(name, _)| wanted(name)).map(shown).collect::<Vec<_>>().join(", ")
    }
}

/// Makes those columns of `table` text. `None`: there are none, or all shards number their types alike.
pub(super) async fn as_text(
    p: &mut Participants<'_>,
    scratch: usize,
    table: &str,
) -> Result<Option<Carried>, Failure> {
    if !p.has_other_numbers() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT a.attname, {NUMBERED}::pg_catalog.int4, pg_catalog.format_type(a.atttypid, a.atttypmod), \
         pg_catalog.pg_get_expr(d.adbin, d.adrelid) \
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE a.attrelid = '{table}'::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    );
    let reply = exchange::ask(p, scratch, &sql).await?.ok()?;
    let mut columns = Vec::new();
    let (mut to, mut back) = (Vec::new(), Vec::new());
    for row in &reply.rows {
        let values =
            fields(row).ok_or_else(|| ProxyError::internal("a row of the catalog could not be read"))?;
        let value = |n: usize| {
            String::from_utf8_lossy(values.get(n).copied().flatten().unwrap_or_default()).into_owned()
        };
        let name = format!("\"{}\"", value(0).replace('"', "\"\""));
        let (text, kind, default) = (value(1) == "1", value(2), value(3));
        if text {
            if !default.is_empty() {
                // It would not be cast by itself.
                to.push(format!("ALTER COLUMN {name} DROP DEFAULT"));
                back.push(format!("ALTER COLUMN {name} SET DEFAULT {default}"));
            }
            to.push(format!("ALTER COLUMN {name} TYPE pg_catalog.text USING {name}::pg_catalog.text"));
            back.push(format!("ALTER COLUMN {name} TYPE {kind} USING {name}::{kind}"));
        }
        columns.push((name, text));
    }
    if to.is_empty() {
        return Ok(None);
    }
    exchange::ask(p, scratch, &format!("ALTER TABLE {table} {}", to.join(", "))).await?.ok()?;
    Ok(Some(Carried { columns, back: format!("ALTER TABLE {table} {}", back.join(", ")) }))
}
