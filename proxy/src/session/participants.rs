//! A session's servers, lent to `crate::multi`.

use std::rc::Rc;
use std::sync::Arc;

use shard_config::{Bucket, KeyHash, ShardId};

use super::dispatch::Destination;
use super::local::{By, begin_tag, in_progress};
use super::motion::Denied;
use super::portals::BindParams;
use super::prepared::Entry;
use super::running::{Name, Running};
use super::transaction::Transaction;
use super::{Expect, Pending, Session, Want};
use crate::control;
use crate::error::ProxyError;
use crate::motion::Hidden;
use crate::pool::server::ServerKey;
use crate::pool::{Role, Server};
use crate::replica::{Freshness, WriteMark};
use crate::route::plan::{Plan, Refusal};
use crate::route::{ApplyPlan, GatherPlan, NoParams, Params, RoutedStatement};
use crate::session::client::Activity;
use crate::shared::State;
use crate::twophase::Gid;
use crate::wire::{build, read};

/// A whole message of a server.
pub type Message = Vec<u8>;

/// The servers of a session's transaction, lent to `crate::multi`. Nothing is outstanding on any of them.
pub struct Participants<'a> {
    pub(super) session: &'a mut Session,
}

impl<'a> Participants<'a> {
    pub(super) fn new(session: &'a mut Session) -> Self {
        Self { session }
    }

    /// Indices of the participants, in the order in which they joined. They stay valid while this is lent out.
    pub fn indices(&self) -> Vec<usize> {
        (0..self.session.servers.len()).filter(|at| self.session.servers[*at].enlisted).collect()
    }

    pub fn server(&mut self, at: usize) -> &mut Server {
        &mut self.session.servers[at]
    }

    /// The session is pinned to this server.
    pub fn is_pinned(&self, at: usize) -> bool {
        at == 0 && self.session.pinned.is_some()
    }

    /// A write there would be lost (H5).
    pub fn is_demoted(&self, at: usize) -> bool {
        self.session.is_demoted(at)
    }

    pub fn shard_id(&self, at: usize) -> ShardId {
        ShardId(self.session.servers[at].pool.shard_id)
    }

    /// By which the statement was routed: the same for all its shards, from its beginning to its end (H30).
    pub fn state(&self) -> Arc<State> {
        self.session.statement_state.clone().unwrap_or_else(|| self.session.worker.state().clone())
    }

    /// Of a position in `State::shards`.
    pub fn shard_id_at(&self, shard: usize) -> ShardId {
        self.session.worker.state().shards.get(shard).map_or(ShardId(0), |s| s.id)
    }

    /// Positions end here, as the statement knows them: a shard that was added since has none.
    pub fn shard_count(&self) -> usize {
        self.state().shards.len()
    }

    /// Of a statement for all shards: where it goes.
    pub fn members(&self) -> Vec<usize> {
        self.state().members().collect()
    }

    pub fn position(&self, shard: ShardId) -> Option<usize> {
        self.session.worker.state().position(shard)
    }

    pub fn bucket(&self, hash: KeyHash) -> Bucket {
        hash.bucket(self.state().map.buckets())
    }

    pub fn shard_of(&self, hash: KeyHash) -> Result<usize, ProxyError> {
        let shard = self.state().map.shard_of_hash(hash);
        let missing = || ProxyError::no_primary(shard.0, "the map names it but the configuration does not");
        self.position(shard).ok_or_else(missing)
    }

    /// One that is in the transaction already, else any that is up.
    pub fn preferred_shard(&self) -> usize {
        let enlisted = self.session.servers.iter().find(|s| s.enlisted).map(|s| s.shard);
        let up = || self.session.worker.state().shards.iter().position(|s| s.owns && s.primary.is_some());
        enlisted.or_else(up).unwrap_or(0)
    }

    /// Where one of several statements goes, when it may go.
    pub async fn destination(
        &mut self,
        statement: &RoutedStatement,
        sql: &[u8],
    ) -> Result<Destination, ProxyError> {
        let params = NoParams { client_encoding_is_utf8: self.client_encoding_is_utf8() };
        self.destination_with(statement, sql, &params).await
    }

    /// The same, of what an EXECUTE among them runs.
    pub async fn destination_of(&mut self, entry: &Entry, bind: &[u8]) -> Result<Destination, ProxyError> {
        let bind = read::bind(bind).ok_or_else(|| ProxyError::internal("a Bind that cannot be read"))?;
        let params = BindParams { bind, oids: &entry.oids, utf8: self.client_encoding_is_utf8() };
        self.destination_with(&entry.routed, &entry.sql, &params).await
    }

    async fn destination_with<P: Params>(
        &mut self,
        statement: &RoutedStatement,
        sql: &[u8],
        params: &P,
    ) -> Result<Destination, ProxyError> {
        loop {
            let destination = self.session.destination(statement, sql, params);
            match self.session.admit(statement, sql, params, &destination) {
                Ok(()) => return Ok(destination),
                Err(Denied::Hold) => self.session.wait_for_move().await,
                Err(Denied::Never(error)) => return Err(error),
            }
            if let Some(error) = self.session.failure.take() {
                return Err(*error);
            }
        }
    }

    /// What the session answers without a server: BEGIN, COMMIT and SAVEPOINT before any shard has joined.
    pub fn answer_local(&mut self, statement: &RoutedStatement, text: &str) -> Result<(), ProxyError> {
        let unanswered = || ProxyError::internal("a statement that needs a server was kept from all of them");
        let bytes = self.session.local(statement, text.as_bytes(), By::Simple)?.ok_or_else(unanswered)?;
        self.session.client_output().extend_from_slice(&bytes);
        Ok(())
    }

    /// Of a BEGIN within a block, before anything else is said of it.
    pub fn warn_in_progress(&mut self) {
        if self.session.transaction.is_some() {
            in_progress(self.session.client_output());
        }
    }

    /// BEGIN while shards have joined an implicit transaction, which have heard its modes: what they did becomes a part of
    /// the block.
    pub fn begin(&mut self, text: &str, read_only: Option<bool>) -> Result<(), ProxyError> {
        match &mut self.session.transaction {
            None => {
                let transaction =
                    Transaction::new(text, read_only == Some(true), self.session.settings.clone());
                self.session.transaction = Some(Box::new(transaction));
            }
            Some(_) => self.session.begun_again(text, read_only)?,
        }
        build::command_complete(self.session.client_output(), begin_tag(text.as_bytes()));
        Ok(())
    }

    /// The session's own part of a statement that all servers ran.
    pub fn apply(&mut self, plan: &Arc<Plan>, text: &str) {
        self.session.apply(&Pending::of(plan, text.to_owned()));
    }

    pub fn client_encoding_is_utf8(&self) -> bool {
        self.session.routing().client_encoding_is_utf8
    }

    /// No byte of a multi-byte character looks like ASCII (which holds for none of SJIS, BIG5, GBK, UHC, GB18030 and
    /// JOHAB, the encodings that PostgreSQL allows on clients only).
    pub fn client_encoding_is_ascii_safe(&self) -> bool {
        let Some(value) = self.session.routing().get("client_encoding") else { return true };
        let name = value.plain().to_ascii_lowercase();
        let safe = ["utf", "unicode", "latin", "iso", "win", "koi8", "sql_ascii", "default", "euc"];
        safe.iter().any(|prefix| name.starts_with(prefix))
    }

    pub fn control(&self) -> control::Handle {
        self.session.worker.control.clone()
    }

    pub fn new_gid(&self, first: usize, xid: u64) -> Gid {
        let state = self.session.worker.state();
        let proxy = &state.config.proxy;
        Gid::new(&proxy.database, &proxy.name, rand::random(), self.shard_id(first), xid)
    }

    pub fn mark_write(&mut self, shard: usize, bucket: Option<Bucket>) {
        self.session.mark(shard, bucket);
    }

    /// The outcome of what this server was told last is not known: replicas may not show it for a while.
    pub fn abandon_marks(&mut self, at: usize) {
        let pid = self.session.servers[at].key.pid;
        self.take_marks(at, |freshness, mark| freshness.abandon_write(mark, pid));
    }

    /// This server's part was prepared, or may be, and is not finished: replicas may not show it until it is.
    pub fn abandon_prepared(&mut self, at: usize, gid: &Gid) {
        let pid = self.session.servers[at].key.pid;
        let gid: Arc<str> = gid.to_string().into();
        self.take_marks(at, |freshness, mark| freshness.abandon_prepared(mark, pid, gid.clone()));
    }

    fn take_marks(&mut self, at: usize, abandon: impl Fn(&Freshness, WriteMark)) {
        let shard = self.session.servers[at].shard;
        let freshness = &self.session.worker.control.freshness;
        self.session.marks.retain(|mark| {
            let keep = usize::from(mark.shard) != shard;
            if !keep {
                abandon(freshness, *mark);
            }
            keep
        });
    }

    pub fn count_multi_shard(&self) {
        self.session.worker.stats.multi_shard.add(1);
    }

    /// DDL ran in this transaction: its end is followed by a look at the catalog.
    pub fn set_schema_changed(&mut self, plan: &Plan) {
        self.session.schema_changed = true;
        self.session.note_changes(plan);
    }

    /// A cursor was declared on this shard.
    pub fn declared(&mut self, name: &str, shard: usize) {
        if let Some(transaction) = &mut self.session.transaction {
            transaction.declared(name, shard);
        }
    }

    pub fn schema_changed(&self) -> bool {
        self.session.schema_changed
    }

    pub fn take_schema_changed(&mut self) -> bool {
        std::mem::take(&mut self.session.schema_changed)
    }

    pub fn transaction_failed(&mut self) {
        if let Some(transaction) = &mut self.session.transaction {
            transaction.failed = true;
            // Cursors behind the last savepoint are gone, and so are the locks of who keeps their rows.
            self.session.running.rolled_back_to(transaction.depth());
        }
    }

    /// The shard whose part of the transaction is gone, if the client does not know.
    pub fn untold_loss(&self) -> Option<u16> {
        self.session.transaction.as_ref().and_then(|transaction| transaction.untold)
    }

    /// Not even ROLLBACK TO can help.
    pub fn transaction_is_lost(&mut self) {
        if let Some(transaction) = &mut self.session.transaction {
            transaction.failed = true;
            transaction.lost = true;
        } else {
            self.session.participant_lost = true;
        }
    }

    /// Does any shard number types or tables otherwise than the default shard?
    pub fn has_other_numbers(&self) -> bool {
        !self.session.worker.state().catalog.oids.is_empty()
    }

    /// A client's parameter types as this server numbers them.
    pub fn parameter_types(&self, at: usize, oids: &[u8]) -> Vec<u8> {
        self.session.declared(at, oids).unwrap_or_else(|| oids.to_vec())
    }

    /// Is an explicit transaction block open?
    pub fn in_block(&self) -> bool {
        self.session.transaction.is_some()
    }

    /// Brings a shard's primary into the transaction: connection, settings, BEGIN and what followed it (sent, its
    /// answers read). Returns its index; an enlisted shard's index is returned as it is.
    pub async fn enlist(&mut self, shard: usize, begin: bool) -> Result<usize, ProxyError> {
        if let Some(at) = self.session.servers.iter().position(|s| s.shard == shard && s.enlisted) {
            return if self.is_demoted(at) { Err(self.demoted(at)) } else { Ok(at) };
        }
        let pinned = self
            .session
            .servers
            .iter()
            .position(|s| s.shard == shard && s.role == Role::Primary && !s.enlisted);
        let at = match pinned {
            Some(at) if self.is_demoted(at) => return Err(self.demoted(at)),
            Some(at) => at,
            None => {
                self.session.checkout(Want::Primary(shard)).await;
                self.session.info.set_activity(Activity::Active, self.session.worker.now.get());
                if let Some(error) = self.session.failure.take() {
                    return Err(*error);
                }
                let at = self.session.servers.iter().rposition(|s| s.shard == shard);
                at.ok_or_else(|| ProxyError::internal("checked-out server vanished"))?
            }
        };
        let transaction = self.session.transaction.as_ref();
        let wanted = transaction.map_or(&self.session.settings, |t| &t.settings_before).clone();
        let prologue = transaction.map(|t| t.prologue()).or(begin.then(|| "BEGIN".to_owned()));
        let sql = super::settings::replay(&self.session.servers[at].settings, &wanted);
        if !sql.is_empty() {
            self.simple(at, sql.as_bytes()).await?;
        }
        self.session.servers[at].settings = wanted;
        if self.session.forget_others_draws(at) {
            self.simple(at, super::dispatch::DISCARD_SEQUENCES).await?;
        }
        if let Some(prologue) = prologue {
            self.simple(at, prologue.as_bytes()).await?;
        }
        self.session.servers[at].enlisted = true;
        self.session.may_join().map(|()| at)
    }

    pub fn default_shard(&self) -> usize {
        self.session.default_shard()
    }

    /// How the text of one statement is answered by bringing its rows together.
    pub fn gather_plan(&self, text: &[u8]) -> Result<GatherPlan, Refusal> {
        self.session.with_router(|router, context, _| router.gather(context, text))
    }

    /// What this shard must not show.
    pub fn hidden_on(&self, state: &State, shard: usize) -> Option<Hidden> {
        let motions = state.following.motions.as_deref()?;
        motions.hidden_on(self.shard_id_at(shard)).cloned()
    }

    /// The text of one statement as this shard must run it: `None`, as it is.
    pub fn hidden_text(&self, shard: usize, text: &[u8], generated: bool) -> Result<Option<String>, Refusal> {
        let state = self.state();
        let Some(hidden) = self.hidden_on(&state, shard) else { return Ok(None) };
        let hidden = self
            .session
            .with_router(|router, context, _| router.hidden_text(context, text, &hidden, generated))?;
        Ok(Some(hidden))
    }

    /// A condition on the rows of a table that this shard may show; `None`: all of them.
    pub fn shown(&self, shard: usize, schema: &str, name: &str) -> Option<String> {
        let state = self.state();
        let hidden = self.hidden_on(&state, shard)?;
        crate::route::shown(&state.catalog, &hidden, schema, name, None)
    }

    /// How a write over several shards is done to copies first.
    pub fn apply_plan(&self, text: &[u8]) -> Result<ApplyPlan, Refusal> {
        self.session.with_router(|router, context, _| router.apply(context, text))
    }

    /// A number was drawn from a sequence on a connection that is not the transaction's own: its currval() is not the
    /// session's.
    pub fn drew_elsewhere(&mut self) {
        if let Some(transaction) = &mut self.session.transaction {
            transaction.drew_elsewhere = true;
        }
    }

    /// SET LOCALs of the open block, for a server that does not take part in it.
    pub fn local_settings(&self) -> Vec<String> {
        self.session.transaction.as_ref().map_or_else(Vec::new, |t| t.local_settings())
    }

    /// Keeps what has rows left until the transaction ends. Connections of its own leave the participants.
    pub fn keep(&mut self, name: Name, running: Running) {
        let depth = self.session.transaction.as_ref().map_or(0, |t| t.depth());
        self.session.running.keep(name, running, depth);
    }

    /// May one more be kept? Asked before anything is done for it.
    pub fn may_keep(&self) -> Result<(), ProxyError> {
        if self.session.running.has_room() {
            return Ok(());
        }
        Err(ProxyError::new("54000", "too many cursors and portals over several shards in one transaction")
            .hint("Close some, or read them to their end."))
    }

    /// As it was when it was kept, with rows taken meanwhile.
    pub fn keep_again(&mut self, name: Name, running: Running, depth: usize) {
        self.session.running.keep(name, running, depth);
    }

    pub fn take_running(&mut self, name: &Name) -> Option<(Running, usize)> {
        self.session.running.take(name)
    }

    pub fn new_portal(&mut self) -> String {
        self.session.running.new_portal()
    }

    /// Executed once more, it gives the rows that are left.
    pub fn suspend_portal(&mut self, name: &[u8]) {
        self.session.suspend_portal(name);
    }

    /// It has no rows left; `again`: CommandComplete of none, which is what another Execute says.
    pub fn end_portal(&mut self, name: &[u8], again: Vec<u8>) {
        self.session.end_portal(name, Some(again.into()));
    }

    /// Out of the participants, and back among them.
    pub fn take_server(&mut self, at: usize) -> Box<Server> {
        self.session.take_server(at)
    }

    pub fn add_server(&mut self, server: Box<Server>) -> usize {
        self.session.add_server(server)
    }

    /// The participant that this key is of.
    pub fn index_of(&self, key: &Rc<ServerKey>) -> Option<usize> {
        self.session.servers.iter().position(|server| server.enlisted && Rc::ptr_eq(&server.key, key))
    }

    /// One more connection to the default shard's primary, with the session's settings and in no transaction. To be
    /// taken after everybody else has joined, and given back by `give_back`.
    pub async fn scratch(&mut self) -> Result<usize, ProxyError> {
        let shard = self.session.default_shard();
        let before = self.session.servers.len();
        self.session.checkout(Want::Scratch(shard)).await;
        self.session.info.set_activity(Activity::Active, self.session.worker.now.get());
        if let Some(error) = self.session.failure.take() {
            return Err(*error);
        }
        if self.session.servers.len() != before + 1 {
            return Err(ProxyError::internal("checked-out server vanished"));
        }
        let wanted = self.session.settings.clone();
        let sql = super::settings::replay(&self.session.servers[before].settings, &wanted);
        if !sql.is_empty()
            && let Err(error) = self.simple(before, sql.as_bytes()).await
        {
            self.give_back(before);
            return Err(error);
        }
        self.session.servers[before].settings = wanted;
        Ok(before)
    }

    /// Back to its pool, or closed.
    pub fn give_back(&mut self, at: usize) {
        self.session.give_back(at);
    }

    /// Gives back what took part only to read, outside of any transaction.
    pub fn release_readers(&mut self) {
        self.session.release_readers();
    }

    fn demoted(&mut self, at: usize) -> ProxyError {
        self.discard(at);
        self.transaction_is_lost();
        let shard = self.session.servers[at].pool.shard_id;
        ProxyError::no_primary(shard, "the server that this transaction runs on has lost its role")
    }

    /// Never pool this connection again.
    pub fn discard(&mut self, at: usize) {
        self.session.servers[at].dirty = true;
    }

    /// The transaction is over on all participants: back to the pools, settings kept or restored.
    pub fn finish(&mut self, committed: bool) {
        self.session.queue.retain(|expect| !matches!(expect, Expect::Hidden | Expect::Prologue));
        self.session.end_transaction(committed);
        self.session.info.set_activity(Activity::Idle, self.session.worker.now.get());
    }
}
