//! Golden tables: statement -> plan. The notation is `describe`'s.

mod application;
mod definitions;
mod hazards;
mod hide;
mod lexer;
mod placement;
mod properties;
mod split;
mod tenant;
mod tools;
mod unsound;
mod values;

use super::plan::{Access, Broadcast, CopyRows, Effect, How, KeyPlace, Plan, Route};
use super::test_catalog as catalog;
use super::{RouteContext, Routed, Router, SearchPath};

pub(super) fn context<'a>(catalog: &'a crate::catalog::Catalog, path: &'a SearchPath) -> RouteContext<'a> {
    RouteContext {
        catalog,
        search_path: path,
        user: "app",
        standard_conforming_strings: true,
        client_encoding_is_utf8: true,
        session_has_temp: false,
    }
}

/// Runs `f` with a fresh router over the test catalog.
pub(super) fn with_router<T>(f: impl FnOnce(&mut Router, &RouteContext<'_>) -> T) -> T {
    let catalog = catalog::test_catalog();
    let path = SearchPath::parse("\"$user\", public", "app");
    f(&mut Router::new(2048), &context(&catalog, &path))
}

fn place(place: &KeyPlace) -> String {
    match place {
        // Constants are counted from 0 in plans and in this notation.
        KeyPlace::Literal(n) => format!("#{n}"),
        KeyPlace::Parameter(n) => format!("${}", n + 1),
        KeyPlace::ParameterArray(n) => format!("any ${}", n + 1),
        KeyPlace::LiteralArray(n) => format!("any #{n}"),
        KeyPlace::OneOf(all) => format!("[{}]", all.iter().map(self::place).collect::<Vec<_>>().join(" ")),
        KeyPlace::Null => "null".to_owned(),
        KeyPlace::Symbol => "symbol".to_owned(),
    }
}

/// `key $1 r`: route, values, then `r`/`w` for the access, then the effect if there is one.
pub(super) fn describe(plan: &Plan) -> String {
    let route = match &plan.route {
        Route::Session => "session".to_owned(),
        Route::Key(keys) => {
            let all: Vec<String> = keys
                .iter()
                .map(|k| format!("{}{}", if k.batch { "batch " } else { "" }, place(&k.place)))
                .collect();
            format!("key {}", all.join(", "))
        }
        Route::Any => "any".to_owned(),
        Route::Default => "default".to_owned(),
        Route::All(Broadcast::Ddl) => "ddl".to_owned(),
        Route::All(Broadcast::DdlAutocommit) => "ddl-autocommit".to_owned(),
        Route::All(Broadcast::ReferenceWrite) => "reference-write".to_owned(),
        Route::SplitInsert(split) => {
            let keys: Vec<String> = split.rows.iter().map(|r| place(&r.key.place)).collect();
            format!("split {}", keys.join(", "))
        }
        Route::Scatter(How::Each) => "each".to_owned(),
        Route::Scatter(How::Gather) => "gather".to_owned(),
        Route::Scatter(How::Apply) => "apply".to_owned(),
        Route::CopyIn(copy) => match copy.rows {
            CopyRows::ByKey { position, .. } => format!("copy-in {position}"),
            CopyRows::Everywhere => "copy-in everywhere".to_owned(),
        },
        Route::Refuse(refusal) => return format!("refuse {}", refusal.sqlstate),
    };
    let access = if plan.access == Access::Read { "r" } else { "w" };
    match &plan.effect {
        Effect::None | Effect::CreatesObject => format!("{route} {access}"),
        effect => format!("{route} {access} {effect:?}"),
    }
}

pub(super) fn describe_all(routed: &Routed) -> String {
    routed.statements.iter().map(|s| describe(&s.plan)).collect::<Vec<_>>().join("; ")
}

/// Checks a table of cases, and that the cached plan (second time) is the same; reports every difference at once.
pub(super) fn check(cases: &[(&str, &str)]) {
    with_router(|router, context| {
        let mut wrong = Vec::new();
        for (sql, expected) in cases {
            for _ in 0..2 {
                let routed = router.simple(context, sql.as_bytes());
                let found = describe_all(&routed);
                if found != *expected {
                    let why = routed.statements.iter().find_map(|s| match &s.plan.route {
                        Route::Refuse(refusal) => Some(refusal.message.clone()),
                        _ => None,
                    });
                    wrong.push(format!(
                        "{sql}\n    expected {expected}\n    found    {found} {}",
                        why.unwrap_or_default()
                    ));
                    break;
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    });
}
