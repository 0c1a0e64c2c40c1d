//! Whether buckets could be moved, for `doctor`: asked of the servers themselves, with the role of `[control]`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use shard_config::ShardId;

use crate::direct::Servers;
use crate::doctor::Findings;
use crate::mover::preflight::Problem;
use crate::mover::standing::{self, Standing};

/// Tables and their partitions are looked through.
const WITHIN: Duration = Duration::from_secs(15);

pub(crate) async fn movable(servers: &Servers, shards: &BTreeSet<ShardId>, findings: &mut Findings) {
    let asked = join_all(shards.iter().map(async |&shard| {
        let asked = tokio::time::timeout(WITHIN, standing::shard(servers, shard)).await;
        let answer = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {WITHIN:?}")));
        (shard, answer)
    }))
    .await;
    tell(asked, findings);
}

/// What is wrong with a table is so on every shard, and is said once. PURE.
fn tell(asked: Vec<(ShardId, anyhow::Result<Standing>)>, findings: &mut Findings) {
    let mut problems: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (shard, answer) in asked {
        let standing = match answer {
            Ok(standing) => standing,
            Err(error) => {
                findings.problem(format!("shard {shard}: moving buckets"), format!("{error:#}"));
                continue;
            }
        };
        if standing.problems.is_empty() {
            findings.well(format!("shard {shard}: moving buckets"), "settings, rights and tables allow it");
        }
        findings.well(format!("shard {shard}: free for moves"), standing.free);
        for note in standing.notes {
            findings.note(format!("shard {shard}: moving buckets"), note);
        }
        for Problem { what, remedy } in standing.problems {
            let what = what.strip_prefix(&format!("shard {shard}: ")).unwrap_or(&what).to_owned();
            problems.entry((what, remedy)).or_default().push(shard.to_string());
        }
    }
    for ((what, remedy), shards) in problems {
        let many = if shards.len() > 1 { "shards" } else { "shard" };
        findings.problem(format!("{many} {}: moving buckets: {what}", shards.join(", ")), remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_on_several_shards_is_said_once_and_what_is_free_of_each() {
        let standing = |problems: &[&str], notes: &[&str]| Standing {
            problems: problems
                .iter()
                .map(|what| Problem { what: (*what).to_owned(), remedy: "mend it".to_owned() })
                .collect(),
            free: "8 of 10".to_owned(),
            notes: notes.iter().map(|note| (*note).to_owned()).collect(),
        };
        let mut findings = Findings::default();
        let asked = vec![
            (ShardId(1), Ok(standing(&["t is UNLOGGED", "shard 1: wal_level is replica"], &[]))),
            (ShardId(2), Ok(standing(&["t is UNLOGGED"], &["sequence s stands at 5"]))),
            (ShardId(3), Ok(standing(&[], &[]))),
        ];
        tell(asked, &mut findings);
        let report = findings.report();
        assert!(!report.well);
        assert_eq!(
            report.text.lines().collect::<Vec<_>>(),
            [
                "ok       shard 1: free for moves: 8 of 10",
                "ok       shard 2: free for moves: 8 of 10",
                "ok       shard 3: moving buckets: settings, rights and tables allow it",
                "ok       shard 3: free for moves: 8 of 10",
                "PROBLEM  shards 1, 2: moving buckets: t is UNLOGGED: mend it",
                "PROBLEM  shard 1: moving buckets: wal_level is replica: mend it",
                "note     shard 2: moving buckets: sequence s stands at 5",
            ]
        );
        assert_eq!(report.json["notes"][0]["about"], "shard 2: moving buckets");
    }
}
