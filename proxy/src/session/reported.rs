//! ParameterStatus: what a client is told of its settings.

use std::net::SocketAddr;
use std::rc::Rc;

use super::Session;
use super::settings::Settings;
use crate::error::ProxyError;
use crate::limits;
use crate::wire::{build, frame, read};
use crate::worker::{UserSpace, Worker};

/// The ParameterStatus messages for these settings. Asked of a server the first time, which also proves that the
/// settings are valid; after that a login needs no server.
pub(super) async fn reported(
    worker: &Rc<Worker>,
    space: &Rc<UserSpace>,
    settings: &Rc<Settings>,
    address: SocketAddr,
) -> Result<Rc<[u8]>, ProxyError> {
    if let Some(known) = space.reported.borrow().get(&settings.id) {
        return Ok(known.clone());
    }
    let shard = {
        let state = worker.state();
        let default = state.position(state.config.proxy.default_shard).unwrap_or(0);
        let is_up = |at: &usize| state.shards.get(*at).is_some_and(|s| s.primary.is_some());
        std::iter::once(default).chain(state.members()).find(is_up).unwrap_or(default)
    };
    let mut server = super::checkout::take_primary(worker, space, shard, false).await?;
    let sql = super::settings::replay(&server.settings, settings);
    if !sql.is_empty() {
        if let Err(why) = crate::pool::pool::round_trip(&mut server, sql.as_bytes()).await {
            server.dirty = true;
            tracing::info!(client = %address, why, "settings of a startup packet were refused");
            return Err(ProxyError::new("22023", why));
        }
        server.settings = settings.clone();
    }
    let mut out = Vec::new();
    for (name, value) in &server.parameters {
        build::parameter_status(&mut out, name, value);
    }
    let out: Rc<[u8]> = out.into();
    let mut reported = space.reported.borrow_mut();
    if reported.len() >= limits::SETTINGS_CACHE {
        reported.clear();
    }
    reported.insert(settings.id, out.clone());
    let pool = server.pool.clone();
    pool.put(server, worker.now.get());
    Ok(out)
}

impl Session {
    /// After a RESET that no server has run: the settings that have gone back to what the login reported.
    pub(super) fn report_restored(&self, before: &Settings, out: &mut Vec<u8>) {
        let known = self.space.reported.borrow().get(&self.startup_settings.id).cloned();
        let mut rest = known.as_deref().unwrap_or_default();
        while let Ok(Some(size)) = frame::server_frame(rest) {
            let Some((message, behind)) = rest.split_at_checked(size) else { break };
            rest = behind;
            let name = read::body(message).cstr().unwrap_or_default();
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            let startup = self.startup_settings.get(&name);
            if before.get(&name) != startup && self.settings.get(&name) == startup {
                out.extend_from_slice(message);
            }
        }
    }
}
