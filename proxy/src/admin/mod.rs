//! The admin console: what a client sees that connects to the database named `admin`.
//!
//! `commands` is the one table of what can be said; `show` answers it. PgBouncer's commands have PgBouncer's
//! columns, because its exporters and its users' habits depend on them; what is ours has its own command. Sessions
//! hand over the text and render the table, so that simple and extended protocol look alike.

mod commands;
mod show;
pub mod workers;

use std::sync::Arc;

pub use commands::COMMANDS;

use crate::control::Handle;
use crate::route::plan::Refusal;
use crate::shared::Shared;
use crate::worker::WorkerHandle;

/// The database name that opens the console.
pub const DATABASE: &str = "admin";

/// `pg_type.oid` of the columns.
pub const INT8: u32 = 20;
pub const TEXT: u32 = 25;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub columns: Vec<(&'static str, u32)>,
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tag.
    pub tag: &'static str,
}

/// What the commands look at.
#[derive(Debug, Clone)]
pub struct Context {
    pub shared: Arc<Shared>,
    pub control: Handle,
    pub workers: Vec<WorkerHandle>,
}

/// Runs one command; `sql` may end in a semicolon.
pub async fn execute(context: &Context, sql: &str) -> Result<Table, Refusal> {
    let words: Vec<String> = sql
        .trim()
        .trim_end_matches(';')
        .split_whitespace()
        .map(|word| word.trim_matches('"').to_ascii_lowercase())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(command) = commands::find(&words) else {
        let message = format!("there is no admin command \"{}\"", sql.trim());
        return Err(Refusal::new("42601", message, "SHOW HELP lists the commands."));
    };
    show::run(command.name, context).await
}

/// The columns that the command will return, for Describe before Execute; `None` when there is no such command.
pub fn describe(sql: &str) -> Option<&'static [(&'static str, u32)]> {
    let words: Vec<String> =
        sql.trim().trim_end_matches(';').split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    commands::find(&words).map(|command| command.columns)
}
