//! `SELECT set_config(name, value, local)`: a SET that is answered with a row, and whose value may be a parameter.

use std::rc::Rc;
use std::sync::Arc;

use super::Session;
use super::local::By;
use super::prepared::Entry;
use super::settings::{self, Value};
use crate::error::ProxyError;
use crate::route::plan::{Access, ConfigValue, Effect, Plan, Route, Tables};
use crate::route::{Literals, ParamValue, Params, RoutedStatement};
use crate::wire::build;

/// Settings with a dot are a client's own: whatever their value is, a server takes it and shows it unchanged.
pub(super) fn is_custom(name: &str) -> bool {
    name.contains('.')
}

/// The row, described as the simple protocol wants it.
pub(super) fn config_row(out: &mut Vec<u8>, value: &str, describe: bool) {
    if describe {
        build::row_description(out, &[("set_config", build::TEXT)]);
    }
    build::data_row(out, &[value]);
}

impl Session {
    /// The answer, if no server is needed for it: in a block that no shard has joined, where it is held as SET is.
    pub(super) fn local_config(&mut self, effect: &Effect, by: By) -> Result<Option<Vec<u8>>, ProxyError> {
        let Effect::SetConfig { name, value: ConfigValue::Text(value), local } = effect else {
            return Ok(None);
        };
        let raw = Value::Raw(value.clone());
        let enlisted = self.servers.iter().any(|server| server.enlisted);
        if crate::route::is_own_setting(name) {
            self.set_proxy(name, Some(&raw))?;
        } else if !enlisted && self.transaction.is_some() && is_custom(name) {
            let mut text = String::new();
            settings::set(&mut text, name, &raw, *local);
            self.hold(&text)?;
            if !local {
                self.change_setting(name, Some(raw))?;
            }
        } else {
            return Ok(None);
        }
        let mut out = Vec::new();
        config_row(&mut out, value, matches!(by, By::Simple));
        build::command_complete(&mut out, "SELECT 1");
        Ok(Some(out))
    }

    /// What a Bind executes: the statement itself, or set_config() with the value that was bound.
    pub(super) fn with_value<P: Params>(
        &self,
        entry: &Rc<Entry>,
        params: &P,
    ) -> Result<Rc<Entry>, ProxyError> {
        let Effect::SetConfig { name, value: ConfigValue::Parameter(number), local } =
            &entry.routed.plan.effect
        else {
            return Ok(entry.clone());
        };
        let value = match params.get(*number) {
            // The binary form of a text is the text.
            ParamValue::Text(bytes) | ParamValue::Binary(bytes) => std::str::from_utf8(bytes).ok(),
            ParamValue::Null => None,
        };
        let value = value.ok_or_else(|| {
            ProxyError::not_supported(
                "set_config() with a value that is NULL or not UTF-8",
                "Use RESET for the setting's default.",
            )
        })?;
        let mut text = String::new();
        settings::set(&mut text, name, &Value::Raw(value.to_owned()), *local);
        let effect = Effect::SetConfig {
            name: name.clone(),
            value: ConfigValue::Text(value.to_owned()),
            local: *local,
        };
        let plan = Plan {
            route: Route::Any,
            access: Access::Write,
            effect,
            evidence: Vec::new(),
            straddle: None,
            parameters: 0,
            tables: Tables::default(),
            changes: None,
            around: crate::route::plan::Around::Nothing,
        };
        let routed = RoutedStatement { text: 0..text.len(), plan: Arc::new(plan), literals: Literals::new() };
        let key = (entry.settings.clone(), entry.version);
        Ok(self.worker.registry.borrow_mut().add((text.as_bytes(), b""), None, key, routed, true))
    }
}
