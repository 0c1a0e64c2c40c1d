//! The extended protocol's Describe, of statements and of portals.

use super::extended::no_portal;
use super::multi_hook::Described;
use super::portals::Portal;
use super::running::Name;
use super::statements::needs_no_server;
use super::{Expect, Flow, Held, Session};
use crate::error::ProxyError;
use crate::route::plan::Effect;
use crate::wire::{build, read};

impl Session {
    pub(super) fn on_describe(&mut self, message: &[u8]) -> Flow {
        let Some((kind, name)) = read::named(message) else { return Self::malformed("Describe") };
        if kind == b'S' {
            return self.describe_statement(name);
        }
        match self.portal(name) {
            Some(Portal::Server { key, entry }) => {
                let Some(at) = self.server_of(&key) else {
                    return self.refused(no_portal(name));
                };
                if at != self.active && !self.queue.is_empty() {
                    return self.wait_for_replies();
                }
                self.active = at;
                self.servers[at].out.extend_from_slice(message);
                self.queue.push_back(Expect::DescribePortal(entry));
            }
            Some(Portal::Local { entry, binary }) => {
                match self.local_description(&entry.routed.plan.effect, binary) {
                    Some(bytes) if self.extended().held.is_empty() => self.say(bytes),
                    Some(bytes) => self.extended().held.push(Held::Ours(bytes.into())),
                    None => self.answer(build::NO_DATA),
                }
            }
            Some(Portal::Sql { entry, results }) => {
                return self.describe_sql_prepared(&entry, Described::Portal(results));
            }
            Some(Portal::Multi { entry, bind, .. }) => {
                self.set_portal(name, Portal::Multi { entry, bind, describe: true });
            }
            Some(Portal::Running | Portal::Ended { .. }) => {
                return self.refused(ProxyError::not_supported(
                    "a portal over several shards is described before it is executed first",
                    "Describe it after Bind.",
                ));
            }
            None => return self.refused(no_portal(name)),
        }
        Flow::Done
    }

    fn describe_statement(&mut self, name: &[u8]) -> Flow {
        if let Some(flow) = self.await_names() {
            return flow;
        }
        let entry = match self.statement(name) {
            Ok(entry) => entry,
            Err(error) => return self.refused(error),
        };
        if let Effect::SqlExecute { .. } = entry.routed.plan.effect {
            return self.describe_sql_prepared(&entry, Described::Statement);
        }
        if let Effect::Cursor(Some(cursor)) = &entry.routed.plan.effect
            && self.running.has(&Name::Cursor(cursor.clone()))
        {
            // Its rows are on a server of their own, which a Parse does not reach.
            return self.refused(ProxyError::not_supported(
                "a description of FETCH from a cursor over several shards before it is bound",
                "Describe the portal instead of the statement, or use the simple protocol.",
            ));
        }
        if needs_no_server(&entry) {
            let mut bytes = b"t\0\0\0\x06\0\0".to_vec();
            match self.local_description(&entry.routed.plan.effect, false) {
                Some(row) => bytes.extend_from_slice(&row),
                None => bytes.extend_from_slice(build::NO_DATA),
            }
            if self.extended().held.is_empty() {
                self.say(bytes);
            } else {
                self.extended().held.push(Held::Ours(bytes.into()));
            }
            return Flow::Done;
        }
        let known = entry.description.borrow().clone();
        match known {
            Some(bytes) if self.extended().held.is_empty() => self.say(bytes.to_vec()),
            Some(bytes) => self.extended().held.push(Held::Ours(bytes[..].into())),
            None => self.extended().held.push(Held::Describe(entry)),
        }
        Flow::Done
    }
}
