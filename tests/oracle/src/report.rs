//! What is printed.

use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::answer::Verdict;
use crate::run::Record;

/// Differences and refusals that are spelled out; all are counted.
const SHOWN: usize = 60;

#[derive(Default)]
pub(crate) struct Report {
    pub records: Vec<Record>,
    pub seeds: Vec<u64>,
}

#[derive(Default)]
struct Counts {
    statements: usize,
    equal: usize,
    refused: usize,
    different: usize,
    skipped: usize,
    errors: usize,
    known: usize,
}

impl Report {
    fn counts(&self) -> Counts {
        let mut counts = Counts { statements: self.records.len(), ..Counts::default() };
        for record in &self.records {
            match record.verdict() {
                _ if record.skipped => counts.skipped += 1,
                _ if record.deviates => counts.known += 1,
                Verdict::Equal => {
                    counts.equal += 1;
                    counts.errors += usize::from(record.failed);
                }
                Verdict::Refused(_) => counts.refused += 1,
                Verdict::Different(_) => counts.different += 1,
            }
        }
        counts
    }

    pub(crate) fn is_clean(&self) -> bool {
        let counts = self.counts();
        counts.different == 0 && counts.equal > 0
    }

    pub(crate) fn share_of_several_shards(&self) -> f64 {
        let known = self.records.iter().filter_map(|record| record.several_shards);
        let (several, all) =
            known.fold((0u32, 0u32), |(several, all), one| (several + u32::from(one), all + 1));
        if all == 0 { 0.0 } else { f64::from(several) / f64::from(all) }
    }

    pub(crate) fn json(&self) -> Value {
        let counts = self.counts();
        let mut modes: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for (mode, verdict) in self.records.iter().flat_map(|record| &record.modes) {
            let at = match verdict {
                Verdict::Equal => 0,
                Verdict::Refused(_) => 1,
                Verdict::Different(_) => 2,
            };
            modes.entry(mode.name()).or_default()[at] += 1;
        }
        let modes: BTreeMap<&str, Value> = modes
            .into_iter()
            .map(|(mode, [equal, refused, different])| {
                (mode, json!({"equal": equal, "refused": refused, "different": different}))
            })
            .collect();
        let mut themes: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for record in &self.records {
            let what = match record.verdict() {
                _ if record.skipped => "skipped",
                _ if record.deviates => "known",
                Verdict::Equal => "equal",
                Verdict::Refused(_) => "refused",
                Verdict::Different(_) => "different",
            };
            *themes.entry(&record.theme).or_default().entry(what).or_default() += 1;
        }
        let first = self.records.iter().find_map(|record| match record.verdict() {
            Verdict::Different(why) if !record.deviates => Some(json!({
                "theme": record.theme, "line": record.line, "statement": record.sql, "why": why,
            })),
            _ => None,
        });
        json!({
            "statements": counts.statements,
            "equal": counts.equal,
            "refused": counts.refused,
            "different": counts.different,
            "skipped": counts.skipped,
            "known_deviations": counts.known,
            "equal_errors": counts.errors,
            "first_difference": first,
            "modes": modes,
            "themes": themes,
            "multi_shard_share": (self.share_of_several_shards() * 1000.0).round() / 1000.0,
            "error_texts_different": self.records.iter().filter(|record| record.texts.is_some()).count(),
            "seeds": self.seeds,
        })
    }

    pub(crate) fn print(&self, all: bool) {
        let shown = if all { usize::MAX } else { SHOWN };
        let mut left = shown;
        for record in self.records.iter().filter(|record| !record.deviates) {
            for (mode, verdict) in &record.modes {
                let Verdict::Different(why) = verdict else { continue };
                if left == 0 {
                    break;
                }
                left -= 1;
                println!(
                    "DIFFERENT {}:{} ({})\n{}\n{why}",
                    record.theme,
                    record.line,
                    mode.name(),
                    record.sql
                );
            }
        }
        let mut reasons: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
        for record in &self.records {
            if let Verdict::Refused(why) = record.verdict() {
                reasons.entry(why).or_default().push(record);
            }
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, records)| std::cmp::Reverse(records.len()));
        for (why, records) in reasons.iter().take(shown) {
            println!("refused {:4} x {why}", records.len());
            for record in records.iter().take(if all { usize::MAX } else { 1 }) {
                let short: String = record.sql.replace('\n', " ").chars().take(220).collect();
                println!("         {}:{} {short}", record.theme, record.line);
            }
        }
        if all {
            for record in &self.records {
                if let Some((one, four)) = &record.texts {
                    println!(
                        "text    {}:{} {}\n   one server: {one}\n   the proxy:  {four}",
                        record.theme, record.line, record.sql
                    );
                }
            }
        }
        let counts = self.counts();
        println!(
            "{} statements: {} equal (of which {} errors), {} refused, {} different, {} known to deviate, {} skipped behind those; {:.0} % over several shards",
            counts.statements,
            counts.equal,
            counts.errors,
            counts.refused,
            counts.different,
            counts.known,
            counts.skipped,
            self.share_of_several_shards() * 100.0
        );
    }
}
