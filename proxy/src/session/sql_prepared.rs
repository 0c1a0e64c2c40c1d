//! SQL PREPARE and EXECUTE: what `crate::multi::prepared` asks of the session.

use std::rc::Rc;

use super::multi_hook::Participants;
use super::prepared::Entry;
use crate::error::ProxyError;
use crate::limits;
use crate::wire::build;

impl Participants<'_> {
    pub fn standard_strings(&self) -> bool {
        self.session.routing().standard_conforming_strings
    }

    /// A text's entry, analysed if it is new.
    pub fn prepared_entry(&mut self, sql: &[u8], oids: &[u8]) -> Result<Rc<Entry>, ProxyError> {
        self.session.entry(sql, oids)
    }

    pub fn add_prepared(&mut self, name: &str, entry: &Rc<Entry>) -> Result<(), ProxyError> {
        self.session.extended().add(name.as_bytes(), entry)
    }

    /// What was prepared under this name, by SQL or by the protocol.
    pub fn prepared(&mut self, name: &str) -> Result<Rc<Entry>, ProxyError> {
        self.session.statement(name.as_bytes())
    }

    pub fn parameter_type_names(&mut self, name: &str, entry: &Entry) -> Option<Rc<[String]>> {
        let (id, names) = self.session.extended().parameter_types.get(name.as_bytes())?;
        (*id == entry.id).then(|| names.clone())
    }

    pub fn remember_parameter_types(&mut self, name: &str, entry: &Entry, names: &Rc<[String]>) {
        let known = &mut self.session.extended().parameter_types;
        if known.len() >= limits::CLIENT_STATEMENTS {
            known.clear();
        }
        known.insert(name.as_bytes().into(), (entry.id, names.clone()));
    }

    /// The session goes on as if the client had sent this Bind, Execute and Sync (with a Describe between them when
    /// `rows` are to come), and says no BindComplete.
    pub fn bind_in_place(&mut self, bind: Vec<u8>, rows: bool) {
        let session = &mut *self.session;
        let mut messages = bind;
        if rows {
            build::named(&mut messages, b'D', b'P', b"");
        }
        let start = build::begin(&mut messages, b'E');
        messages.extend_from_slice(&[0; 5]);
        build::end(&mut messages, start);
        messages.extend_from_slice(build::SYNC);
        messages.extend_from_slice(&session.input);
        session.input = messages;
        session.hidden_bind = true;
        // A replica that cannot answer has the messages said again, as the client's own.
        session.force_primary = true;
    }
}
