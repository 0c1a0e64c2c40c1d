//! `explain`: the proxy's own `EXPLAIN ROUTE`.

use serde_json::json;

use crate::connect::{ANSWER_TIMEOUT, Proxy, ask};
use crate::output::Report;

pub async fn explain(proxy: &Proxy, sql: &str) -> anyhow::Result<Report> {
    let client = proxy.connect().await?;
    let rows = ask(&client, &format!("EXPLAIN ROUTE {sql}"), ANSWER_TIMEOUT).await?;
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = (0..row.len()).map(|i| row.try_get(i).ok().flatten().unwrap_or(""));
            cells.collect::<Vec<_>>().join("  ")
        })
        .collect();
    Ok(Report { json: json!({ "sql": sql, "route": lines }), text: lines.join("\n") + "\n", well: true })
}
