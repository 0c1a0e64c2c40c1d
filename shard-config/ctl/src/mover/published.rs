//! The tables that a move takes along: those that were sharded when its guards came, which are published, copied, compared and in the
//! end deleted. One that became sharded later (its definition was under way when nothing guarded yet, or somebody has declared
//! it meanwhile) has rows of the scope that no one copies: the move does not cut over, and nothing of it is deleted.

use serde_json::{Value, json};
use shard_config::Config;

use super::job::Job;
use super::run::{Hopeless, Runner};
use super::tables::{Table, sharded};
use crate::direct::Db;

/// In `Job::detail`; older versions have not noted it.
const NOTED: &str = "published";

fn noted(job: &Job) -> Option<Vec<&str>> {
    job.detail.get(NOTED)?.as_array().map(|names| names.iter().filter_map(Value::as_str).collect())
}

/// What is in one of them only.
fn changed(noted: &[&str], tables: &[Table]) -> Option<String> {
    let new = tables.iter().map(Table::full_name).find(|name| !noted.contains(&name.as_str()));
    let gone = noted.iter().find(|name| !tables.iter().any(|table| table.full_name() == **name));
    match (new, gone) {
        (Some(new), _) => {
            Some(format!("{new} has become a sharded table since the move began, so its rows are not moved"))
        }
        (None, Some(gone)) => Some(format!("{gone}, whose rows are moved, is no sharded table any more")),
        (None, None) => None,
    }
}

/// Of the sharded tables of a shard those whose rows the move has copied, and the others.
pub async fn of_move(db: &Db, job: &Job, config: &Config) -> anyhow::Result<(Vec<Table>, Vec<Table>)> {
    let tables = sharded(db, config).await?;
    let Some(noted) = noted(job) else { return Ok((tables, Vec::new())) };
    for name in &noted {
        let there = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                     WHERE n.nspname || '.' || c.relname = $1 AND c.relkind IN ('r', 'p'))";
        anyhow::ensure!(
            tables.iter().any(|table| table.full_name() == *name) || !db.holds(there, &[name]).await?,
            "{name}, whose rows were copied, is no sharded table any more: declare it as it was until the move is over"
        );
    }
    Ok(tables.into_iter().partition(|table| noted.contains(&table.full_name().as_str())))
}

impl Runner<'_> {
    /// From now on the move is about these tables.
    pub(super) async fn note_tables(&mut self, tables: &[Table]) -> anyhow::Result<()> {
        let names: Vec<_> = tables.iter().map(Table::full_name).collect();
        self.job.set(&self.control, json!({ NOTED: names })).await
    }

    /// The sharded tables of the source, which are those that the move is about.
    pub(super) async fn published(&self) -> anyhow::Result<Vec<Table>> {
        let tables = self.tables().await?;
        match noted(&self.job).and_then(|noted| changed(&noted, &tables)) {
            Some(text) => Err(Hopeless(format!("{text}: plan again")).into()),
            None => Ok(tables),
        }
    }
}
