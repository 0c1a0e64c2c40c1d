//! The door between a session and `crate::multi`: everything that spans several shards.
//!
//! A session knows how to talk to ONE server at a time. What needs several goes through `Participants`, which
//! lends out the session's sockets for the time of one request:
//!
//! - a second shard joins an open transaction, explicit or implicit: the session itself keeps routing statement by
//!   statement; participants collect in `servers`;
//! - the end of such a transaction (`MultiWork::Commit`, `MultiWork::Rollback`), and what all of its servers must
//!   hear (`MultiWork::Everywhere`);
//! - one statement, or one message of several, for several shards (`MultiWork::Statement`, `MultiWork::Several`).

use std::rc::Rc;
use std::sync::Arc;

use super::client::Activity;
use super::config::config_row;
use super::hang_up::HangUp;
use super::local::{begin_tag, in_progress};
use super::prepared::Entry;
use super::transaction::Transaction;
use super::{Flow, Next, Pending, Session};
use crate::multi::Failure;
use crate::route::plan::{ConfigValue, Effect, Plan, SavepointVerb};
use crate::route::{Resolved, Routed, RoutedStatement};
use crate::wire::build;

pub use super::dispatch::{Destination, Place};
pub use super::participants::{Message, Participants};
pub use super::running::{Gathered, Name, Running};
pub use super::transaction::set_modes;

/// What a session asks of `crate::multi`.
pub enum MultiWork {
    /// COMMIT (or the Sync that ends an implicit transaction). `tag`: CommandComplete is due, too.
    Commit {
        tag: bool,
        chain: bool,
        ready: bool,
    },
    Rollback {
        tag: bool,
        chain: bool,
        ready: bool,
    },
    /// SAVEPOINT, SET LOCAL and the like, for every participant.
    /// `answer` is what the client is told then.
    Everywhere {
        sql: String,
        answer: Vec<u8>,
        plan: Arc<Plan>,
        ready: bool,
    },
    /// One statement that runs on several shards.
    Statement(MultiStatement),
    /// More rows of a portal that has given some; `max_rows` as in Execute.
    Resume {
        portal: Box<[u8]>,
        max_rows: i32,
    },
    /// Several statements of one simple query, for different shards.
    Several {
        sql: Rc<[u8]>,
        routed: Routed,
    },
    /// SQL PREPARE or EXECUTE; `portal`: by the extended protocol.
    Prepared {
        plan: Arc<Plan>,
        text: String,
        portal: Option<OfPortal>,
    },
    /// Describe of an SQL EXECUTE that was prepared, or bound, by the protocol.
    DescribeExecute {
        plan: Arc<Plan>,
        text: String,
        of: Described,
    },
    /// One participant of a block has failed, and the client knows: the others give up what they hold. Says nothing.
    FailOthers,
}

/// How the client wants the rows of an EXECUTE: the statement that it runs takes the portal's place.
#[derive(Debug, Clone)]
pub struct OfPortal {
    pub name: Box<[u8]>,
    /// Number and format codes of its columns, as in Bind.
    pub results: Box<[u8]>,
    pub max_rows: i32,
}

#[derive(Debug, Clone)]
pub enum Described {
    Statement,
    /// With these formats.
    Portal(Box<[u8]>),
}

/// One statement for several shards, by either protocol.
pub struct MultiStatement {
    pub resolved: Resolved,
    /// The whole message's text, and the statement's place in it.
    pub sql: Rc<[u8]>,
    pub routed: RoutedStatement,
    pub protocol: Protocol,
}

impl MultiStatement {
    pub fn text(&self) -> &[u8] {
        self.sql.get(self.routed.text.clone()).unwrap_or_default()
    }
}

pub enum Protocol {
    /// Replies: rows or not, CommandComplete. ReadyForQuery is said by the session.
    Simple,
    /// Replies to Execute (and to a Describe of the portal that was kept back). ParseComplete and BindComplete were
    /// said, ReadyForQuery comes with Sync.
    Extended { entry: Rc<Entry>, bind: Rc<[u8]>, describe: bool, max_rows: i32, portal: Box<[u8]> },
}

impl MultiWork {
    /// Is it part of an extended batch, whose Sync is still to come?
    pub fn is_extended(&self) -> bool {
        match self {
            Self::Statement(statement) => matches!(statement.protocol, Protocol::Extended { .. }),
            Self::Resume { .. } | Self::DescribeExecute { .. } => true,
            Self::Prepared { portal, .. } => portal.is_some(),
            Self::Several { .. } | Self::FailOthers => false,
            Self::Commit { ready, .. } | Self::Rollback { ready, .. } | Self::Everywhere { ready, .. } => {
                !ready
            }
        }
    }
}

/// Does what was asked and says the replies. Errors become ErrorResponse here.
pub(super) async fn run(session: &mut Session, work: MultiWork) {
    // So that maintenance sees that it waits for servers.
    session.info.set_activity(Activity::Active, session.worker.now.get());
    session.hang_up = HangUp::Watched;
    if !matches!(work, MultiWork::Statement(_)) {
        // Nothing of it is judged yet.
        session.term = None;
    }
    let chained = session.chained(&work);
    let result = crate::multi::run(&mut Participants::new(session), &work).await;
    if session.hang_up == HangUp::Watched {
        session.hang_up = HangUp::Ignored;
    }
    session.statement_state = None;
    if matches!(work, MultiWork::FailOthers) {
        session.set_activity();
        return;
    }
    session.multi_done(&work, chained, result);
}

impl Session {
    /// The transaction that AND CHAIN begins, made while there is the one that it takes its modes from.
    fn chained(&self, work: &MultiWork) -> Option<Transaction> {
        let (MultiWork::Commit { chain: true, .. } | MultiWork::Rollback { chain: true, .. }) = work else {
            return None;
        };
        let committed = matches!(work, MultiWork::Commit { .. });
        let implicit = || Transaction::new("BEGIN", false, self.settings.clone());
        Some(self.transaction.as_ref().map_or_else(implicit, |transaction| transaction.next(committed)))
    }

    /// Says the error, if any, and ReadyForQuery if one is due.
    fn multi_done(&mut self, work: &MultiWork, chained: Option<Transaction>, result: Result<(), Failure>) {
        match result {
            Ok(()) => {
                if let Some(mut next) = chained {
                    next.settings_before = self.settings.clone();
                    self.transaction = Some(Box::new(next));
                }
                if let MultiWork::Everywhere { sql, plan, .. } = work {
                    self.apply(&Pending::of(plan, sql.clone()));
                }
            }
            Err(Failure::Ours(error)) if work.is_extended() => self.refuse_extended(error),
            Err(Failure::Ours(error)) => {
                self.worker.stats.refusals.add(1);
                error.write(self.client_output());
            }
            Err(Failure::Server(message)) => {
                self.worker.stats.server_errors.add(1);
                let deadlocked = self.is_deadlock(&message).then(super::errors::deadlock);
                self.client_output().extend_from_slice(deadlocked.as_deref().unwrap_or(&message));
                self.skip = work.is_extended();
            }
        }
        // EXECUTE: the message that was put in its place ends with a Sync.
        if !work.is_extended() && !self.hidden_bind {
            let status = self.status();
            build::ready(self.client_output(), status);
        }
        self.answered = true;
        self.set_activity();
    }

    /// Must the end of this implicit transaction be said by `multi`? With several participants, and also with one
    /// that has heard an explicit BEGIN, or one that is left of several.
    pub(super) fn needs_multi_end(&self) -> bool {
        let enlisted = self.servers.iter().filter(|s| s.enlisted);
        let left = |s: &Box<crate::pool::Server>| self.participant_lost || s.status != b'I';
        self.transaction.is_none() && (enlisted.clone().count() > 1 || enlisted.clone().any(left))
    }

    /// What one server cannot do alone: COMMIT, ROLLBACK, SAVEPOINT and SET LOCAL with several participants, COMMIT
    /// of DDL, after which the catalog must be read. `None`: forward it.
    pub(super) fn for_all_participants(
        &mut self,
        plan: &Arc<Plan>,
        text: &[u8],
        ready: bool,
    ) -> Option<Flow> {
        if !self.has_several() {
            return None;
        }
        // A loss that the client has not heard of is an error of its COMMIT.
        let failed = self.transaction.as_ref().is_some_and(|t| t.failed && t.untold.is_none());
        let tag = match &plan.effect {
            Effect::Commit { .. } | Effect::Rollback { .. } => "",
            Effect::Begin { .. } if self.transaction.is_some() => begin_tag(text),
            Effect::Savepoint(SavepointVerb::Savepoint, _) => "SAVEPOINT",
            Effect::Savepoint(SavepointVerb::Release, _) => "RELEASE",
            Effect::Savepoint(SavepointVerb::RollbackTo, _) => "ROLLBACK",
            Effect::Set { value: None, .. } => super::local::reset_tag(text),
            Effect::ResetAll => "RESET",
            Effect::Set { .. } | Effect::SetTransaction { .. } => "SET",
            Effect::Cursor(None) => "CLOSE CURSOR ALL",
            Effect::SetConfig { .. } => "SELECT 1",
            _ => return None,
        };
        if !self.queue.is_empty() {
            return Some(self.wait_for_replies());
        }
        let work = match &plan.effect {
            Effect::Commit { chain } if !failed => MultiWork::Commit { tag: true, chain: *chain, ready },
            Effect::Commit { chain } | Effect::Rollback { chain } => {
                MultiWork::Rollback { tag: true, chain: *chain, ready }
            }
            _ => {
                let mut sql = String::from_utf8_lossy(text).into_owned();
                let mut answer = Vec::new();
                if let Effect::SetConfig { value: ConfigValue::Text(value), .. } = &plan.effect {
                    config_row(&mut answer, value, ready);
                }
                if let Effect::Begin { .. } = plan.effect {
                    // Without modes there is nothing that a server must hear.
                    sql = set_modes(&sql, self.routing().standard_conforming_strings)?;
                    // Whatever comes of them.
                    in_progress(self.client_output());
                }
                build::command_complete(&mut answer, tag);
                MultiWork::Everywhere { sql, answer, plan: plan.clone(), ready }
            }
        };
        Some(Flow::DoneThen(Next::Multi(Box::new(work))))
    }

    /// Is the transaction more than its one server can end?
    pub(super) fn has_several(&self) -> bool {
        let enlisted = self.servers.iter().filter(|s| s.enlisted).count();
        // One that is left of several must not commit: its COMMIT becomes a ROLLBACK.
        let lost = self.transaction.as_ref().is_some_and(|t| t.lost);
        enlisted > 1 || (enlisted == 1 && (self.schema_changed || lost))
    }
}
