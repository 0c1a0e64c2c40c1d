//! A client of the proxy that is stopped: what it begins, sends while the proxy sleeps, and may be told.

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    /// Has read its row, and writes it.
    WriteRead,
    /// Has a transaction open in which nothing was done.
    WriteFirst,
    /// Reads its row again.
    Read,
    /// One statement, sent before the fence or after the flip.
    Early,
    Late,
    EarlyRead,
    LateRead,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sleeper {
    /// `None`: no transaction block.
    level: Option<&'static str>,
    work: Work,
}

/// What came of its statement and its COMMIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// With the value that was read or written.
    Done(i64),
    /// With this SQLSTATE, and nothing was to be done.
    Refused(String),
    /// With this SQLSTATE, when it may have been done or not.
    Unknown(String),
    /// No answer, or none that makes sense.
    Nothing,
}

/// Every kind, at every level.
pub fn sleepers() -> Vec<Sleeper> {
    let blocks =
        [Work::WriteRead, Work::WriteFirst, Work::Read].map(|work| LEVELS.map(|level| (Some(level), work)));
    let alone = [Work::Early, Work::Late, Work::EarlyRead, Work::LateRead].map(|work| (None, work));
    blocks.into_iter().flatten().chain(alone).map(|(level, work)| Sleeper { level, work }).collect()
}

impl Sleeper {
    pub fn name(&self) -> String {
        format!("{:?}, {}", self.work, self.level.unwrap_or("autocommit"))
    }

    pub fn reads(&self) -> bool {
        matches!(self.work, Work::Read | Work::EarlyRead | Work::LateRead)
    }

    /// Sends while the old owner still owns the row.
    pub fn is_early(&self) -> bool {
        matches!(self.work, Work::Early | Work::EarlyRead)
    }

    /// Before the proxy is stopped.
    pub async fn begin(&self, client: &Client, table: &str, row: &str) -> Result<()> {
        if let Some(level) = self.level {
            client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await?;
        }
        if matches!(self.work, Work::WriteRead | Work::Read) {
            client.batch_execute(&format!("SELECT n FROM {table} WHERE {row}")).await?;
        }
        Ok(())
    }

    /// As one message, so that all of it is there when the proxy wakes. The answer comes then.
    pub fn send(self, client: Client, table: &str, row: &str) -> JoinHandle<Told> {
        let sql = if self.reads() {
            format!("SELECT n FROM {table} WHERE {row}")
        } else {
            format!("UPDATE {table} SET n = n + 1 WHERE {row} RETURNING n")
        };
        tokio::spawn(async move {
            let answer = match client.simple_query(&sql).await {
                Ok(answer) => answer,
                // Without its COMMIT a transaction is none.
                Err(error) => return told(&error, self.level.is_none()),
            };
            let value = answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            });
            if self.level.is_some()
                && let Err(error) = client.simple_query("COMMIT").await
            {
                return told(&error, true);
            }
            value.map_or(Told::Nothing, Told::Done)
        })
    }
}

fn told(error: &Error, may_be_done: bool) -> Told {
    match error.code().map(|code| code.code().to_owned()) {
        Some(code) if may_be_done && code.starts_with("08") => Told::Unknown(code),
        Some(code) => Told::Refused(code),
        None => Told::Nothing,
    }
}

impl Told {
    pub fn text(&self) -> String {
        format!("{self:?}")
    }
}

/// What is wrong with what a client was told, when the new owner has this value and `since` was added there to what is read. PURE.
pub fn wrong(sleeper: &Sleeper, told: &Told, owned: Option<i64>, since: i64) -> Option<String> {
    let again = |code: &str| code == "40001" || code.starts_with("08") || code.starts_with("57P0");
    let before = if sleeper.reads() { since } else { 0 };
    let written = before + i64::from(!sleeper.reads());
    let fits = match told {
        Told::Done(value) => *value == written && owned == Some(written),
        Told::Refused(code) => again(code) && owned == Some(before),
        Told::Unknown(code) => again(code) && (owned == Some(before) || owned == Some(written)),
        Told::Nothing => false,
    };
    (!fits).then(|| format!("{} was told {told:?}, and the new owner has {owned:?}", sleeper.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_writes_and_reads() {
        let all = sleepers();
        assert_eq!(all.len(), 13);
        let names: std::collections::BTreeSet<String> = all.iter().map(Sleeper::name).collect();
        assert_eq!(names.len(), 13);
        assert_eq!(all.iter().filter(|one| one.reads()).count(), 5);
        assert_eq!(all.iter().filter(|one| one.is_early()).count(), 2);
    }

    #[test]
    fn a_client_is_told_the_truth_or_to_try_again() {
        let all = sleepers();
        let (writer, reader) = (&all[0], all.iter().find(|one| one.reads()).unwrap());
        let fits = |who: &Sleeper, told: Told, owned: i64| wrong(who, &told, Some(owned), 100).is_none();
        let code = |code: &str| Told::Refused(code.to_owned());
        for known in ["40001", "08006", "57P01", "57P03"] {
            assert!(fits(writer, code(known), 0) && fits(reader, code(known), 100), "{known}");
            // It was done all the same.
            assert!(!fits(writer, code(known), 1), "{known}");
        }
        for other in ["XX000", "25P02", "57014"] {
            assert!(!fits(writer, code(other), 0), "{other}");
        }
        assert!(fits(writer, Told::Done(1), 1) && fits(reader, Told::Done(100), 100));
        // By the old owner: what was acknowledged is not there; what was read is old.
        assert!(!fits(writer, Told::Done(1), 0) && !fits(reader, Told::Done(0), 100));
        assert!(!fits(writer, Told::Done(2), 2), "twice");
        let unknown = || Told::Unknown("08007".into());
        assert!(fits(writer, unknown(), 0) && fits(writer, unknown(), 1) && !fits(writer, unknown(), 2));
        assert!(!fits(writer, Told::Nothing, 0));
    }
}
