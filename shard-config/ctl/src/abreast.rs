//! Steps of a plan, several at a time. Each is a move of its own, so nothing here is needed again when this program ends: what
//! has begun is gone on with by `resume`, and what has not is planned again.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use shard_config::plan::Step;

use crate::aim::Aim;
use crate::apply::{create, made};
use crate::direct::{Db, Servers};
use crate::exit;
use crate::look::Screen;
use crate::mover::preflight;
use crate::mover::run::Options;
use crate::moves::{Ended, drive, refusal, said};

/// How the steps ended so far. PURE.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    done: Vec<i64>,
    /// Moves, if they were begun, that did not come where they were wanted: status, and why.
    missed: Vec<(Option<i64>, u8, String)>,
}

impl Tally {
    fn add(&mut self, id: Option<i64>, status: u8, text: String) {
        match (id, status) {
            (Some(id), 0) => self.done.push(id),
            _ => self.missed.push((id, status, text)),
        }
    }

    /// Whether another one may be begun.
    fn goes_on(&self) -> bool {
        self.missed.is_empty()
    }

    /// `all`: steps of the plan; `begun`: those of them that were looked at.
    fn ended(mut self, all: usize, begun: usize, options: Options) -> Ended {
        self.done.sort_unstable();
        let done = &self.done;
        let Some((_, first, _)) = self.missed.first() else {
            return said(made(done, options), json!({ "moves": done }), 0);
        };
        // Who detaches did so from all of them.
        let status =
            if self.missed.iter().all(|(_, status, _)| status == first) { *first } else { exit::FAILED };
        let mut open: Vec<i64> = self.missed.iter().filter_map(|(id, _, _)| *id).collect();
        open.sort_unstable();
        let left = all - begun + self.missed.iter().filter(|(id, _, _)| id.is_none()).count();
        let after = if open.is_empty() { String::new() } else { format!("when {open:?} are over: ") };
        let texts: String = self.missed.iter().map(|(_, _, text)| format!("{}\n", text.trim_end())).collect();
        let text = format!(
            "{texts}moves that are made: {done:?}; others that were begun: {open:?}; steps not begun: {left}\n\
             go on: {after}plan again, and apply the new plan"
        );
        said(text, json!({ "made": done, "missed": open, "steps_left": left }), status)
    }
}

/// At most `at_once` of them at the same time; none is begun after one that did not come about.
pub(crate) async fn several(
    servers: &Servers,
    control: &Db,
    steps: &[Step],
    (options, limits): (Options, &Value),
    at_once: usize,
    screen: Screen,
) -> Ended {
    // Several bars would be drawn over each other.
    let screen = Screen { bar: false, ..screen };
    let mut tally = Tally::default();
    let mut begun = 0;
    let mut running = FuturesUnordered::new();
    loop {
        while tally.goes_on() && running.len() < at_once && begun < steps.len() {
            running.push(one(servers, control, &steps[begun], options, limits, screen));
            begun += 1;
        }
        let Some((id, ended)) = running.next().await else { break };
        let (status, text) = match ended {
            Ok((report, status)) => (status, report.text),
            Err(error) => (exit::FAILED, format!("{error:#}")),
        };
        if !screen.json {
            eprintln!("{}", text.trim_end());
        }
        tally.add(id, status, text);
    }
    tally.ended(steps.len(), begun, options)
}

/// The move that was made of the step, if it was, and how that ended.
async fn one(
    servers: &Servers,
    control: &Db,
    step: &Step,
    options: Options,
    limits: &Value,
    screen: Screen,
) -> (Option<i64>, anyhow::Result<Ended>) {
    if let Some(refused) = refusal(&preflight::unreachable(servers, [step.source, step.target]).await) {
        return (None, Ok(refused));
    }
    match create(control, step, options, limits).await {
        Ok(job) => (Some(job.id), drive(servers, job.id, options, Aim::of(&job, options), screen).await),
        Err(error) => (None, Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_fails_ends_the_plan_and_what_is_left_is_said() {
        let mut tally = Tally::default();
        for id in [9, 7] {
            tally.add(Some(id), 0, String::new());
            assert!(tally.goes_on());
        }
        let (report, status) = tally.ended(2, 2, Options::default());
        assert_eq!((status, report.json), (0, json!({ "moves": [7, 9] })));
        assert!(report.text.ends_with("until shardctl finish 7; shardctl finish 9\n"), "{}", report.text);

        let mut tally = Tally::default();
        tally.add(Some(7), 0, String::new());
        tally.add(Some(8), exit::DIFFERENT, "move 8: rows differ\n".to_owned());
        assert!(!tally.goes_on());
        tally.add(None, exit::REFUSED, "shard 3 is gone".to_owned());
        let (report, status) = tally.ended(6, 3, Options::default());
        assert_eq!(status, exit::FAILED, "they ended in different ways");
        assert_eq!(report.json, json!({ "made": [7], "missed": [8], "steps_left": 4 }));
        for text in ["move 8: rows differ\n", "shard 3 is gone\n", "when [8] are over: plan again"] {
            assert!(report.text.contains(text), "{}", report.text);
        }
        let mut tally = Tally::default();
        for id in [1, 2] {
            tally.add(Some(id), exit::DETACHED, "detached".to_owned());
        }
        assert_eq!(tally.ended(9, 2, Options::default()).1, exit::DETACHED);
    }
}
