//! What a client has SET, and how a server gets the same. PURE.
//!
//! Equal sets of settings are one object per worker, so that "does this server have my settings?" is a comparison
//! of two pointers, and an idle client owns no copy.

use std::collections::HashMap;
use std::rc::Rc;

use crate::limits;
use crate::route::SearchPath;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// As a startup packet or `set_config` has it: the value itself.
    Raw(String),
    /// As SET has it: SQL text, e.g. `'a', "B"` or `on`.
    Sql(String),
}

impl Value {
    /// The value without quotes, as far as the proxy itself must understand it.
    pub fn plain(&self) -> String {
        match self {
            Self::Raw(text) => text.clone(),
            Self::Sql(text) => {
                let text = text.trim();
                match text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
                    Some(inner) if !inner.replace("''", "").contains('\'') => inner.replace("''", "'"),
                    _ => text.to_owned(),
                }
            }
        }
    }
}

#[derive(Debug)]
pub struct Settings {
    /// Unique in this worker; part of the key of shared prepared statements, because literals such as
    /// '01/02/2020'::date are read at Parse with the settings of that moment.
    pub id: u64,
    values: Vec<(String, Value)>,
    // What routing needs of them.
    pub search_path: SearchPath,
    pub standard_conforming_strings: bool,
    pub client_encoding_is_utf8: bool,
    /// `shard.key`: the session sees the rows of this key only.
    pub key: Option<Box<str>>,
    /// The current role: who logged in, or whom SET ROLE and SET SESSION AUTHORIZATION name.
    pub user: String,
}

impl Settings {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Do statements mean the same with these settings, as far as routing knows?
    pub fn routes_like(&self, other: &Self) -> bool {
        self.id == other.id
            || (self.search_path == other.search_path
                && self.standard_conforming_strings == other.standard_conforming_strings
                && self.client_encoding_is_utf8 == other.client_encoding_is_utf8
                && self.key == other.key)
    }

    fn new(id: u64, user: &str, values: Vec<(String, Value)>) -> Self {
        let plain = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, v)| v);
        let search_path = match plain("search_path") {
            Some(Value::Raw(text) | Value::Sql(text)) if !text.eq_ignore_ascii_case("default") => text,
            _ => DEFAULT_SEARCH_PATH,
        };
        let role = plain("role").map(Value::plain).filter(|role| role != "none");
        let user = role
            .or_else(|| plain("session_authorization").map(Value::plain))
            .unwrap_or_else(|| user.to_owned());
        let search_path = SearchPath::parse(search_path, &user);
        let standard_conforming_strings =
            plain("standard_conforming_strings").is_none_or(|v| parse_bool(&v.plain()) != Some(false));
        let client_encoding_is_utf8 = plain("client_encoding").is_none_or(|value| {
            let name: String = value.plain().chars().filter(char::is_ascii_alphanumeric).collect();
            matches!(name.to_ascii_lowercase().as_str(), "utf8" | "unicode" | "default")
        });
        let key = plain("shard.key")
            .map(Value::plain)
            .filter(|key| !key.is_empty() && !key.eq_ignore_ascii_case("default"));
        let key = key.map(String::into_boxed_str);
        Self { id, values, key, search_path, standard_conforming_strings, client_encoding_is_utf8, user }
    }
}

/// As `parse_bool_with_len` in src/backend/utils/adt/bool.c: any unique beginning of a word will do.
fn parse_bool(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || text == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0" {
        Some(false)
    } else {
        None
    }
}

/// PostgreSQL's built-in default; a server configured otherwise must have it in the proxy's startup options.
const DEFAULT_SEARCH_PATH: &str = "\"$user\", public";

/// Every set of settings in use by one role's clients of this worker.
#[derive(Debug)]
pub struct SettingsTable {
    known: HashMap<Vec<(String, Value)>, Rc<Settings>>,
    none: Rc<Settings>,
    user: String,
    next: u64,
}

impl SettingsTable {
    /// `number` tells the tables of a worker apart, so that an id is never given out twice.
    pub fn new(user: &str, number: u32) -> Self {
        let first = u64::from(number) << 32;
        let none = Rc::new(Settings::new(first, user, Vec::new()));
        Self { known: HashMap::new(), none, user: user.to_owned(), next: first + 1 }
    }

    pub fn none(&self) -> Rc<Settings> {
        self.none.clone()
    }

    /// `base` with one setting changed (`None`: back to the server's default). `Err` when there are too many.
    pub fn with(
        &mut self,
        base: &Rc<Settings>,
        name: &str,
        value: Option<Value>,
    ) -> Result<Rc<Settings>, ()> {
        if base.get(name) == value.as_ref() {
            return Ok(base.clone());
        }
        let mut values: Vec<_> = base.values.iter().filter(|(known, _)| known != name).cloned().collect();
        if let Some(value) = value {
            values.push((name.to_owned(), value));
        }
        values.sort_by(|a, b| a.0.cmp(&b.0));
        if values.len() > limits::SETTINGS_PER_SESSION {
            return Err(());
        }
        if values.is_empty() {
            return Ok(self.none.clone());
        }
        if let Some(known) = self.known.get(&values) {
            return Ok(known.clone());
        }
        if self.known.len() >= limits::SETTINGS_CACHE {
            self.known.retain(|_, settings| Rc::strong_count(settings) > 1);
        }
        let settings = Rc::new(Settings::new(self.next, &self.user, values.clone()));
        self.next += 1;
        self.known.insert(values, settings.clone());
        Ok(settings)
    }
}

/// The statements that bring a server from `from` to `to`.
pub fn replay(from: &Settings, to: &Settings) -> String {
    // A role must be left before, and entered after, everything else.
    let is_role = |name: &str| name == "role" || name == "session_authorization";
    let mut sql = String::new();
    let reset = |sql: &mut String, name: &str| {
        sql.push_str("RESET ");
        sql.push_str(&setting_name(name));
        sql.push(';');
    };
    for (name, _) in from.values.iter().filter(|(name, _)| is_role(name)) {
        reset(&mut sql, name);
    }
    for (name, _) in from.values.iter().filter(|(name, _)| !is_role(name) && to.get(name).is_none()) {
        reset(&mut sql, name);
    }
    for (name, value) in to.values.iter().filter(|(name, _)| !is_role(name)) {
        if from.get(name) != Some(value) {
            set(&mut sql, name, value, false);
        }
    }
    // SET SESSION AUTHORIZATION leaves the role, so it comes first.
    for (name, value) in to.values.iter().rev().filter(|(name, _)| is_role(name)) {
        set(&mut sql, name, value, false);
    }
    sql
}

/// Appends the statement that gives a setting this value, for the session or for its transaction (`local`).
pub fn set(sql: &mut String, name: &str, value: &Value, local: bool) {
    match value {
        Value::Raw(text) => {
            sql.push_str("SELECT pg_catalog.set_config(");
            quote(sql, name);
            sql.push(',');
            quote(sql, text);
            sql.push_str(if local { ",true);" } else { ",false);" });
        }
        Value::Sql(text) => {
            sql.push_str(if local { "SET LOCAL " } else { "SET " });
            sql.push_str(&setting_name(name));
            sql.push_str(" TO ");
            sql.push_str(text);
            sql.push(';');
        }
    }
}

/// A setting's name as SQL: `TimeZone`, `app.tenant`, quoted where it must be.
fn setting_name(name: &str) -> String {
    let part = |part: &str| {
        if !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !part.as_bytes()[0].is_ascii_digit()
        {
            part.to_owned()
        } else {
            format!("\"{}\"", part.replace('"', "\"\""))
        }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// A string constant that means the same whatever standard_conforming_strings says.
pub fn quote(sql: &mut String, text: &str) {
    if text.contains('\\') {
        sql.push_str(" E");
    }
    sql.push('\'');
    for c in text.chars() {
        if c == '\'' || c == '\\' {
            sql.push(c);
        }
        sql.push(c);
    }
    sql.push('\'');
}

/// The `-c name=value` and `--name=value` switches of the startup parameter `options`, with its backslash escapes.
pub fn parse_options(options: &str) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.push(chars.next()?),
            c if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next()?
        } else if let Some(rest) = word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            rest.to_owned()
        } else {
            return None;
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_changes_only_what_differs() {
        let mut table = SettingsTable::new("app", 0);
        let none = table.none();
        let a = table.with(&none, "timezone", Some(Value::Raw("UTC".into()))).expect("few");
        let ab = table.with(&a, "search_path", Some(Value::Sql("a, \"B\"".into()))).expect("few");
        let b = table.with(&ab, "timezone", None).expect("few");
        assert_eq!(replay(&none, &a), "SELECT pg_catalog.set_config('timezone','UTC',false);");
        assert_eq!(replay(&a, &ab), "SET search_path TO a, \"B\";");
        assert_eq!(replay(&ab, &b), "RESET timezone;");
        assert_eq!(replay(&b, &b), "");
        assert!(
            Rc::ptr_eq(&table.with(&b, "search_path", None).expect("few"), &none),
            "equal sets are one object"
        );
    }

    #[test]
    fn a_role_is_left_first_and_entered_last() {
        let mut table = SettingsTable::new("app", 0);
        let none = table.none();
        let role = table.with(&none, "role", Some(Value::Sql("a".into()))).expect("few");
        let both = table.with(&role, "statement_timeout", Some(Value::Sql("5".into()))).expect("few");
        assert_eq!(replay(&role, &both), "RESET role;SET statement_timeout TO 5;SET role TO a;");
    }

    #[test]
    fn h25_what_routing_needs_is_read_as_postgres_reads_it() {
        let mut table = SettingsTable::new("app", 0);
        let none = table.none();
        let mut with = |base: &Rc<Settings>, name: &str, value: &str| {
            table.with(base, name, Some(Value::Sql(value.to_owned()))).expect("few")
        };
        for (value, on) in
            [("'of'", false), ("'fal'", false), ("N", false), ("0", false), ("'tr'", true), ("on", true)]
        {
            assert_eq!(
                with(&none, "standard_conforming_strings", value).standard_conforming_strings,
                on,
                "{value}"
            );
        }
        let role = with(&none, "role", "'x'");
        assert_eq!(role.search_path.schemas().collect::<Vec<_>>(), ["pg_catalog", "x", "public"]);
        assert!(!role.routes_like(&none));
        assert!(with(&none, "role", "'none'").routes_like(&none));
        let session = with(&none, "session_authorization", "'y'");
        let both = with(&session, "role", "'x'");
        assert_eq!(both.user, "x");
        assert_eq!(replay(&none, &both), "SET session_authorization TO 'y';SET role TO 'x';");
    }

    #[test]
    fn options_of_the_startup_packet() {
        let parsed = parse_options("-c shard.target=2 --search-path=a\\ b -cgeqo=off").expect("well formed");
        let expected = [("shard.target", "2"), ("search_path", "a b"), ("geqo", "off")];
        assert_eq!(parsed, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert!(parse_options("-x 5").is_none());
    }

    #[test]
    fn quoting_survives_backslashes() {
        let mut sql = String::new();
        quote(&mut sql, r"a'b\c");
        assert_eq!(sql, r" E'a''b\\c'");
    }
}
