//! Which statement a client means, and which server has it.

use std::rc::Rc;

use super::dispatch::Destination;
use super::extended::is_ours;
use super::prepared::Entry;
use super::{Expect, Flow, Held, Session};
use crate::error::ProxyError;
use crate::route::NoParams;
use crate::route::plan::{Effect, Route};
use crate::wire::{build, frame};

impl Session {
    /// The registry's entry for a text, analysed if it is new.
    #[inline]
    pub(super) fn entry(&mut self, sql: &[u8], oids: &[u8]) -> Result<Rc<Entry>, ProxyError> {
        let version = self.worker.state().catalog.version;
        let restricted = self.restricted(sql)?;
        let original = restricted.as_ref().map(|_| sql);
        let sql = restricted.as_deref().unwrap_or(sql);
        if !self.has_temp
            && let Some(entry) = self.worker.registry.borrow_mut().find(sql, oids, self.routing().id, version)
        {
            self.worker.stats.prepared_hits.add(1);
            return Ok(entry);
        }
        self.worker.stats.prepared_misses.add(1);
        let target = self.target.is_some();
        let routed = self.with_router(|router, context, _| match router.parse(context, sql) {
            // With shard.target the shard is known, whatever the proof would say.
            Err(_) if target => router
                .simple(context, sql)
                .statements
                .into_iter()
                .next()
                .ok_or_else(|| ProxyError::internal("empty statement was refused")),
            other => other.map_err(|refusal| ProxyError::from(&refusal)),
        })?;
        let key = (self.routing().clone(), version);
        let private = self.has_temp || (target && matches!(routed.plan.route, Route::Refuse(_)));
        Ok(self.worker.registry.borrow_mut().add((sql, oids), original, key, routed, private))
    }

    pub(super) fn statement(&mut self, name: &[u8]) -> Result<Rc<Entry>, ProxyError> {
        let extended = self.extended();
        let entry =
            if name.is_empty() { extended.unnamed.clone() } else { extended.statements.get(name).cloned() };
        let Some(entry) = entry else {
            let text = String::from_utf8_lossy(name);
            let message = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{text}\" does not exist")
            };
            return Err(ProxyError::new("26000", message));
        };
        let version = self.worker.state().catalog.version;
        if is_ours(&entry) || (entry.version == version && entry.settings.routes_like(self.routing())) {
            return Ok(entry);
        }
        // The schema or search_path changed since: it was routed again by `recheck`. If its result changed, too, the client must
        // hear of it as from PostgreSQL, because it may rely on an old description.
        let fresh = self.entry(entry.source(), &entry.oids)?;
        if let (Some(before), Some(after)) = (&*entry.shape.borrow(), &*fresh.shape.borrow())
            && before != after
        {
            return Err(ProxyError::cached_plan_changed());
        }
        let extended = self.extended();
        match extended.statements.get_mut(name) {
            Some(known) => *known = fresh.clone(),
            None => extended.unnamed = Some(fresh.clone()),
        }
        Ok(fresh)
    }

    /// The schema changed since the client had this statement described: a server is asked what it is like now.
    /// `Some`: look at the message again when the answer is there.
    pub(super) fn recheck(&mut self, name: &[u8]) -> Option<Flow> {
        let extended = self.extended();
        let old =
            if name.is_empty() { extended.unnamed.clone() } else { extended.statements.get(name).cloned() }?;
        let version = self.worker.state().catalog.version;
        let same = old.version == version && old.settings.routes_like(self.routing());
        if same || !old.is_shared() || old.shape.borrow().is_none() {
            return None;
        }
        let fresh = self.entry(old.source(), &old.oids).ok()?;
        if fresh.shape.borrow().is_some() || !fresh.is_shared() {
            return None;
        }
        if self.failure.is_some() {
            return None;
        }
        let enlisted = self.servers.iter().find(|s| s.enlisted).map(|s| s.shard);
        let found = match enlisted {
            Some(shard) => self.server_for(shard, None),
            None => self.unlisted_server(self.target.unwrap_or_else(|| self.default_shard())),
        };
        let at = match found {
            Ok(at) => at,
            Err(flow) => return Some(flow),
        };
        self.prepare_on(at, &fresh);
        let server = &mut self.servers[at];
        build::named(&mut server.out, b'D', b'S', &fresh.name);
        server.unsynced = true;
        self.queue.push_back(Expect::DescribeStatement { entry: fresh, seen: Vec::new(), hidden: true });
        if enlisted.is_none() {
            server.out.extend_from_slice(build::SYNC);
            self.queue.push_back(Expect::HiddenSync);
            self.drain = true;
            return Some(Flow::Later);
        }
        Some(self.wait_for_replies())
    }

    /// Sends what was waiting for a server.
    pub(super) fn send_held(&mut self, at: usize) {
        if self.extended().held.is_empty() {
            return;
        }
        for held in std::mem::take(&mut self.extended().held) {
            match held {
                Held::Parse(entry, name) => {
                    let server = &mut self.servers[at];
                    if entry.is_shared() && server.knows(entry.id) {
                        self.queue.push_back(Expect::OursParse(name));
                        continue;
                    }
                    self.parse_on(at, &entry);
                    self.queue.push_back(Expect::Parse(entry, name));
                }
                Held::Describe(entry) => self.describe_on(at, entry),
                Held::Ours(bytes) => self.queue.push_back(Expect::Ours(bytes)),
            }
        }
        if self.queue.front().is_some_and(Expect::is_ours) {
            self.say_ours();
        }
    }

    /// Bytes of what waits for a server.
    pub(super) fn held_bytes(&mut self) -> usize {
        let size = |held: &Held| match held {
            Held::Parse(entry, _) => entry.sql.len(),
            Held::Ours(bytes) => bytes.len(),
            Held::Describe(_) => 0,
        };
        self.extended().held.iter().map(size).sum()
    }

    pub(super) fn parse_on(&mut self, at: usize, entry: &Rc<Entry>) {
        let server = &mut self.servers[at];
        if entry.is_shared() {
            if let Some(evicted) = server.learn(entry.id) {
                build::named(&mut server.out, b'C', b'S', format!("sp_{evicted:x}").as_bytes());
                self.queue.push_back(Expect::HiddenClose);
            }
        } else {
            server.unnamed = entry.id;
        }
        let oids = self.declared(at, &entry.oids);
        let server = &mut self.servers[at];
        build::parse(&mut server.out, &entry.name, &entry.sql, oids.as_deref().unwrap_or(&entry.oids));
        server.unsynced = true;
    }

    /// A client's parameter types as this server numbers them (H23); `None`: as they are.
    pub(super) fn declared(&self, at: usize, oids: &[u8]) -> Option<Vec<u8>> {
        let state = self.worker.state();
        state.catalog.oids.get(&self.servers[at].pool.shard_id)?.declared(oids)
    }

    /// Makes sure that the server has the statement.
    #[inline]
    pub(super) fn prepare_on(&mut self, at: usize, entry: &Rc<Entry>) {
        let server = &mut self.servers[at];
        let known = if entry.is_shared() { server.knows(entry.id) } else { server.unnamed == entry.id };
        if !known {
            self.parse_on(at, entry);
            self.queue.push_back(Expect::HiddenParse(entry.clone()));
        }
        if !entry.is_shared() {
            // The next execution must parse it anew, or it would see this one's 'now'.
            self.servers[at].unnamed = 0;
        }
    }

    pub(super) fn describe_on(&mut self, at: usize, entry: Rc<Entry>) {
        self.prepare_on(at, &entry);
        if !entry.is_shared() {
            self.servers[at].unnamed = entry.id;
        }
        let server = &mut self.servers[at];
        build::named(&mut server.out, b'D', b'S', &entry.name);
        server.unsynced = true;
        self.queue.push_back(Expect::DescribeStatement { entry, seen: Vec::new(), hidden: false });
    }

    /// Finds a server for what is held and sends it.
    pub(super) fn place_held(&mut self) -> Result<(), Flow> {
        if let Some(error) = self.failure.take() {
            return Err(self.refused(*error));
        }
        let entry = self.extended().held.iter().find_map(|held| match held {
            Held::Parse(entry, _) | Held::Describe(entry) => Some(entry.clone()),
            Held::Ours(_) => None,
        });
        let shard = match (self.servers.iter().find(|s| s.enlisted), entry) {
            (Some(server), _) => server.shard,
            // A key is not known yet, so any shard can check the statement; plain tables are on one.
            (None, Some(entry)) if !matches!(entry.routed.plan.route, Route::Key(_)) => {
                let params = NoParams { client_encoding_is_utf8: self.routing().client_encoding_is_utf8 };
                match self.destination(&entry.routed, &entry.sql, &params) {
                    Destination::Shard(place) => place.shard,
                    _ => self.default_shard(),
                }
            }
            _ => self.target.unwrap_or_else(|| self.default_shard()),
        };
        let checking = !self.servers.iter().any(|s| s.enlisted);
        let found = if checking { self.unlisted_server(shard) } else { self.server_for(shard, None) };
        match found {
            Ok(at) if checking => {
                // The key is not known yet, so this server may not be the one that runs the statement: it only
                // checks it, outside of the transaction, and nothing goes on before it has.
                self.send_held(at);
                self.servers[at].out.extend_from_slice(build::SYNC);
                self.queue.push_back(Expect::HiddenSync);
                self.drain = true;
                self.answered = false;
                Err(Flow::Later)
            }
            Ok(at) => {
                self.send_held(at);
                Ok(())
            }
            Err(Flow::Later) if self.failure.is_some() => self.place_held(),
            Err(flow) => Err(flow),
        }
    }

    pub(super) fn default_shard(&self) -> usize {
        let state = self.worker.state();
        state.position(state.config.proxy.default_shard).unwrap_or(0)
    }
}

/// Statements that need no server to be found good: the router's grammar, PostgreSQL's own, has accepted them.
pub(super) fn needs_no_server(entry: &Entry) -> bool {
    let effect = &entry.routed.plan.effect;
    is_ours(entry) || (super::simple::is_control(effect) && !matches!(effect, Effect::SetConfig { .. }))
}

/// Is everything behind this Bind its own Describe and Execute, then Sync? Only then is the read a transaction of
/// its own, which a replica may serve.
pub(super) fn is_alone(behind: &[u8]) -> bool {
    alone_length(behind) > 0
}

/// Length of that rest, Sync included; 0 if something else comes, or has not arrived.
pub(super) fn alone_length(behind: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match frame::client_frame(&behind[at..]) {
            Ok(Some(size)) if size <= behind.len() - at => {
                let tag = behind[at];
                at += size;
                match tag {
                    b'S' => return at,
                    b'D' | b'E' => {}
                    _ => return 0,
                }
            }
            _ => return 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::alone_length;

    #[test]
    fn a_read_is_alone_only_up_to_its_sync() {
        let execute = b"E\0\0\0\x09\0\0\0\0\0";
        let sync = b"S\0\0\0\x04";
        let bind = b"B\0\0\0\x0c\0\0\0\0\0\0\0\0";
        assert_eq!(alone_length(&[&execute[..], sync].concat()), 15);
        assert_eq!(alone_length(&[&execute[..], bind, sync].concat()), 0);
        assert_eq!(alone_length(execute), 0, "Sync has not arrived");
    }
}
