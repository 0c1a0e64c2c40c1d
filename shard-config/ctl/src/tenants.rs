//! The largest tenants of all shards, or those that write most.

use serde_json::json;

use crate::direct::Servers;
use crate::figures::{self, SECONDS, Tenant};
use crate::mover::catalog;
use crate::mover::preflight::human;
use crate::output::{Report, table};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// Bytes of their rows.
    Size,
    /// Rows written in a second.
    Rate,
}

/// With `seconds`, or by rate, writes are counted for so long.
pub async fn tenants(
    servers: &Servers,
    top: usize,
    by: Order,
    seconds: Option<u32>,
) -> anyhow::Result<Report> {
    let control = servers.control("shardctl tenants").await?;
    let map = catalog::map(&control).await?;
    let seconds = seconds.or((by == Order::Rate).then_some(SECONDS));
    let shards = figures::shards(servers, &map, "shardctl tenants", seconds).await?;
    let mut all = figures::of_tenants(&shards, &map, by == Order::Rate, top).await?;
    sort(&mut all, by);
    all.truncate(top);
    Ok(report(&all))
}

fn sort(all: &mut [Tenant], by: Order) {
    let rate = |tenant: &Tenant| if by == Order::Rate { tenant.rate.unwrap_or(0.0) } else { 0.0 };
    all.sort_by(|a, b| {
        rate(b)
            .total_cmp(&rate(a))
            .then_with(|| b.bytes.cmp(&a.bytes))
            .then_with(|| b.rows.cmp(&a.rows))
            .then_with(|| a.name.cmp(&b.name))
    });
}

fn report(all: &[Tenant]) -> Report {
    let measured = all.iter().any(|tenant| tenant.rate.is_some());
    let mut header = vec!["tenant", "shard", "rows", "size"];
    header.extend(measured.then_some("rows/s"));
    let row = |tenant: &Tenant| {
        let mut row =
            vec![tenant.name.clone(), tenant.shard.to_string(), tenant.rows.to_string(), human(tenant.bytes)];
        row.extend(tenant.rate.map(|rate| format!("{rate:.1}")));
        row
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    let one = |tenant: &Tenant| {
        let mut json = json!({
            "tenant": tenant.name, "shard": tenant.shard.0, "rows": tenant.rows, "bytes": tenant.bytes,
        });
        if let Some(rate) = tenant.rate {
            json["rows_per_second"] = json!(rate);
        }
        json
    };
    let json: Vec<_> = all.iter().map(one).collect();
    Report { json: json!(json), text: table(&header, &rows), well: true }
}

#[cfg(test)]
mod tests {
    use shard_config::ShardId;

    use super::*;

    #[test]
    fn by_size_or_by_rate_over_all_shards() {
        let tenant = |name: &str, bytes, rate| Tenant {
            name: name.to_owned(),
            shard: ShardId(1),
            rows: 1,
            bytes,
            rate,
        };
        let mut all =
            [tenant("a", 5, Some(0.5)), tenant("b", 9, Some(0.0)), tenant("c", 1, Some(7.0))].to_vec();
        let names = |all: &[Tenant]| all.iter().map(|tenant| tenant.name.clone()).collect::<String>();
        sort(&mut all, Order::Size);
        assert_eq!(names(&all), "bac");
        sort(&mut all, Order::Rate);
        assert_eq!(names(&all), "cab");
        let shown = report(&all);
        assert!(shown.text.contains("rows/s") && shown.text.contains("7.0"), "{}", shown.text);
        assert_eq!(shown.json[0]["rows_per_second"], json!(7.0));
        let shown = report(&[tenant("d", 1, None)]);
        assert!(!shown.text.contains("rows/s") && shown.json[0].get("rows_per_second").is_none());
    }
}
