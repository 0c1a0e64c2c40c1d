//! The verdicts of a check.
use crate::output::{rounded, thousands};
use serde::Serialize;
use std::fmt::Write as _;

/// Violations spelled out per invariant; all are counted.
const SHOWN: usize = 10;

#[derive(Serialize, Clone, Debug)]
pub struct Invariant {
    pub name: &'static str,
    /// What was proved, in words.
    pub claim: &'static str,
    /// How many things it was proved of.
    pub examined: u64,
    pub violations: u64,
    pub examples: Vec<String>,
}

impl Invariant {
    pub fn new(name: &'static str, claim: &'static str) -> Invariant {
        Invariant { name, claim, examined: 0, violations: 0, examples: Vec::new() }
    }

    pub fn violation(&mut self, example: impl FnOnce() -> String) {
        self.violations += 1;
        if self.examples.len() < SHOWN {
            self.examples.push(example());
        }
    }

    /// `condition` must hold for one more thing.
    pub fn expect(&mut self, condition: bool, example: impl FnOnce() -> String) {
        self.examined += 1;
        if !condition {
            self.violation(example);
        }
    }
}

#[derive(Serialize, Clone, Debug, Default)]
pub struct CheckReport {
    pub invariants: Vec<Invariant>,
    pub notes: Vec<String>,
    pub seconds: f64,
}

impl CheckReport {
    pub fn push(&mut self, invariant: Invariant) {
        self.invariants.push(invariant);
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// An invariant that looked at nothing although there are payments proves nothing: its question is wrong.
    pub fn expect_examined(&mut self) {
        let examined = |name: &str| self.find(name).map_or(0, |invariant| invariant.examined);
        let (payments, succeeded) = (examined("payment_once"), examined("payments_entries"));
        if payments == 0 {
            return;
        }
        for invariant in self.invariants.iter_mut().filter(|invariant| invariant.examined == 0) {
            let empty_is_fine = match invariant.name {
                // Nothing was delivered twice.
                "duplicates_equal" => true,
                // Of entries, which declined payments do not have.
                "payments_entries" | "running_balances" | "entry_accounts" | "debits_equal_credits" => {
                    succeeded == 0
                }
                _ => false,
            };
            if !empty_is_fine {
                invariant.violation(|| format!("nothing was examined, though there are {payments} payments"));
            }
        }
    }

    pub fn ok(&self) -> bool {
        !self.invariants.is_empty() && self.invariants.iter().all(|invariant| invariant.violations == 0)
    }

    /// One line a broken invariant.
    pub fn broken(&self) -> Vec<String> {
        self.invariants
            .iter()
            .filter(|invariant| invariant.violations > 0)
            .map(|i| format!("{}: {} of {}: {}", i.name, i.violations, i.examined, i.examples.join("; ")))
            .collect()
    }

    pub fn find(&self, name: &str) -> Option<&Invariant> {
        self.invariants.iter().find(|invariant| invariant.name == name)
    }

    pub fn human(&self) -> String {
        let mut text = String::from("ledger check\n\n");
        let width = self.invariants.iter().map(|i| i.name.len()).max().unwrap_or(0);
        for i in &self.invariants {
            let verdict = if i.violations == 0 { "ok    " } else { "BROKEN" };
            let _ =
                writeln!(text, "  {verdict}  {:<width$}  {:>12}  {}", i.name, thousands(i.examined), i.claim);
            if i.violations > 0 {
                let _ = writeln!(text, "          {} violation(s):", thousands(i.violations));
                for example in &i.examples {
                    let _ = writeln!(text, "            {example}");
                }
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "  note    {note}");
        }
        let verdict = if self.ok() { "all invariants hold" } else { "the ledger is NOT right" };
        let _ = writeln!(text, "\n  {verdict} ({} s)", rounded(self.seconds));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(payments: u64, entries: u64, name: &'static str) -> bool {
        let mut report = CheckReport::default();
        for (name, examined) in [("payment_once", payments), ("payments_entries", entries), (name, 0)] {
            report.push(Invariant { examined, ..Invariant::new(name, "") });
        }
        report.expect_examined();
        report.ok()
    }

    #[test]
    fn an_invariant_that_examined_nothing_does_not_hold_silently() {
        assert!(check(0, 0, "kafka_order"), "an empty ledger is right");
        assert!(!check(3, 2, "kafka_order"));
        assert!(!check(3, 2, "running_balances"));
        assert!(check(3, 0, "running_balances"), "all payments were declined");
        assert!(check(3, 2, "duplicates_equal"));
    }
}
