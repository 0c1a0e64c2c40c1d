//! What a statement that a server ran means for the session: settings, transaction, pin.
//!
//! The session must always know which settings its servers have, or a server would reach the next client with this
//! one's search_path. PostgreSQL takes a SET back with its transaction, and every extended batch and every Query is
//! a transaction, with or without BEGIN. Where the proxy cannot tell what is left of a SET, the server is not pooled.

use std::rc::Rc;

use super::transaction::Transaction;
use super::{Pending, Session};
use crate::error::ProxyError;
use crate::pool::{Role, Server};
use crate::route::plan::{ConfigValue, Effect, Plan};

use super::settings::Value;

impl Session {
    pub(super) fn apply(&mut self, pending: &Pending) {
        let alone = pending.plans.len() == 1;
        for (plan, text) in &pending.plans {
            let result = match &plan.effect {
                Effect::Begin { read_only } if self.transaction.is_none() => {
                    // BEGIN makes what ran before it in the same batch a part of the transaction.
                    let before = self.implicit_before.take().unwrap_or_else(|| self.settings.clone());
                    self.transaction =
                        Some(Box::new(Transaction::new(text, *read_only == Some(true), before)));
                    Ok(())
                }
                Effect::Begin { read_only } => self.begun_again(text, *read_only),
                Effect::Commit { chain } => {
                    self.transaction_ended(true, *chain);
                    Ok(())
                }
                Effect::Rollback { chain } => {
                    self.transaction_ended(false, *chain);
                    Ok(())
                }
                Effect::Set { name, value, local }
                    if *local || alone || !crate::route::is_own_setting(name) =>
                {
                    self.server_has_set(name, value.clone().map(Value::Sql), *local, text)
                }
                Effect::SetConfig { name, value: ConfigValue::Text(value), local } => {
                    self.server_has_set(name, Some(Value::Raw(value.clone())), *local, text)
                }
                Effect::SetTransaction { read_only } => {
                    if let Some(transaction) = &mut self.transaction {
                        let _ = transaction.hold(text);
                        transaction.read_only = read_only.unwrap_or(transaction.read_only);
                    }
                    Ok(())
                }
                Effect::ResetAll => {
                    self.note_implicit();
                    self.distrust_servers();
                    self.reset_all().and_then(|()| self.server_has_defaults())
                }
                Effect::Savepoint(verb, name) => self.local_savepoint(*verb, name, text),
                Effect::Cursor(None) => {
                    self.running.close_cursors();
                    if let Some(transaction) = &mut self.transaction {
                        transaction.closed_all();
                    }
                    Ok(())
                }
                Effect::Cursor(Some(name)) => {
                    let closes = text.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("close"));
                    if let Some(transaction) = self.transaction.as_mut().filter(|_| closes) {
                        transaction.closed(name);
                    }
                    Ok(())
                }
                Effect::Pin(why) => {
                    self.pin(why);
                    Ok(())
                }
                Effect::Declare(name) => {
                    let shard = self.servers.get(self.active).map(|server| server.shard);
                    if let (Some(transaction), Some(shard)) = (&mut self.transaction, shard) {
                        transaction.declared(name, shard);
                    }
                    Ok(())
                }
                Effect::SetsSequence => {
                    self.worker.reset_sequences();
                    Ok(())
                }
                Effect::CreatesObject => {
                    self.schema_changed = true;
                    self.note_changes(plan);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = result {
                tracing::warn!(%error, "effect of a statement could not be kept");
            }
        }
    }

    /// A server ran SET or set_config().
    fn server_has_set(
        &mut self,
        name: &str,
        value: Option<Value>,
        local: bool,
        text: &str,
    ) -> Result<(), ProxyError> {
        if let Some(transaction) = &mut self.transaction {
            let _ = transaction.hold(text);
        }
        if local {
            return self.change_local(name, value);
        }
        let own_default = value.is_none() && self.startup_settings.get(name).is_some();
        self.note_implicit();
        let mut result = self.change_setting(name, value);
        // RESET on the server went to its own default, not to what our session began with.
        if result.is_err() || own_default {
            self.distrust_servers();
        }
        if own_default {
            result = result.and_then(|()| self.change_local(name, None));
        }
        self.server_has_settings();
        result
    }

    /// COMMIT or ROLLBACK succeeded. With AND CHAIN another block is open; without, what follows in the same batch is an
    /// implicit transaction, whose end at Sync may be for several servers to agree on.
    pub(super) fn transaction_ended(&mut self, committed: bool, chain: bool) {
        let before = self.implicit_before.take();
        self.local_settings = None;
        self.info.touch.borrow_mut().clear();
        self.running.end();
        match self.transaction.take() {
            Some(transaction) => {
                if !committed {
                    self.settings = transaction.settings_before.clone();
                }
                if chain {
                    let mut next = transaction.next(committed);
                    next.settings_before = self.settings.clone();
                    self.transaction = Some(Box::new(next));
                } else {
                    self.server_has_settings();
                }
            }
            None => {
                if let Some(before) = before.filter(|_| !committed) {
                    self.settings = before;
                    self.server_has_settings();
                }
            }
        }
    }

    /// A message of several statements failed: those before the failure may have ended the transaction or begun one,
    /// and changed settings in it.
    pub(super) fn failed_within(&mut self, pending: &Pending) {
        let ends = |effect: &Effect| {
            matches!(effect, Effect::Begin { .. } | Effect::Commit { .. } | Effect::Rollback { .. })
        };
        if pending.plans.len() > 1 && pending.plans.iter().any(|(plan, _)| ends(&plan.effect)) {
            self.distrust_servers();
        }
    }

    /// An extended batch failed outside of a transaction block: the server takes its SETs back.
    pub(super) fn implicit_failed(&mut self) {
        if self.transaction.is_none()
            && let Some(before) = self.implicit_before.take()
        {
            self.settings = before;
            self.server_has_settings();
        }
    }

    fn note_implicit(&mut self) {
        if self.transaction.is_none() && self.implicit_before.is_none() {
            self.implicit_before = Some(self.settings.clone());
        }
    }

    fn distrust_servers(&mut self) {
        for server in self.servers.iter_mut().filter(|s| s.enlisted) {
            server.unknown_state = true;
        }
    }

    /// Outside of a transaction the server that ran SET has it, too.
    fn server_has_settings(&mut self) {
        if self.transaction.is_none()
            && let Some(server) = self.servers.get_mut(self.active)
        {
            server.settings = self.settings.clone();
        }
    }

    /// The server that the session is pinned to.
    pub(super) fn pinned_server(&self) -> Option<&Server> {
        self.pinned?;
        match &self.pinned_to {
            Some(key) => self.servers.iter().find(|server| Rc::ptr_eq(&server.key, key)),
            None => self.servers.first(),
        }
        .map(|server| &**server)
    }

    /// Why a statement that leaves something behind in a server may not go to this shard: the session keeps one server
    /// only, and what is left on another one would reach the next client there.
    pub(super) fn pins_elsewhere(&self, plan: &Plan, shard: usize) -> Option<ProxyError> {
        let Effect::Pin(what) = plan.effect else { return None };
        let server = self.pinned_server()?;
        if server.shard == shard && (server.role == Role::Primary || server.enlisted) {
            return None;
        }
        let has = self.pinned.unwrap_or_default();
        let message = format!(
            "{what}: this session keeps a server of shard {} for its {has} already",
            server.pool.shard_id
        );
        Some(ProxyError::not_supported(
            message,
            "Use another connection for it; DISCARD ALL gives up what this session keeps.",
        ))
    }

    fn pin(&mut self, why: &'static str) {
        self.has_temp |= why.contains("temp");
        let pinned = self.pinned_server().map(|server| server.key.clone());
        if let Some(server) = self.servers.get_mut(self.active)
            && pinned.is_some_and(|key| !Rc::ptr_eq(&key, &server.key))
        {
            // It may end its transaction, but it is given to nobody else.
            server.unknown_state = true;
        }
        if self.pinned.is_none() {
            self.worker.stats.pins.add(1);
            self.pinned = Some(why);
            self.info.pinned.set(Some(why));
            self.pinned_to = self.servers.get(self.active).map(|server| server.key.clone());
        }
    }

    /// The pinned server becomes the first. Only between batches: until then others hold positions in `servers`.
    pub(super) fn settle_pin(&mut self) {
        if let Some(key) = self.pinned_to.take()
            && let Some(at) = self.servers.iter().position(|server| Rc::ptr_eq(&server.key, &key))
        {
            self.servers.swap(0, at);
        }
    }

    /// A cancel request reaches these servers and no others (H38).
    pub(super) fn note_serving(&self) {
        let mut serving = self.info.serving.borrow_mut();
        serving.clear();
        serving.extend(self.servers.iter().map(|server| server.key.clone()));
    }
}
