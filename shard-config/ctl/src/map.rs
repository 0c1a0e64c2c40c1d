//! `map` and `route`.

use anyhow::Context;
use serde_json::json;
use shard_config::{KeyType, ShardMap};

use crate::connect::Proxy;
use crate::output::{Report, table};

pub async fn map(proxy: &Proxy) -> anyhow::Result<Report> {
    Ok(show(&proxy.map().await?))
}

fn show(map: &ShardMap) -> Report {
    let ranges = map.ranges();
    let rows: Vec<_> = ranges
        .iter()
        .map(|(from, to, shard)| [*from, *to, to - from + 1, shard.0].map(|n| n.to_string()).to_vec())
        .collect();
    let json = json!({
        "epoch": map.epoch(),
        "buckets": map.buckets(),
        "ranges": ranges.iter().map(|(from, to, shard)| json!({"from": from, "to": to, "shard": shard.0})).collect::<Vec<_>>(),
    });
    let head = format!("epoch {}, {} buckets\n", map.epoch(), map.buckets());
    Report { json, text: head + &table(&["from", "to", "buckets", "shard"], &rows), well: true }
}

pub async fn route(proxy: &Proxy, tenant: &str, key_type: &str) -> anyhow::Result<Report> {
    let key_type = KeyType::from_name(key_type)
        .with_context(|| format!("--key-type: \"{key_type}\" is none of uuid, int8, int4, int2, text"))?;
    find(&proxy.map().await?, tenant, key_type)
}

fn find(map: &ShardMap, tenant: &str, key_type: KeyType) -> anyhow::Result<Report> {
    let bucket = key_type
        .bucket_of_text_value(tenant.as_bytes(), map.buckets())
        .with_context(|| format!("\"{tenant}\" is not a {key_type}"))?;
    let shard = map.shard_of(bucket);
    let literal = format!("'{}'", tenant.replace('\'', "''"));
    let sql = format!("SELECT {}", key_type.sql(&literal, map.buckets()));
    Ok(Report {
        json: json!({"tenant": tenant, "bucket": bucket.get(), "shard": shard.0, "epoch": map.epoch(), "sql": sql}),
        text: format!(
            "{tenant} is in bucket {bucket}, on shard {shard} (epoch {})\nin psql: {sql}\n",
            map.epoch()
        ),
        well: true,
    })
}

#[cfg(test)]
mod tests {
    use shard_config::ShardId;

    use super::*;

    #[test]
    fn a_tenant_is_found() {
        let map = ShardMap::even(&[1, 2, 3, 4].map(ShardId), 4096);
        let report = find(&map, "550e8400-e29b-41d4-a716-446655440000", KeyType::Uuid).unwrap();
        assert_eq!((&report.json["bucket"], &report.json["shard"]), (&json!(3302), &json!(4)));
        let report = find(&map, "it's", KeyType::Text).unwrap();
        assert!(
            report.text.contains("hashtextextended('it''s', 8816678312871386365) & 4095"),
            "{}",
            report.text
        );
        assert!(find(&map, "tenant-1", KeyType::Uuid).is_err());
    }

    #[test]
    fn the_map_is_shown_by_ranges() {
        let report = show(&ShardMap::even(&[ShardId(1), ShardId(2)], 16));
        assert_eq!(
            report.text,
            "epoch 1, 16 buckets\nfrom  to  buckets  shard\n   0   7        8      1\n   8  15        8      2\n"
        );
        assert_eq!(report.json["ranges"][1], json!({"from": 8, "to": 15, "shard": 2}));
    }
}
