//! What is struck, how, and where a move stands then. PURE.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Component {
    Shardctl,
    /// The first proxy; the second one is never touched.
    Proxy,
    Source,
    Target,
    /// The standby of the source, for which its commits wait.
    Replica,
    /// The primary of the default shard, which is neither source nor target.
    Catalog,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    /// SIGKILL; back after a few seconds.
    Kill,
    /// SIGSTOP for longer than a proxy's lease.
    Stop,
    /// Nothing passes between it and the mover (replication included) or, for the proxy, between it and all shards or
    /// the catalog alone, for longer than a proxy's lease.
    Cut,
}

/// Columns of the matrix: phases of `shardctl`, the short ones with their neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Announcing,
    Arming,
    Copying,
    Verifying,
    Fencing,
    Reversing,
    BackFencing,
    Cleaning,
}

impl Component {
    pub const ALL: [Component; 6] = [
        Component::Shardctl,
        Component::Proxy,
        Component::Source,
        Component::Target,
        Component::Replica,
        Component::Catalog,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Component::Shardctl => "shardctl",
            Component::Proxy => "proxy",
            Component::Source => "source",
            Component::Target => "target",
            Component::Replica => "replica",
            Component::Catalog => "catalog",
        }
    }
}

impl Blow {
    pub const ALL: [Blow; 3] = [Blow::Kill, Blow::Stop, Blow::Cut];

    pub fn name(self) -> &'static str {
        match self {
            Blow::Kill => "kill",
            Blow::Stop => "stop",
            Blow::Cut => "cut",
        }
    }
}

impl Phase {
    pub const ALL: [Phase; 8] = [
        Phase::Announcing,
        Phase::Arming,
        Phase::Copying,
        Phase::Verifying,
        Phase::Fencing,
        Phase::Reversing,
        Phase::BackFencing,
        Phase::Cleaning,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Phase::Announcing => "announcing",
            Phase::Arming => "arming",
            Phase::Copying => "copying",
            Phase::Verifying => "verifying",
            Phase::Fencing => "fencing",
            Phase::Reversing => "reversing",
            Phase::BackFencing => "back_fencing",
            Phase::Cleaning => "cleaning",
        }
    }

    /// Where the mover can be stopped, as SHARDCTL_FAULT_DIR names it: the phase on record comes first.
    pub fn places(self) -> &'static [&'static str] {
        match self {
            Phase::Announcing => &["announcing"],
            Phase::Arming => &["arming", "arming-published"],
            Phase::Copying => &["copying", "copying-snapshot", "copying-copied", "copying-subscribed"],
            Phase::Verifying => &["catching_up", "verifying"],
            Phase::Fencing => {
                &["fencing-held", "fencing-locked", "fencing-shut", "fencing-owned", "fencing-flipped"]
            }
            Phase::Reversing => &["reversing-unsubscribed", "reversing", "window"],
            Phase::BackFencing => &[
                "back_fencing-held",
                "back_fencing-locked",
                "back_fencing-shut",
                "back_fencing-owned",
                "back_fencing-flipped",
            ],
            Phase::Cleaning => &[
                "closing-unsubscribed",
                "cleaning-deleted",
                "cleaning-disarmed",
                "returning-unsubscribed",
                "emptying-deleted",
            ],
        }
    }
}

/// One run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    pub component: Component,
    pub phase: Phase,
    pub place: &'static str,
    pub blow: Blow,
}

impl Cell {
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.component.name(), self.place, self.blow.name())
    }

    /// The phase that the move's row must show while the mover stands there. A flip writes the next one itself.
    pub fn recorded(&self) -> &'static str {
        match self.place {
            "fencing-flipped" => "reversing",
            "back_fencing-flipped" => "returning",
            place => place.split('-').next().unwrap_or(place),
        }
    }

    /// Whether a roll-back leads there.
    pub fn by_rollback(&self) -> bool {
        ["back_fencing", "returning", "emptying"].iter().any(|phase| self.place.starts_with(phase))
    }

    fn is(&self, word: &str) -> bool {
        [self.component.name(), self.phase.name(), self.place, self.blow.name()].contains(&word)
    }
}

/// Every component in every phase, in an order of the seed, and again from the start when more runs are wanted. Blows take
/// turns, so that a few runs have all of them; `words` leave only cells of these names.
pub fn draw(runs: u64, seed: u64, words: &[&str]) -> Vec<Cell> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cells = Vec::new();
    let mut turn = random.random_range(0..Blow::ALL.len());
    // What the words leave may need several draws of place and blow.
    for _ in 0..runs.saturating_mul(1000) {
        let mut all: Vec<(Component, Phase)> =
            Component::ALL.iter().flat_map(|c| Phase::ALL.map(|phase| (*c, phase))).collect();
        all.shuffle(&mut random);
        for (component, phase) in all {
            turn = (turn + 1) % Blow::ALL.len();
            let place = phase.places()[random.random_range(0..phase.places().len())];
            let cell = Cell { component, phase, place, blow: Blow::ALL[turn] };
            if words.iter().all(|word| cell.is(word)) {
                cells.push(cell);
            }
            if cells.len() as u64 >= runs {
                return cells;
            }
        }
        turn += 1;
    }
    cells
}

/// What an operator may do about a move that nobody runs any more, by its phase: words of `shardctl`, the number left out.
pub fn remedies(recorded: &str) -> &'static [&'static [&'static str]] {
    match recorded {
        "announcing" | "arming" | "copying" | "catching_up" | "verifying" | "ready" | "fencing"
        | "releasing" => &[&["resume", "--auto", "--finish"], &["abort"]],
        "reversing" | "window" => &[&["rollback"], &["resume", "--auto", "--finish"]],
        // Where a roll-back that was given up is in the window again, it has to be asked for once more.
        "back_verifying" | "back_fencing" | "back_releasing" => &[&["rollback"]],
        _ => &[&["resume"]],
    }
}

/// Clean and counted runs of each cell: rows are components, columns phases.
pub fn matrix(results: &[(Cell, bool)]) -> Vec<(Component, Vec<(u64, u64)>)> {
    let count = |component: Component, phase: Phase| {
        let of = results.iter().filter(|(cell, _)| cell.component == component && cell.phase == phase);
        of.fold((0, 0), |(clean, all), (_, ok)| (clean + u64::from(*ok), all + 1))
    };
    Component::ALL.iter().map(|one| (*one, Phase::ALL.map(|phase| count(*one, phase)).to_vec())).collect()
}

pub fn shown(results: &[(Cell, bool)]) -> String {
    let mut text = format!("{:<10}", "clean/runs");
    Phase::ALL.iter().for_each(|phase| text += &format!(" {:>12}", phase.name()));
    for (component, counts) in matrix(results) {
        text += &format!("\n{:<10}", component.name());
        for (clean, all) in counts {
            let cell = if all == 0 { "-".to_owned() } else { format!("{clean}/{all}") };
            text += &format!(" {cell:>12}");
        }
    }
    text
}

pub fn json(results: &[(Cell, bool)]) -> Value {
    let row = |counts: &[(u64, u64)]| -> Value {
        let cells = Phase::ALL.iter().zip(counts);
        cells.map(|(phase, (clean, all))| (phase.name(), json!({"clean": clean, "runs": all}))).collect()
    };
    matrix(results).iter().map(|(component, counts)| (component.name(), row(counts))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_strikes_every_component_in_every_phase() {
        let cells = draw(48, 7, &[]);
        assert_eq!(cells, draw(48, 7, &[]));
        assert_ne!(cells, draw(48, 8, &[]));
        let results: Vec<_> = cells.iter().map(|cell| (*cell, cell.blow != Blow::Cut)).collect();
        assert!(matrix(&results).iter().all(|(_, counts)| counts.iter().all(|(_, all)| *all == 1)));
        for blow in Blow::ALL {
            assert!(cells.iter().filter(|cell| cell.blow == blow).count() >= 15);
        }
        let cuts = cells.iter().filter(|cell| cell.blow == Blow::Cut).count();
        assert_eq!(shown(&results).matches("0/1").count(), cuts);
    }

    #[test]
    fn words_leave_what_they_name() {
        let cells = draw(3, 1, &["source", "fencing-owned", "kill"]);
        assert_eq!(cells.len(), 3);
        assert!(cells.iter().all(|cell| cell.name() == "source/fencing-owned/kill"));
        assert!(draw(1, 1, &["nobody"]).is_empty());
    }

    #[test]
    fn a_flip_has_written_the_next_phase() {
        for cell in draw(480, 3, &[]) {
            assert_eq!(
                cell.recorded() == "reversing",
                matches!(cell.place, "fencing-flipped" | "reversing" | "reversing-unsubscribed")
            );
            assert!(!remedies(cell.recorded()).is_empty());
        }
    }
}
