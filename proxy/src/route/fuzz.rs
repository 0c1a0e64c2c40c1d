//! Arbitrary text through the lexer and the analyser, arbitrary bytes as keys.
//!
//! Nothing panics (not even where the analyser would catch it), nothing lies outside of the text, and the properties
//! that routing rests on hold: lexer and grammar split alike, and a plan from the cache is that of a fresh analysis.

use std::sync::LazyLock;

use shard_config::{KeyType, ShardId, ShardMap};

use super::lex::{self, Literals};
use super::plan::Route;
use super::test_catalog::{oracle_tables, test_catalog};
use super::values::KeyReader;
use super::{NoParams, ParamValue, Params, RouteContext, Router, SearchPath, arrays, resolve, tokens};
use crate::catalog::Catalog;

/// Longer texts find nothing that shorter ones do not, and the grammar takes its time for them.
const TEXT: usize = 4096;

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let mut catalog = test_catalog();
    oracle_tables(&mut catalog);
    catalog
});
static PATHS: LazyLock<Vec<SearchPath>> = LazyLock::new(|| {
    let schemas = ["oracle, public", "\"$user\", public", "tpch", "tpcc", "tpcb"];
    schemas.iter().map(|schema| SearchPath::parse(schema, "app")).collect()
});

/// The first byte says what is set, the rest is the text.
fn context(data: &[u8]) -> Option<(RouteContext<'static>, &[u8])> {
    let (set, text) = data.split_first()?;
    // What comes by the wire ends at its NUL.
    let usable = !text.contains(&0) && text.len() <= TEXT;
    let context = RouteContext {
        catalog: &CATALOG,
        search_path: PATHS.get(usize::from(set & 7) % PATHS.len())?,
        user: "app",
        standard_conforming_strings: set & 64 == 0,
        client_encoding_is_utf8: set & 32 == 0,
        session_has_temp: set & 16 != 0,
    };
    usable.then_some((context, text))
}

pub fn lexer(data: &[u8]) {
    let Some((context, text)) = context(data) else { return };
    let standard = context.standard_conforming_strings;
    let (mut from, mut count, mut sure) = (0, 0, true);
    while from < text.len() {
        let mut literals = Literals::new();
        let scanned = lex::scan(text, from, standard, &mut literals);
        assert!(scanned.next > from && scanned.next <= text.len());
        assert!(
            scanned.empty
                || (from <= scanned.start && scanned.start < scanned.end && scanned.end <= scanned.next)
        );
        let mut behind = 0;
        for literal in &literals {
            let start = literal.start as usize;
            assert!(behind <= start && start < literal.end() && scanned.start + literal.end() <= scanned.end);
            behind = literal.end();
        }
        count += usize::from(!scanned.empty);
        sure &= scanned.sure;
        from = scanned.next;
    }
    if let Some(tokens) = tokens::tokens(text, standard) {
        assert!(tokens.iter().all(|token| !token.range.is_empty() && token.range.end <= text.len()));
    }
    // The grammar's library reads strings by the standard only.
    if sure
        && standard
        && let Ok(text) = std::str::from_utf8(text)
        && let Ok(tree) = pg_raw_parse::parse(text)
        && !text.to_ascii_lowercase().contains("atomic")
    {
        assert_eq!(count, tree.iter().count(), "lexer and grammar do not split alike");
    }
}

pub fn analyser(data: &[u8]) {
    let Some((context, text)) = context(data) else { return };
    let map = ShardMap::even(&[ShardId(1), ShardId(2), ShardId(3), ShardId(4)], 4096);
    let params = NoParams { client_encoding_is_utf8: context.client_encoding_is_utf8 };
    let mut router = Router::new(64);
    let first = router.simple(&context, text);
    let cached = router.simple(&context, text);
    assert_eq!(first.statements.len(), cached.statements.len());
    for (statement, again) in first.statements.iter().zip(&cached.statements) {
        assert_eq!(format!("{:?}", statement.plan), format!("{:?}", again.plan), "a plan from the cache");
        let sql = text.get(statement.text.clone()).unwrap_or_default();
        let _ = resolve(&statement.plan, &statement.literals, sql, &params, &map);
        let _ = resolve(&statement.plan, &statement.literals, sql, &Bound(data), &map);
        if matches!(statement.plan.route, Route::Scatter(_) | Route::Key(_) | Route::SplitInsert(_)) {
            let _ = (router.gather(&context, sql), router.apply(&context, sql));
        }
    }
    let _ = router.parse(&context, text);
}

/// The bytes of the text itself as every parameter.
struct Bound<'a>(&'a [u8]);

impl Params for Bound<'_> {
    fn get(&self, n: u16) -> ParamValue<'_> {
        if n % 2 == 0 { ParamValue::Text(self.0) } else { ParamValue::Binary(self.0) }
    }

    fn type_oid(&self, n: u16) -> u32 {
        [0, 2950, 25, 20][usize::from(n) % 4]
    }

    fn client_encoding_is_utf8(&self) -> bool {
        true
    }
}

/// The first byte is the key's type.
pub fn keys(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let types = [KeyType::Uuid, KeyType::Int8, KeyType::Int4, KeyType::Int2, KeyType::Text];
    let key_type = types[usize::from(kind & 7) % types.len()];
    let reader = KeyReader { key_type, utf8: kind & 64 == 0 };
    let one_dimension = kind & 32 != 0;
    let _ = reader.text(bytes);
    for oid in [0, 20, 21, 23, 25, 1043, 1700, 2950, 16_400] {
        let _ = (reader.binary(bytes, oid), reader.parameter(ParamValue::Text(bytes), oid));
    }
    let mut found = 0usize;
    let _ = arrays::text_array(reader, bytes, one_dimension, |_| {
        found += 1;
        Ok(())
    });
    assert!(found <= bytes.len(), "an element takes a byte");
    let _ = arrays::binary_array(reader, bytes, one_dimension, |_| Ok(()));
}
