//! The house rules that matter, as tests. They read the sources and need no server.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Past 500 lines a file holds a second thing. A file may stay here only with the reason beside it.
const LONG_FILES: [(&str, &str); 2] = [
    ("tests/oracle/catalog/scripts.sql", "a list of statements"),
    ("tests/oracle/catalog/psql.sql", "psql's own queries, as it sends them"),
];
const LONGEST: usize = 500;

/// Everything that the top level may show. Dot-files beside these are for tools.
const TOP: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "core",
    "proxy",
    "shard-config",
    "sql",
    "tests",
];

/// What each crate may depend on inside the workspace (tests may use more).
const MAY_USE: [(&str, &[&str]); 9] = [
    ("shard-config", &[]),
    ("shard-config/ctl", &["shard-config", "sql-assets"]),
    ("sql", &["shard-config"]),
    ("proxy", &["shard-config"]),
    ("core", &["shard-config"]),
    ("bench", &[]),
    ("tests/stack", &[]),
    ("tests/e2e", &[]),
    ("tests/oracle", &[]),
];
const OURS: [&str; 9] = [
    "shard-config",
    "shardctl",
    "sql-assets",
    "shard-proxy",
    "payment-core",
    "bench",
    "stack",
    "e2e-tests",
    "testpg",
];

/// Rooms that know no runtime, no clock and no socket, so that they can be property-tested and fuzzed.
const PURE: [&str; 6] = [
    "shard-config/src",
    "proxy/src/wire",
    "proxy/src/route",
    "proxy/src/catalog.rs",
    "proxy/src/replica",
    "core/src/domain",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn sources(under: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    if under.is_file() {
        return vec![under.to_path_buf()];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(under).unwrap_or_else(|error| panic!("{}: {error}", under.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                found.extend(sources(&path, extensions));
            }
        } else if path.extension().is_some_and(|ext| extensions.iter().any(|wanted| ext == *wanted)) {
            found.push(path);
        }
    }
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The code of a file: without line comments and without what follows `#[cfg(test)]` at the left margin.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or("");
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_top_level_shows_only_the_customers_folders() {
    let extra: Vec<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "target" && !TOP.contains(&name.as_str()))
        .collect();
    assert!(extra.is_empty(), "not expected at the top level: {extra:?}");
}

#[test]
fn no_file_holds_two_things() {
    let mut long = Vec::new();
    for path in sources(&root(), &["rs", "java", "sql"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let excused = LONG_FILES.iter().any(|(name, _)| *name == shown(&path));
        if lines > LONGEST && !excused {
            long.push(format!("{} has {lines} lines", shown(&path)));
        }
        assert!(lines > LONGEST || !excused, "{} is no longer long: take it off the list", shown(&path));
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn dependencies_point_one_way() {
    for (krate, allowed) in MAY_USE {
        let text = fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or("");
            if section == "[dependencies]" && OURS.contains(&name) {
                assert!(allowed.contains(&name), "{krate} must not depend on {name}");
            }
        }
    }
}

#[test]
fn pure_rooms_know_no_runtime_no_clock_and_no_socket() {
    let mut broken = Vec::new();
    for room in PURE {
        // A room's tests may use what they like.
        let in_tests =
            |path: &PathBuf| shown(path).split('/').any(|part| part == "tests" || part == "tests.rs");
        for path in sources(&root().join(room), &["rs"]).into_iter().filter(|path| !in_tests(path)) {
            let code = code(&path);
            for word in ["tokio::", "std::net::Tcp", "Instant::now", "SystemTime::now", "std::fs::"] {
                if code.contains(word) {
                    broken.push(format!("{} uses {word}", shown(&path)));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_channel_and_queue_is_bounded() {
    let mut broken = Vec::new();
    for krate in ["proxy/src", "core/src", "shard-config", "sql/src"] {
        for path in sources(&root().join(krate), &["rs"]) {
            let code = code(&path);
            // std's mpsc::channel() has no bound either; sync_channel has.
            for word in ["unbounded_channel", "unbounded()", "mpsc::channel()", "UnboundedSender"] {
                if code.contains(word) {
                    broken.push(format!("{} uses {word}", shown(&path)));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_float_is_near_money() {
    let mut broken = Vec::new();
    for path in sources(&root().join("core/src/domain"), &["rs"]) {
        let code = code(&path);
        for word in ["f64", "f32"] {
            if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|token| token == word) {
                broken.push(format!("{} uses {word}", shown(&path)));
            }
        }
    }
    for path in sources(&root().join("sql/migrations"), &["sql"]) {
        let text = fs::read_to_string(&path).unwrap().to_lowercase();
        // Without comments and without what stands in quotes: Brazil's currency is called real.
        let code: Vec<&str> = text
            .lines()
            .flat_map(|line| line.split("--").next().unwrap_or("").split('\'').step_by(2))
            .collect();
        for word in ["double precision", " real", "float8", "float4"] {
            if code.iter().any(|part| part.contains(word)) {
                broken.push(format!("{} uses {word}", shown(&path)));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_newcomer_finds_out_what_each_crate_does() {
    for krate in ["shard-config", "proxy", "core", "sql", "bench", "tests/e2e", "tests/testpg"] {
        let path = root().join(krate).join("src/lib.rs");
        let text = fs::read_to_string(&path).unwrap();
        let documented = text.lines().filter(|line| line.starts_with("//!")).count();
        assert!(documented >= 3, "{} does not say what the crate does", shown(&path));
    }
}

#[test]
fn every_workspace_crate_takes_the_lints() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = text.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    let members: BTreeSet<&str> = members.split(',').map(|name| name.trim().trim_matches('"')).collect();
    for member in members.into_iter().filter(|member| !member.is_empty()) {
        let text = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{member} does not take the workspace's lints");
    }
}
