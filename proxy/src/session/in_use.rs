//! Definitions, LOCK and TRUNCATE while a cursor or portal over several shards is open. Its rows wait on a connection of
//! their own, which keeps its locks on the tables that were read: the session's other connections would wait for it, and
//! it for nobody, for ever.

use super::Session;
use crate::error::ProxyError;
use crate::route::plan::{Broadcast, Changes, Effect, Plan, Route};
use crate::route::tokens::{Token, tokens};

impl Session {
    /// What PostgreSQL says of a table that its session is reading (CheckTableNotInUse in
    /// src/backend/commands/tablecmds.c); a refusal where it would not mind.
    pub(super) fn in_use(&self, plan: &Plan, text: &[u8]) -> Option<ProxyError> {
        if !self.running.has_gathered()
            || matches!(plan.route, Route::All(Broadcast::DdlAutocommit) | Route::Refuse(_))
        {
            return None;
        }
        let text = String::from_utf8_lossy(text);
        let words = words(&text, self.routing().standard_conforming_strings);
        let verb = verb(plan, &words)?;
        let named = match &plan.changes {
            Some(Changes::Relations(names)) => names,
            _ => &plan.tables.names,
        };
        let read = |name: &&String| self.running.gathered().any(|plan| plan.tables.names.contains(*name));
        match named.iter().find(read) {
            Some(name) if !verb.is_empty() => Some(ProxyError::new(
                "55006",
                format!(
                    "cannot {verb} \"{name}\" because it is being used by active queries in this session"
                ),
            )),
            _ => Some(ProxyError::not_supported(
                format!(
                    "{} while a cursor or portal over several shards is open",
                    words.first().map_or("this", String::as_str)
                ),
                "CLOSE it first, or end the transaction.",
            )),
        }
    }
}

/// In upper case.
fn words(text: &str, standard_strings: bool) -> Vec<String> {
    let word = |token: Token| text.get(token.range).unwrap_or_default().to_uppercase();
    tokens(text.as_bytes(), standard_strings).unwrap_or_default().into_iter().map(word).collect()
}

/// `None`: it locks nobody out who only reads. Empty: one that PostgreSQL does not refuse, or not in these words.
fn verb(plan: &Plan, words: &[String]) -> Option<&'static str> {
    let word = |n: usize| words.get(n).map_or("", String::as_str);
    if word(0) == "TRUNCATE" {
        // Of temporary tables that no other connection has.
        return (!matches!(plan.route, Route::Any)).then_some("TRUNCATE");
    }
    if plan.effect == Effect::NeedsBlock("LOCK TABLE") {
        return (!matches!(plan.route, Route::Any)).then_some("");
    }
    if plan.effect != Effect::CreatesObject {
        return None;
    }
    match (word(0), word(1)) {
        ("ALTER", "TABLE") => Some("ALTER TABLE"),
        ("DROP", "TABLE") => Some("DROP TABLE"),
        ("ANALYZE" | "COMMENT" | "GRANT" | "REVOKE", _) => None,
        ("CREATE", _) => {
            let said = |of: &str| words.iter().take(5).any(|word| word == of);
            let part = words.windows(2).any(|pair| pair[0] == "PARTITION" && pair[1] == "OF");
            // PostgreSQL makes no index on what is being read, either.
            let locks = part || ["VIEW", "RULE", "POLICY", "INDEX"].into_iter().any(said);
            locks.then_some("")
        }
        _ => Some(""),
    }
}
