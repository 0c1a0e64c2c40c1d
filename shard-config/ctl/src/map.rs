//! `map` and `route`.

use serde_json::json;
use shard_config::{KeyHash, KeyType, ShardId, ShardMap};

use crate::connect::Proxy;
use crate::exit::Failure;
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
    let bucket = |hash: KeyHash| hash.bucket(map.buckets()).get();
    let pinned = |(hash, shard): &(KeyHash, ShardId)| json!({"hash": hash.get(), "bucket": bucket(*hash), "shard": shard.0});
    let json = json!({
        "epoch": map.epoch(),
        "buckets": map.buckets(),
        "ranges": ranges.iter().map(|(from, to, shard)| json!({"from": from, "to": to, "shard": shard.0})).collect::<Vec<_>>(),
        "overrides": map.overrides().iter().map(pinned).collect::<Vec<_>>(),
    });
    let mut text = format!("epoch {}, {} buckets\n", map.epoch(), map.buckets());
    text += &table(&["from", "to", "buckets", "shard"], &rows);
    if !map.overrides().is_empty() {
        let row = |(hash, shard): &(KeyHash, ShardId)| {
            vec![hash.to_string(), bucket(*hash).to_string(), shard.to_string()]
        };
        let rows: Vec<_> = map.overrides().iter().map(row).collect();
        text += "\ntenants that are elsewhere than their bucket\n";
        text += &table(&["hash", "bucket", "shard"], &rows);
    }
    Report { json, text, well: true }
}

pub async fn route(proxy: &Proxy, tenant: &str, key_type: &str) -> anyhow::Result<Report> {
    let key_type = KeyType::from_name(key_type).ok_or_else(|| {
        Failure::usage(format!("--key-type: \"{key_type}\" is none of uuid, int8, int4, int2, text"))
    })?;
    find(&proxy.map().await?, tenant, key_type)
}

fn find(map: &ShardMap, tenant: &str, key_type: KeyType) -> anyhow::Result<Report> {
    let hash = key_type
        .hash_of_text_value(tenant.as_bytes())
        .ok_or_else(|| Failure::usage(format!("\"{tenant}\" is not a {key_type}")))?;
    let bucket = hash.bucket(map.buckets());
    let (shard, home) = (map.shard_of_hash(hash), map.shard_of(bucket));
    let pinned = map.overrides().iter().any(|(known, _)| *known == hash);
    let literal = format!("'{}'", tenant.replace('\'', "''"));
    let sql = format!("SELECT {}", key_type.sql(&literal, map.buckets()));
    let place = match pinned {
        true => format!("is pinned to shard {shard}; its bucket {bucket} is on shard {home}"),
        false => format!("is in bucket {bucket}, on shard {shard}"),
    };
    Ok(Report {
        json: json!({
            "tenant": tenant, "hash": hash.get(), "bucket": bucket.get(), "shard": shard.0, "pinned": pinned,
            "epoch": map.epoch(), "sql": sql,
        }),
        text: format!("{tenant} {place} (epoch {})\nin psql, its bucket: {sql}\n", map.epoch()),
        well: true,
    })
}

#[cfg(test)]
mod tests {
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
    fn a_pinned_tenant_is_found_where_it_is() {
        let tenant = "550e8400-e29b-41d4-a716-446655440000";
        let hash = KeyType::Uuid.hash_of_text_value(tenant.as_bytes()).unwrap();
        let map =
            ShardMap::even(&[1, 2, 3, 4].map(ShardId), 4096).with_overrides(&[(hash, ShardId(2))]).unwrap();
        let report = find(&map, tenant, KeyType::Uuid).unwrap();
        assert_eq!((&report.json["shard"], &report.json["pinned"]), (&json!(2), &json!(true)));
        assert!(
            report.text.contains("is pinned to shard 2; its bucket 3302 is on shard 4"),
            "{}",
            report.text
        );
        let other = find(&map, "018f3c1e-7b2a-7c3d-8e4f-5a6b7c8d9e0f", KeyType::Uuid).unwrap();
        assert_eq!((&other.json["shard"], &other.json["pinned"]), (&json!(1), &json!(false)));
        let shown = show(&map);
        assert_eq!(shown.json["overrides"], json!([{"hash": hash.get(), "bucket": 3302, "shard": 2}]));
        assert!(shown.text.contains(&format!("{hash}    3302      2\n")), "{}", shown.text);
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
