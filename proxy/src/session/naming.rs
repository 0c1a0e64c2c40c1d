//! Which settings statements are routed by. The router must read names and constants as the server will, and a server
//! goes by SET LOCAL within a transaction, and by a SET as soon as it has run.

use std::rc::Rc;

use super::settings::{self, Settings, Value};
use super::simple::is_control;
use super::{Flow, Session};
use crate::error::ProxyError;
use crate::route::plan::{ConfigValue, Effect, SavepointVerb};
use crate::route::{RouteContext, Routed, RoutedStatement, Router, is_routing_setting};
use crate::shared::State;

impl Session {
    /// The settings that decide what the next statement means.
    #[inline]
    pub(super) fn routing(&self) -> &Rc<Settings> {
        self.local_settings.as_ref().unwrap_or(&self.settings)
    }

    /// Calls the router with everything outside the text that a plan depends on.
    pub(super) fn with_router<T>(&self, run: impl FnOnce(&mut Router, &RouteContext<'_>, &State) -> T) -> T {
        self.with_router_under(self.routing(), run)
    }

    /// With `shard.key` set: the text in its place. `None`: as it is.
    #[inline]
    pub(super) fn restricted(&self, sql: &[u8]) -> Result<Option<Vec<u8>>, ProxyError> {
        let Some(key) = self.routing().key.clone() else { return Ok(None) };
        self.with_router(|router, context, _| router.restrict(context, sql, &key))
            .map_err(|refusal| ProxyError::from(&refusal))
    }

    /// May one of these statements change `shard.key` for another one? Each message is looked at as a whole.
    pub(super) fn changes_key(&self, statements: &[RoutedStatement]) -> bool {
        let before =
            self.transaction.as_ref().is_some_and(|transaction| transaction.settings_before.key.is_some());
        let has = before
            || self.local_settings.is_some()
            || self.settings.key.is_some()
            || self.startup_settings.key.is_some();
        let changes = |effect: &Effect| {
            let undoes = matches!(
                effect,
                Effect::Commit { .. }
                    | Effect::Rollback { .. }
                    | Effect::Savepoint(SavepointVerb::RollbackTo, _)
                    | Effect::ResetAll
            );
            effect.setting() == Some("shard.key") || (undoes && has)
        };
        statements.iter().any(|statement| changes(&statement.plan.effect))
            && statements.iter().any(|statement| statement.plan.tables.keyed)
    }

    /// Names as under these settings; constants as they were read when the message arrived.
    fn with_router_under<T>(
        &self,
        names: &Settings,
        run: impl FnOnce(&mut Router, &RouteContext<'_>, &State) -> T,
    ) -> T {
        let state = self.worker.state();
        let constants = self.routing();
        let context = RouteContext {
            catalog: &state.catalog,
            search_path: &names.search_path,
            user: &names.user,
            standard_conforming_strings: constants.standard_conforming_strings,
            client_encoding_is_utf8: constants.client_encoding_is_utf8,
            session_has_temp: self.has_temp,
        };
        let mut router = self.worker.router.borrow_mut();
        let before = router.analysed();
        let result = run(&mut router, &context, &state);
        let new = router.analysed() - before;
        if new > 0 {
            self.worker.stats.statements_analysed.add(new);
        }
        result
    }

    /// SET, or with `None` SET TO DEFAULT and RESET: back to what the session began with.
    pub(super) fn change_setting(&mut self, name: &str, value: Option<Value>) -> Result<(), ProxyError> {
        let value = match value {
            Some(Value::Sql(text)) if text.trim().eq_ignore_ascii_case("default") => None,
            value => value,
        };
        let value = value.or_else(|| self.startup_settings.get(name).cloned());
        if name == "application_name" {
            *self.info.application_name.borrow_mut() = value.as_ref().map(Value::plain).unwrap_or_default();
        }
        let mut changed = self.with_setting(&self.settings, name, value.clone())?;
        if name == "session_authorization" {
            // The server leaves the role, too (SetSessionUserId in src/backend/utils/init/miscinit.c).
            changed = self.with_setting(&changed, "role", None)?;
        }
        if let Some(local) = self.local_settings.take().filter(|_| is_routing_setting(name)) {
            // SET takes the place of an earlier SET LOCAL.
            self.local_settings = Some(self.with_setting(&local, name, value)?);
        }
        self.settings = changed;
        Ok(())
    }

    /// SET LOCAL: until the transaction ends. Only what routing needs is followed here: a server is told of all of them
    /// by the text itself.
    pub(super) fn change_local(&mut self, name: &str, value: Option<Value>) -> Result<(), ProxyError> {
        if is_routing_setting(name) {
            self.local_settings = Some(self.with_setting(self.routing(), name, value)?);
        }
        Ok(())
    }

    /// RESET ALL, which leaves the roles as they are (GUC_NO_RESET_ALL in src/backend/utils/misc/guc_tables.c).
    pub(super) fn reset_all(&mut self) -> Result<(), ProxyError> {
        let startup = self.startup_settings.clone();
        self.settings = self.with_roles_of_now(startup)?;
        self.local_settings = None;
        Ok(())
    }

    /// A server has run RESET ALL itself: until the transaction ends it has its own defaults, not the session's.
    pub(super) fn server_has_defaults(&mut self) -> Result<(), ProxyError> {
        let none = self.space.settings.borrow().none();
        self.local_settings = Some(self.with_roles_of_now(none)?);
        Ok(())
    }

    fn with_roles_of_now(&self, mut base: Rc<Settings>) -> Result<Rc<Settings>, ProxyError> {
        for name in ["session_authorization", "role"] {
            base = self.with_setting(&base, name, self.settings.get(name).cloned())?;
        }
        Ok(base)
    }

    fn with_setting(
        &self,
        base: &Rc<Settings>,
        name: &str,
        value: Option<Value>,
    ) -> Result<Rc<Settings>, ProxyError> {
        let changed = self.space.settings.borrow_mut().with(base, name, value);
        changed.map_err(|()| ProxyError::new("54000", "too many session settings"))
    }

    /// Keeps a SET for the servers of the transaction. A server's own default may not be what the session began with.
    pub(super) fn hold_setting(
        &mut self,
        name: &str,
        value: Option<&Value>,
        local: bool,
        sql: &str,
    ) -> Result<(), ProxyError> {
        if self.transaction.is_none() {
            return Ok(());
        }
        let text = match (value, self.startup_settings.get(name)) {
            (None, Some(value)) => {
                let mut text = String::new();
                settings::set(&mut text, name, value, local);
                text
            }
            _ => sql.to_owned(),
        };
        self.hold(&text)
    }

    /// May names mean something else once this has run?
    pub(super) fn may_rename(&self, effect: &Effect) -> bool {
        let undoes =
            || self.transaction.as_ref().is_some_and(|t| !t.settings_before.routes_like(&self.settings));
        match effect {
            Effect::Set { name, .. } | Effect::SetConfig { name, .. } => is_routing_setting(name),
            Effect::ResetAll | Effect::Pin(_) => true,
            Effect::Commit { .. } => self.local_settings.is_some(),
            Effect::Rollback { .. } | Effect::Savepoint(SavepointVerb::RollbackTo, _) => {
                self.local_settings.is_some() || undoes()
            }
            _ => false,
        }
    }

    /// The message must wait until a statement that may change what names mean was answered.
    #[inline]
    pub(super) fn await_names(&mut self) -> Option<Flow> {
        if !self.unsettled {
            return None;
        }
        if self.queue.is_empty() {
            self.unsettled = false;
            return None;
        }
        Some(self.wait_for_replies())
    }

    /// Statements of one message behind a SET are routed as the server will read them then. `Err`: it cannot be told
    /// how.
    pub(super) fn route_behind_set(&self, sql: &[u8], routed: &mut Routed) -> Result<(), ProxyError> {
        let mut names = self.routing().clone();
        let (mut changed, mut unclear) = (false, false);
        for statement in &mut routed.statements {
            match &statement.plan.effect {
                Effect::Set { name, value, .. } if is_routing_setting(name) => {
                    // A server's default is not what the session began with.
                    unclear |= value.is_none() && self.startup_settings.get(name).is_some();
                    names = self.with_setting(&names, name, value.clone().map(Value::Sql))?;
                    changed = true;
                }
                Effect::SetConfig { name, value: ConfigValue::Text(value), .. }
                    if is_routing_setting(name) =>
                {
                    names = self.with_setting(&names, name, Some(Value::Raw(value.clone())))?;
                    changed = true;
                }
                Effect::ResetAll => unclear = true,
                effect if is_control(effect) => {
                    let ends = !matches!(
                        effect,
                        Effect::Begin { .. }
                            | Effect::Savepoint(SavepointVerb::Savepoint, _)
                            | Effect::Set { .. }
                            | Effect::SetConfig { .. }
                            | Effect::SetTransaction { .. }
                    );
                    unclear |= self.may_rename(effect) || (changed && ends);
                }
                _ if unclear => {
                    return Err(ProxyError::not_supported(
                        "one message changes what names mean, takes that back, and goes on",
                        "Send the statements one by one.",
                    ));
                }
                _ if changed => {
                    let range = statement.text.clone();
                    *statement = self
                        .with_router_under(&names, |router, context, _| router.again(context, sql, range));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
