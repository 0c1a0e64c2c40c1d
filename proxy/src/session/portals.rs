//! A client's portals: bounded in number and in the bytes of the Bind messages that they keep. PURE.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::prepared::Entry;
use crate::error::ProxyError;
use crate::limits;
use crate::pool::server::ServerKey;
use crate::route::{ParamValue, Params};
use crate::wire::read;

/// The values of one Bind, as the router reads them.
pub(super) struct BindParams<'a> {
    pub(super) bind: read::Bind<'a>,
    pub(super) oids: &'a [u8],
    pub(super) utf8: bool,
}

impl Params for BindParams<'_> {
    #[inline]
    fn get(&self, n: u16) -> ParamValue<'_> {
        match self.bind.value(n) {
            Some(Some(value)) if self.bind.is_binary(n) => ParamValue::Binary(value),
            Some(Some(value)) => ParamValue::Text(value),
            _ => ParamValue::Null,
        }
    }

    #[inline]
    fn type_oid(&self, n: u16) -> u32 {
        let at = usize::from(n) * 4;
        self.oids.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn client_encoding_is_utf8(&self) -> bool {
        self.utf8
    }
}

#[derive(Clone)]
pub(super) enum Portal {
    /// On this server, which is not always the only one of its shard.
    Server { key: Rc<ServerKey>, entry: Rc<Entry> },
    /// Answered by the session.
    Local { entry: Rc<Entry>, binary: bool },
    /// PREPARE or EXECUTE in SQL; number and format codes of its columns, as in Bind.
    Sql { entry: Rc<Entry>, results: Box<[u8]> },
    /// Runs on several shards when executed; the Bind message is kept.
    Multi { entry: Rc<Entry>, bind: Rc<[u8]>, describe: bool },
    /// Has given some of its rows (see `running`).
    Running,
    /// Was run to its end, here or over several shards: this is said when it is executed again. Without it, it had no rows
    /// and cannot be run.
    Ended { again: Option<Rc<[u8]>> },
}

#[derive(Default)]
pub(super) struct Portals {
    named: FxHashMap<Box<[u8]>, Portal>,
    /// Of the names and of the Bind messages behind them.
    bytes: usize,
    /// One only, so its message is as bounded as any message.
    unnamed: Option<Portal>,
}

fn size(name: &[u8], portal: &Portal) -> usize {
    let bind = if let Portal::Multi { bind, .. } = portal { bind.len() } else { 0 };
    name.len() + bind
}

impl Portals {
    /// Why another portal of this name, with so many bytes of its Bind message, cannot be kept.
    pub(super) fn too_many(&self, name: &[u8], bytes: usize) -> Option<ProxyError> {
        let hint = "Close portals, or execute them before more are bound.";
        if name.is_empty() {
            None
        } else if self.named.len() >= limits::CLIENT_STATEMENTS && !self.named.contains_key(name) {
            Some(ProxyError::new("54000", "too many portals").hint(hint))
        } else if self.bytes + bytes > limits::CLIENT_BYTES {
            Some(ProxyError::new("54000", "too many bytes of portals").hint(hint))
        } else {
            None
        }
    }

    pub(super) fn set(&mut self, name: &[u8], portal: Portal) {
        if name.is_empty() {
            self.unnamed = Some(portal);
            return;
        }
        self.remove(name);
        self.bytes += size(name, &portal);
        self.named.insert(name.into(), portal);
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<Portal> {
        if name.is_empty() { self.unnamed.clone() } else { self.named.get(name).cloned() }
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Portal> {
        if name.is_empty() {
            return self.unnamed.take();
        }
        let portal = self.named.remove(name)?;
        self.bytes -= size(name, &portal);
        Some(portal)
    }

    /// Their transaction is over.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.unnamed = None;
        if !self.named.is_empty() {
            self.named = FxHashMap::default();
            self.bytes = 0;
        }
    }
}
