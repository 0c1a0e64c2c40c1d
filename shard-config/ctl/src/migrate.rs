//! `migrate`: the payment schema, on every shard.

use serde_json::json;
use sql_assets::Options;

use crate::connect::Proxy;
use crate::output::Report;

pub async fn migrate(proxy: &Proxy, months_ahead: u16, retain_months: Option<u16>) -> anyhow::Result<Report> {
    // Asked first, so that an unreachable proxy has its own exit status, and a plain PostgreSQL is not migrated by
    // a slip in the URL (`migrate` of sql-assets does that).
    proxy.map().await?;
    let report = sql_assets::apply(&proxy.expose_url(), &Options { months_ahead, retain_months }).await?;
    let mut text = String::new();
    for line in &report.applied {
        text += &format!("applied  {line}\n");
    }
    for line in &report.failed {
        text += &format!("FAILED   {line}\n");
    }
    if report.applied.is_empty() && report.failed.is_empty() {
        text += &format!("{} shards are up to date\n", report.shards.len());
    }
    let well = report.failed.is_empty();
    if !well {
        text += "run it again to resume\n";
    }
    let json = json!({"shards": report.shards, "applied": report.applied, "failed": report.failed});
    Ok(Report { json, text, well })
}
