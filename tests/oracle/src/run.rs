//! Runs cases on both sides.

use anyhow::Result;

use crate::answer::{Event, Verdict};
use crate::catalog::{Case, Statement, What};
use crate::schema::{self, Rows};
use crate::sides::{MODES, Mode, Shards, Sides};

/// What is known about one statement of one case after all of its modes.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub theme: String,
    pub line: usize,
    pub sql: String,
    pub modes: Vec<(Mode, Verdict)>,
    pub texts: Option<(String, String)>,
    /// Of single statements: did more than one shard work for it?
    pub several_shards: Option<bool>,
    /// Not run: a statement of its script in front of it was refused or differed.
    pub skipped: bool,
    /// It differs, and the catalogue says so.
    pub deviates: bool,
    /// Its answer is an error, on both.
    pub failed: bool,
}

impl Record {
    fn new(case: &Case, statement: &Statement) -> Record {
        Record::of(case.theme.clone(), case.line, statement.sql.clone())
    }

    pub(crate) fn of(theme: String, line: usize, sql: String) -> Record {
        Record {
            theme,
            line,
            sql,
            modes: Vec::new(),
            texts: None,
            several_shards: None,
            skipped: false,
            failed: false,
            deviates: false,
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.modes.iter().fold(Verdict::Equal, |all, (_, verdict)| all.and(verdict.clone()))
    }
}

pub(crate) struct Runner<'a> {
    pub sides: Sides,
    pub rows: &'a [Rows],
    pub shards: Option<Shards>,
    /// Which modes are run.
    pub modes: &'a [Mode],
}

impl Runner<'_> {
    pub(crate) fn case(&mut self, case: &Case) -> Result<Vec<Record>> {
        let mut records = self.run(case)?;
        let steps = match &case.what {
            What::Read(statement) | What::Write(statement, _) => std::slice::from_ref(statement),
            What::Script { steps, .. } => steps.as_slice(),
        };
        for (statement, record) in steps.iter().zip(&mut records) {
            if statement.deviates.is_none() || record.skipped {
                continue;
            }
            record.deviates = matches!(record.verdict(), Verdict::Different(_));
            if !record.deviates {
                let why = "  it does not deviate any more: remove the directive\n".to_owned();
                record.modes.push((Mode::Simple, Verdict::Different(why)));
            }
        }
        Ok(records)
    }

    fn run(&mut self, case: &Case) -> Result<Vec<Record>> {
        match &case.what {
            What::Read(statement) => Ok(vec![self.read(case, statement)?]),
            What::Write(statement, tables) => Ok(vec![self.write(case, statement, tables)?]),
            What::Script { steps, cleanup, tables, simple_only } => {
                self.script(case, steps, cleanup, tables, *simple_only)
            }
        }
    }

    fn modes_of(&self, statement: &Statement) -> Vec<Mode> {
        MODES
            .into_iter()
            .filter(|mode| self.modes.contains(mode) && (*mode == Mode::Simple || !statement.simple_only))
            .filter(|mode| *mode != Mode::Binary || !statement.text_only)
            .collect()
    }

    fn read(&mut self, case: &Case, statement: &Statement) -> Result<Record> {
        let mut record = Record::new(case, statement);
        record.several_shards = several_shards(&mut self.sides, &statement.sql)?;
        for mode in self.modes_of(statement) {
            let outcome = self.sides.ask(statement, mode)?;
            record.failed |= outcome.failed;
            record.texts = record.texts.or(outcome.texts);
            record.modes.push((mode, outcome.verdict));
        }
        Ok(record)
    }

    /// In the simple protocol it commits; in the others it is rolled back after the comparison.
    fn write(&mut self, case: &Case, statement: &Statement, tables: &[String]) -> Result<Record> {
        let mut record = Record::new(case, statement);
        record.several_shards = several_shards(&mut self.sides, &statement.sql)?;
        for mode in self.modes_of(statement) {
            if mode != Mode::Simple {
                self.sides.both("BEGIN")?;
            }
            let outcome = self.sides.ask(statement, mode)?;
            record.failed |= outcome.failed;
            let refused = matches!(outcome.verdict, Verdict::Refused(_));
            let mut verdict = outcome.verdict;
            if !refused && !(mode != Mode::Simple && outcome.failed) {
                verdict = verdict.and(self.sides.tables_are_equal(tables)?);
            }
            if mode == Mode::Simple {
                if let Some(shards) = &mut self.shards {
                    verdict = verdict.and(shards.check(tables)?);
                }
                if refused {
                    // Nothing of it may be left.
                    schema::restore(&mut self.sides.one.client, self.rows, tables)?;
                    verdict = verdict.and(self.sides.tables_are_equal(tables)?);
                } else {
                    self.restore(tables)?;
                }
            } else {
                self.sides.both("ROLLBACK")?;
            }
            record.texts = record.texts.or(outcome.texts);
            record.modes.push((mode, verdict));
        }
        Ok(record)
    }

    pub(crate) fn restore(&mut self, tables: &[String]) -> Result<()> {
        schema::restore(&mut self.sides.one.client, self.rows, tables)?;
        schema::restore(&mut self.sides.four.client, self.rows, tables)
    }

    fn script(
        &mut self,
        case: &Case,
        steps: &[Statement],
        cleanup: &[String],
        tables: &[String],
        simple_only: bool,
    ) -> Result<Vec<Record>> {
        let mut records: Vec<Record> = steps.iter().map(|step| Record::new(case, step)).collect();
        let modes = if simple_only { &MODES[..1] } else { &MODES[..2] };
        for mode in modes.iter().filter(|mode| self.modes.contains(mode)) {
            self.sides.reconnect()?;
            let mut ended = false;
            for (step, record) in steps.iter().zip(&mut records) {
                if ended {
                    record.skipped |= record.modes.is_empty();
                    continue;
                }
                let mode = if step.simple_only { Mode::Simple } else { *mode };
                let outcome = self.sides.ask(step, mode)?;
                ended = outcome.verdict != Verdict::Equal && step.deviates.is_none();
                record.failed |= outcome.failed;
                record.texts = record.texts.take().or(outcome.texts);
                record.modes.push((mode, outcome.verdict));
            }
            self.sides.both("ROLLBACK")?;
            if !ended {
                let verdict = self.sides.tables_are_equal(tables)?;
                if let (Some(last), true) = (records.last_mut(), verdict != Verdict::Equal) {
                    last.modes.push((*mode, verdict));
                }
            }
            for sql in cleanup {
                self.sides.both(sql)?;
            }
            self.sides.reconnect()?;
            if !tables.is_empty() {
                self.restore(tables)?;
            }
        }
        Ok(records)
    }
}

/// What EXPLAIN ROUTE says of it; `None` when it says nothing.
pub(crate) fn several_shards(sides: &mut Sides, sql: &str) -> Result<Option<bool>> {
    let Ok(events) = sides.four.client.simple(&format!("EXPLAIN ROUTE {sql}"), None) else {
        sides.reconnect()?;
        return Ok(None);
    };
    let last = events.iter().rev().find_map(|event| match event {
        Event::Row(values) => values.first().cloned().flatten(),
        _ => None,
    });
    Ok(last.map(|line| {
        let line = String::from_utf8_lossy(&line);
        ["all shards", "shards ", "several shards"].iter().any(|start| line.starts_with(start))
    }))
}
