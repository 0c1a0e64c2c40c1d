//! What definitions have changed in the open transaction: the catalog, which is read again when it ends, does not show
//! it, so statements that would be routed by what it shows are refused (H39).

use rustc_hash::FxHashSet;

use super::Session;
use crate::error::ProxyError;
use crate::limits;
use crate::route::plan::{Changes, Effect, Plan, Route};

#[derive(Debug, Default)]
pub(super) struct Changed {
    relations: FxHashSet<String>,
    /// Any sharded or reference table may have changed.
    unknown: bool,
}

impl Session {
    pub(super) fn note_changes(&mut self, plan: &Plan) {
        let Some(changes) = &plan.changes else { return };
        let changed = self.changed.get_or_insert_default();
        match changes {
            Changes::Relations(names) if changed.relations.len() < limits::CHANGED_RELATIONS => {
                changed.relations.extend(names.iter().cloned());
            }
            _ => changed.unknown = true,
        }
    }

    /// Why the statement cannot be routed in this transaction.
    pub(super) fn changed_before(&self, plan: &Plan) -> Option<ProxyError> {
        let changed = self.changed.as_ref()?;
        if plan.effect == Effect::CreatesObject || matches!(plan.route, Route::Refuse(_)) {
            return None;
        }
        let named = plan.tables.names.iter().find(|name| changed.relations.contains(*name));
        let what = match named {
            Some(name) => format!("the definition of {name} has changed"),
            None if changed.unknown && plan.tables.keyed => "definitions have changed".to_owned(),
            None => return None,
        };
        Some(ProxyError::not_supported(
            format!("{what} in this transaction, so its rows cannot be routed before it ends"),
            "COMMIT first.",
        ))
    }
}
