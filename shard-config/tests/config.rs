//! The configuration file, from outside.

use std::fmt::Write;

use shard_config::config::SECTIONS;
use shard_config::{Config, KeyType, ReadPolicy, ShardId};

const WHOLE: &str = r#"
[proxy]
name = "proxy2"
listen = "127.0.0.1:17052"
http = "127.0.0.1:17062"
default_shard = 2

[pool]
primary_max = 7
primary_min = 2

[reads]
policy = "opt_in"

[control]
password = "hidden-1"

[[user]]
name = "app"
password = "hidden-2"

[[shard]]
id = 2
primary = "127.0.0.1:17002"

[[shard]]
id = 1
primary = "shard1.example:5432"
replicas = ["127.0.0.1:17021", "[::1]:17022"]
weight = 3

[[table]]
name = "public.pgbench_accounts"
kind = "sharded"
key = "aid"
type = "integer"

[[function]]
name = "public.post_payments"
route = "key_array"
argument = 1
"#;

#[test]
fn a_whole_file_is_read() {
    let config = Config::parse(WHOLE).unwrap();
    assert_eq!(config.proxy.name, "proxy2");
    assert_eq!(config.proxy.max_clients, 10000);
    assert_eq!(config.key.key_type, KeyType::Uuid);
    assert_eq!((config.pool.primary_max, config.pool.replica_max), (7, 100));
    assert_eq!(config.reads.policy, ReadPolicy::OptIn);
    assert_eq!(config.shards[0].id, ShardId(1));
    assert_eq!(config.shards[0].replicas[1].to_string(), "[::1]:17022");
    assert_eq!(config.tables[0].key_type, Some(KeyType::Int4));
    assert_eq!(config.functions[0].argument, Some(1));
    assert_eq!(config.initial_map().ranges(), [(0, 3071, ShardId(1)), (3072, 4095, ShardId(2))]);
    assert!(!format!("{config:?}").contains("hidden"));
}

/// The reference that operators copy is a valid file, and says what an empty file means.
#[test]
fn the_reference_shows_the_defaults() {
    let shard = "[[shard]]\nid = 1\nprimary = \"h:1\"\n";
    let from_reference = Config::parse(&format!("{}{shard}", Config::reference())).unwrap();
    assert_eq!(Config::parse(shard), Ok(from_reference));
    for setting in SECTIONS.iter().flat_map(|section| section.settings) {
        assert!(!setting.doc.is_empty(), "{} has no documentation", setting.name);
    }
}

/// Every default is read by the parser and lies in its range: a section with none of its optional settings and
/// one with each default written out are the same.
#[test]
fn every_default_is_a_legal_value() {
    let mut written = String::new();
    for section in SECTIONS {
        _ = writeln!(written, "{}", section.header);
        for setting in section.settings {
            match (setting.default, setting.name) {
                ("optional", _) => {}
                ("required", "id") => written += "id = 1\n",
                ("required", "primary") => written += "primary = \"h:1\"\n",
                ("required", "kind") => written += "kind = \"plain\"\n",
                ("required", "route") => written += "route = \"local\"\n",
                ("required", name) => _ = writeln!(written, "{name} = \"public.x\""),
                (default, name) => _ = writeln!(written, "{name} = {default}"),
            }
        }
    }
    Config::parse(&written).unwrap();
}

fn check(text: &str, expected: &[&str]) {
    let mistakes: Vec<_> = match Config::parse(text) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(mistakes, expected);
}

#[test]
fn every_mistake_of_reading_is_reported_at_once() {
    check(
        r#"[proxy]
listen = "localhost"
worker = 4
default_shard = 0

[prooxy]
[pool]
primary_max = "fifty"
connect_timeout_ms = 5
leak_detection_s = 99999999999999999999
[reads]
policy = "stale"
[[user]]
name = ""
[[shard]]
id = 1
primary = "127.0.0.1"
[[shard]]
primary = "h:1"
replicas = ["h:2", 3]
[[table]]
name = "t"
kind = "sharde"
[key]
type = "numeric"
"#,
        &[
            "line 2: listen: \"localhost\" is not an address and port (write e.g. \"127.0.0.1:6432\" or \"[::]:6432\")",
            "line 3: [proxy] has no setting \"worker\" (did you mean \"workers\"?)",
            "line 4: default_shard: there is no shard 0 (number shards from 1)",
            "line 6: there is no section [prooxy] (did you mean \"proxy\"?)",
            "line 8: primary_max: this is text (write a whole number)",
            "line 9: connect_timeout_ms: 5 is out of range (write a number from 10 to 600000)",
            "line 10: leak_detection_s: 99999999999999999999 is out of range (write a number from 0 to 18446744073709551615)",
            "line 12: policy: there is no \"stale\" (there are: fresh, primary, opt_in)",
            "line 13: [[user]] has no \"password\" (add password = \"secret\")",
            "line 14: name: this is empty (write some text, or leave the setting out)",
            "line 17: primary: \"127.0.0.1\" is not host:port (write e.g. \"10.0.0.7:5432\")",
            "line 18: [[shard]] has no \"id\" (add id = a shard's number)",
            "line 20: replicas: this is a whole number (write \"host:port\")",
            "line 23: kind: there is no \"sharde\" (did you mean \"sharded\"?)",
            "line 25: type: no key can be of type \"numeric\" (write one of \"uuid\", \"int8\", \"int4\", \"int2\", \"text\")",
        ],
    );
}

#[test]
fn every_contradiction_is_reported_at_once() {
    check(
        r#"[proxy]
listen = "127.0.0.1:1"
http = "127.0.0.1:1"
default_shard = 3
peers = ["h:1", "h:2", "h:1"]
[key]
buckets = 100
[pool]
primary_max = 10
[[user]]
name = "app"
password = "a"
[[user]]
name = "app"
password = "b"
[[shard]]
id = 1
primary = "h:1"
[[shard]]
id = 1
primary = "h:2"
replicas = ["h:1"]
[[table]]
name = "accounts"
kind = "plain"
key = "id"
[[function]]
name = "public.f"
route = "key"
[[function]]
name = "public.f"
route = "local"
argument = 1
"#,
        &[
            "line 3: listen and http are both 127.0.0.1:1 (give http its own port)",
            "line 4: default_shard: there is no shard 3 (write one of 1, 1)",
            "line 5: peers: h:1 is there twice (leave one of the two out)",
            "line 5: peers: proxies know each other by the password of [control], which is empty (write password in [control], the same in every proxy)",
            "line 7: buckets: 100 is not a power of two (write 64 or 128)",
            "line 8: primary_min: 20 is more than the maximum, 10 (write at most 10)",
            "line 14: name: \"app\" is also on line 11 (leave one of the two out)",
            "line 20: id: shard 1 is also on line 17 (give each shard its own id)",
            "line 22: replicas: h:1 is also on line 18 (a server belongs to one shard, in one role)",
            "line 24: name: \"accounts\" has no schema (write e.g. \"public.accounts\")",
            "line 26: key: a plain table has no key (leave key out, or write kind = \"sharded\")",
            "line 27: route \"key\" needs an argument (add argument = 1 for the first)",
            "line 31: name: \"public.f\" is also on line 28 (leave one of the two out)",
            "line 33: route \"local\" has no argument (leave argument out)",
        ],
    );
    check("", &["line 1: there is no shard (add [[shard]] with id = 1 and primary = \"host:port\")"]);
    check(
        "[[shard]]\nid = 1\nprimary = \"h:1\"\nweight = 0\n",
        &["line 4: every shard has weight 0, so no bucket has an owner (write weight = 1)"],
    );
}

#[test]
fn broken_toml_has_a_line_too() {
    let mistakes =
        Config::parse("[proxy]\nname = \n[[shard]]\nid = 1\nprimary = \"h:1\"\nid = 2\n").unwrap_err();
    let lines: Vec<_> = mistakes.iter().map(|mistake| mistake.line).collect();
    assert!(lines.contains(&2) && lines.contains(&6), "{mistakes:?}");
    let wrong_kind = Config::parse("shard = 1\nproxy = 2\n").unwrap_err();
    assert_eq!(wrong_kind.len(), 2, "{wrong_kind:?}");
}
