//! Are the rows of a table the same on two shards? A question that proxies and `shardctl` ask in the same words.

/// First in the transaction that asks: values are printed alike, whatever a server's own settings are.
pub const PRINT_ALIKE: &str = "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = postgres; SET LOCAL TimeZone = 'UTC'; \
     SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = hex; SET LOCAL search_path = pg_catalog";

/// One text for all rows of a table, whose name is quoted as SQL needs it: the number of them and a sum of their hashes. Its
/// columns must be in the same order on both shards.
pub fn rows_digest(table: &str) -> String {
    format!(
        "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
    )
}

/// The schema and the table that a name of the configuration means.
pub fn table_name(configured: &str) -> (&str, &str) {
    configured.split_once('.').unwrap_or(("public", configured))
}

/// The same, quoted for SQL.
pub fn quoted_table(configured: &str) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let (schema, name) = table_name(configured);
    format!("{}.{}", quoted(schema), quoted(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_configuration_are_quoted() {
        assert_eq!(quoted_table("rates"), r#""public"."rates""#);
        assert_eq!(quoted_table(r#"a"b.Rates"#), r#""a""b"."Rates""#);
        assert!(rows_digest(&quoted_table("rates")).ends_with(r#"FROM "public"."rates" t"#));
    }
}
