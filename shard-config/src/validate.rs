//! What no setting can check alone: names that must differ, numbers that must fit each other.

use std::collections::HashMap;

use crate::config::{Config, FunctionRoute, TableKind};
use crate::map::valid_bucket_count;
use crate::settings::Reader;

/// Each cancel request that is not for a client of its own makes a proxy ask all of them.
const PEERS_MAX: usize = 64;

/// Adds a mistake for everything wrong, and goes on.
pub(crate) fn validate(config: &Config, reader: &mut Reader<'_>) {
    proxy(config, reader);
    pool(config, reader);
    shards(config, reader);
    users(config, reader);
    tables(config, reader);
    functions(config, reader);
}

/// The line where a setting was written, or else its section's.
fn line(reader: &Reader<'_>, header: &'static str, index: usize, key: &'static str) -> usize {
    let lines = &reader.lines;
    lines.get(&(header, index, key)).or_else(|| lines.get(&(header, index, ""))).copied().unwrap_or(1)
}

fn proxy(config: &Config, reader: &mut Reader<'_>) {
    let buckets = config.key.buckets;
    if !valid_bucket_count(buckets) {
        let at = line(reader, "[key]", 0, "buckets");
        let below = 1 << buckets.ilog2();
        reader.mistake(
            at,
            format!("buckets: {buckets} is not a power of two"),
            format!("write {below} or {}", below << 1),
        );
    }
    if config.proxy.listen == config.proxy.http {
        let at = line(reader, "[proxy]", 0, "http");
        reader.mistake(
            at,
            format!("listen and http are both {}", config.proxy.http),
            "give http its own port",
        );
    }
    let peers = &config.proxy.peers;
    let at = line(reader, "[proxy]", 0, "peers");
    if peers.len() > PEERS_MAX {
        reader.mistake(
            at,
            format!("peers: {} are too many", peers.len()),
            format!("write at most {PEERS_MAX}"),
        );
    }
    if let Some(twice) = (1..peers.len()).find(|n| peers[..*n].contains(&peers[*n])) {
        let message = format!("peers: {} is there twice", peers[twice]);
        reader.mistake(at, message, "leave one of the two out");
    }
    if !peers.is_empty() && config.control.password.expose().is_empty() {
        let message = "peers: proxies know each other by the password of [control], which is empty";
        reader.mistake(at, message, "write password in [control], the same in every proxy");
    }
    let default = config.proxy.default_shard;
    if !config.shards.is_empty() && config.shard(default).is_none() {
        let at = line(reader, "[proxy]", 0, "default_shard");
        let ids: Vec<_> = config.shards.iter().map(|shard| shard.id.to_string()).collect();
        reader.mistake(
            at,
            format!("default_shard: there is no shard {default}"),
            format!("write one of {}", ids.join(", ")),
        );
    }
}

fn pool(config: &Config, reader: &mut Reader<'_>) {
    let pool = &config.pool;
    for (key, min, max) in [
        ("primary_min", pool.primary_min, pool.primary_max),
        ("replica_min", pool.replica_min, pool.replica_max),
    ] {
        if min > max {
            let at = line(reader, "[pool]", 0, key);
            reader.mistake(
                at,
                format!("{key}: {min} is more than the maximum, {max}"),
                format!("write at most {max}"),
            );
        }
    }
}

fn shards(config: &Config, reader: &mut Reader<'_>) {
    let header = "[[shard]]";
    if config.shards.is_empty() {
        reader.mistake(1, "there is no shard", "add [[shard]] with id = 1 and primary = \"host:port\"");
        return;
    }
    if config.shards.len() > usize::from(config.key.buckets) {
        let at = line(reader, "[key]", 0, "buckets");
        let message =
            format!("{} buckets are too few for {} shards", config.key.buckets, config.shards.len());
        reader.mistake(at, message, "write more buckets; 4096 suits up to 100 shards");
    }
    if config.shards.iter().all(|shard| shard.weight == 0) {
        let at = line(reader, header, 0, "weight");
        reader.mistake(at, "every shard has weight 0, so no bucket has an owner", "write weight = 1");
    }
    let mut ids = HashMap::new();
    let mut addresses = HashMap::new();
    for (index, shard) in config.shards.iter().enumerate() {
        if let Some(first) = ids.insert(shard.id, index) {
            let at = line(reader, header, index, "id");
            let first = line(reader, header, first, "id");
            reader.mistake(
                at,
                format!("id: shard {} is also on line {first}", shard.id),
                "give each shard its own id",
            );
        }
        let servers = std::iter::once(("primary", &shard.primary))
            .chain(shard.replicas.iter().map(|r| ("replicas", r)));
        for (key, address) in servers {
            let at = line(reader, header, index, key);
            if let Some(first) = addresses.insert(address, at) {
                let message = format!("{key}: {address} is also on line {first}");
                reader.mistake(at, message, "a server belongs to one shard, in one role");
            }
        }
    }
}

fn users(config: &Config, reader: &mut Reader<'_>) {
    unique(reader, "[[user]]", config.users.iter().map(|user| user.name.as_str()));
}

fn tables(config: &Config, reader: &mut Reader<'_>) {
    let header = "[[table]]";
    unique(reader, header, config.tables.iter().map(|table| table.name.as_str()));
    for (index, table) in config.tables.iter().enumerate() {
        qualified(reader, header, index, &table.name);
        for (key, written) in [("key", table.key.is_some()), ("type", table.key_type.is_some())] {
            if written && table.kind != TableKind::Sharded {
                let at = line(reader, header, index, key);
                let message = format!("{key}: a {} table has no key", table.kind.name());
                reader.mistake(at, message, format!("leave {key} out, or write kind = \"sharded\""));
            }
        }
        if !table.unique_by_construction.is_empty() && table.kind != TableKind::Sharded {
            let at = line(reader, header, index, "unique_by_construction");
            let message =
                format!("unique_by_construction: a {} table is enforced as it is", table.kind.name());
            reader.mistake(at, message, "leave unique_by_construction out");
        }
    }
}

fn functions(config: &Config, reader: &mut Reader<'_>) {
    let header = "[[function]]";
    unique(reader, header, config.functions.iter().map(|function| function.name.as_str()));
    for (index, function) in config.functions.iter().enumerate() {
        qualified(reader, header, index, &function.name);
        let needs = matches!(function.route, FunctionRoute::Key | FunctionRoute::KeyArray);
        let route = function.route.name();
        let at = line(reader, header, index, "argument");
        if needs && function.argument.is_none() {
            reader.mistake(
                at,
                format!("route \"{route}\" needs an argument"),
                "add argument = 1 for the first",
            );
        }
        if !needs && function.argument.is_some() {
            reader.mistake(at, format!("route \"{route}\" has no argument"), "leave argument out");
        }
    }
}

fn unique<'n>(reader: &mut Reader<'_>, header: &'static str, names: impl Iterator<Item = &'n str>) {
    let mut seen = HashMap::new();
    for (index, name) in names.enumerate() {
        let at = line(reader, header, index, "name");
        if let Some(first) = seen.insert(name, at) {
            reader.mistake(
                at,
                format!("name: \"{name}\" is also on line {first}"),
                "leave one of the two out",
            );
        }
    }
}

fn qualified(reader: &mut Reader<'_>, header: &'static str, index: usize, name: &str) {
    let parts: Vec<_> = name.split('.').collect();
    if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
        let at = line(reader, header, index, "name");
        let last = parts.iter().rev().find(|part| !part.is_empty()).unwrap_or(&"name");
        reader.mistake(
            at,
            format!("name: \"{name}\" has no schema"),
            format!("write e.g. \"public.{last}\""),
        );
    }
}
