//! `search_path`, resolved: which schemas an unqualified name is looked up in.

use std::hash::Hasher;

use rustc_hash::FxHasher;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchPath {
    /// In order; `"$user"` replaced by the role; `pg_catalog` first when the setting does not name it.
    schemas: Box<[String]>,
    hash: u64,
}

impl SearchPath {
    /// `setting` as in `SHOW search_path` or as in the text of a SET (`'a', b, "C"`); `user` is the current role.
    pub fn parse(setting: &str, user: &str) -> Self {
        let mut schemas: Vec<String> = Vec::new();
        for name in names(setting) {
            let name = if name == "$user" { user.to_owned() } else { name };
            if !name.is_empty() && !schemas.contains(&name) {
                schemas.push(name);
            }
        }
        // `pg_catalog` is searched first unless it is named (pg_temp's place is handled by the analyser).
        if !schemas.iter().any(|s| s == "pg_catalog") {
            schemas.insert(0, "pg_catalog".to_owned());
        }
        let mut hasher = FxHasher::default();
        for schema in &schemas {
            hasher.write(schema.as_bytes());
            hasher.write_u8(0);
        }
        // Roles with the same path still differ: privileges on views, "$user" in functions (H25).
        hasher.write(user.as_bytes());
        Self { schemas: schemas.into(), hash: hasher.finish() }
    }

    pub fn schemas(&self) -> impl Iterator<Item = &str> {
        self.schemas.iter().map(String::as_str)
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl Default for SearchPath {
    fn default() -> Self {
        Self::parse("\"$user\", public", "")
    }
}

/// Splits a list of names at commas; `"..."` and `'...'` quote, other names fold to lower case.
fn names(setting: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut quote: Option<char> = None;
    let mut quoted = false;
    let mut chars = setting.chars().peekable();
    let finish = |name: &mut String, quoted: &mut bool, names: &mut Vec<String>| {
        let taken = std::mem::take(name);
        names.push(if *quoted { taken } else { taken.trim().to_ascii_lowercase() });
        *quoted = false;
    };
    while let Some(c) = chars.next() {
        match quote {
            Some(q) if c == q && chars.peek() == Some(&q) => {
                chars.next();
                name.push(q);
            }
            Some(q) if c == q => quote = None,
            Some(_) => name.push(c),
            None if c == '"' || c == '\'' => {
                name.clear();
                quote = Some(c);
                quoted = true;
            }
            None if c == ',' => finish(&mut name, &mut quoted, &mut names),
            None if quoted && c.is_whitespace() => {}
            None => name.push(c),
        }
    }
    finish(&mut name, &mut quoted, &mut names);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(setting: &str, expected: &[&str]) {
        assert_eq!(SearchPath::parse(setting, "app").schemas().collect::<Vec<_>>(), expected, "{setting}");
    }

    #[test]
    fn search_path_is_read_as_postgres_prints_it() {
        check("\"$user\", public", &["pg_catalog", "app", "public"]);
        check("public", &["pg_catalog", "public"]);
        check("'$user', 'Mixed', Other", &["pg_catalog", "app", "Mixed", "other"]);
        check("a, pg_catalog", &["a", "pg_catalog"]);
        check("", &["pg_catalog"]);
        check("\"we\"\"ird, one\" , b", &["pg_catalog", "we\"ird, one", "b"]);
        assert_ne!(SearchPath::parse("a", "x").hash(), SearchPath::parse("a", "y").hash());
    }
}
