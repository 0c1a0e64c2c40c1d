//! The catalogue's files: SQL, with directives in comments.
//!
//! A statement ends with a semicolon at the end of a line; `\;` is a semicolon within it. `{name}` stands for each of the
//! values of a list in turn, `{k1}` for the key of tenant 1 as a constant and `{u1}` for its bare text.
//!
//! - `--! list NAME: a | b` values of `{NAME}` from here on; `--! + c | d` more of them, `--! + c` one that has bars.
//! - `--! writes t, u` the next statement changes these tables; they are compared after it and given back their rows.
//! - `--! rows any|count` the rows of the next statement are compared in any order, or only counted.
//! - `--! text` the next statement's rows are not compared in binary: they hold OIDs, which are each server's own.
//! - `--! deviates WHY` the next statement is known to be answered otherwise; the suite tells when it is not any more.
//! - `--! simple` the next statement makes sense in the simple protocol only.
//! - `--! script [simple]` ... `--! end [t, u]` a session: its statements run one after the other, and the tables get
//!   their rows back at the end. `--! cleanup SQL` runs on both at its end, however it went.
//! - `COPY ... FROM STDIN;` is followed by its rows up to `\.`.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;

use crate::answer::Rows;
use crate::text;

/// One template may not become more statements than these.
const MOST_EXPANSIONS: usize = 400;

#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub sql: String,
    pub rows: Rows,
    /// What is sent when the server asks for rows.
    pub copy: Option<String>,
    pub simple_only: bool,
    pub text_only: bool,
    /// Why it is known to differ.
    pub deviates: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Read(Statement),
    Write(Statement, Vec<String>),
    Script { steps: Vec<Statement>, cleanup: Vec<String>, tables: Vec<String>, simple_only: bool },
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub theme: String,
    pub line: usize,
    pub what: What,
}

impl Case {
    pub(crate) fn statements(&self) -> usize {
        match &self.what {
            What::Script { steps, .. } => steps.len(),
            _ => 1,
        }
    }
}

/// Tenants of the suite; the last two have no rows.
pub(crate) const TENANTS: usize = 16;

pub(crate) fn key(tenant: usize) -> String {
    format!("7e000000-0000-4000-8000-{tenant:012}")
}

#[derive(Default)]
struct Script {
    line: usize,
    steps: Vec<Statement>,
    cleanup: Vec<String>,
    simple_only: bool,
}

#[derive(Default)]
struct Next {
    writes: Option<Vec<String>>,
    rows: Option<Rows>,
    simple_only: bool,
    text_only: bool,
    deviates: Option<String>,
}

pub(crate) fn parse(theme: &str, file: &str) -> Result<Vec<Case>> {
    let mut lists = HashMap::new();
    for tenant in 1..=TENANTS {
        lists.insert(format!("k{tenant}"), vec![format!("'{}'", key(tenant))]);
        lists.insert(format!("u{tenant}"), vec![key(tenant)]);
    }
    let mut cases = Vec::new();
    let mut script: Option<Script> = None;
    let (mut next, mut last_list) = (Next::default(), String::new());
    let (mut sql, mut begun) = (String::new(), 0);
    let mut lines = file.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        let place = || format!("{theme}:{number}");
        if let Some(directive) = line.strip_prefix("--!").filter(|_| sql.is_empty()) {
            let directive = directive.trim();
            let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
            let rest = rest.trim();
            match word {
                "list" => {
                    let (name, values) = rest.split_once(':').with_context(place)?;
                    last_list = name.trim().to_owned();
                    let values = values.trim();
                    let values: Vec<String> = if values.is_empty() { Vec::new() } else { split(values) };
                    lists.insert(last_list.clone(), values);
                }
                "+" => lists.get_mut(&last_list).with_context(place)?.extend(split(rest)),
                "writes" => next.writes = Some(names(rest)),
                "rows" => {
                    next.rows = Some(match rest {
                        "any" => Rows::AnyOrder,
                        "count" => Rows::Count,
                        _ => bail!("{}: rows {rest}", place()),
                    });
                }
                "simple" => next.simple_only = true,
                "deviates" => next.deviates = Some(rest.to_owned()),
                "text" => next.text_only = true,
                "script" => {
                    let simple_only = rest == "simple";
                    script = Some(Script { line: number, simple_only, ..Script::default() });
                }
                "cleanup" => script.as_mut().with_context(place)?.cleanup.push(rest.to_owned()),
                "end" => {
                    let Script { line, steps, cleanup, simple_only } = script.take().with_context(place)?;
                    let what = What::Script { steps, cleanup, tables: names(rest), simple_only };
                    cases.push(Case { theme: theme.to_owned(), line, what });
                }
                _ => bail!("{}: unknown directive {word}", place()),
            }
            continue;
        }
        if sql.is_empty() && (line.trim().is_empty() || line.starts_with("--")) {
            continue;
        }
        if sql.is_empty() {
            begun = number;
        } else {
            sql.push('\n');
        }
        sql.push_str(line);
        let Some(text) = sql.strip_suffix(';').filter(|text| !text.ends_with('\\')) else { continue };
        let text = text.replace("\\;", ";");
        let upper = text.to_ascii_uppercase();
        let copy = (upper.trim_start().starts_with("COPY") && upper.contains("FROM STDIN")).then(|| {
            let rows = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "\\.");
            rows.map(|line| format!("{line}\n")).collect::<String>()
        });
        let options = std::mem::take(&mut next);
        for sql in expand(&text, &lists).with_context(|| format!("{theme}:{begun}"))? {
            let copy = match &copy {
                Some(rows) => Some(expand(rows, &lists)?.into_iter().next().unwrap_or_default()),
                None => None,
            };
            let in_order = if text::is_ordered(&sql) { Rows::InOrder } else { Rows::AnyOrder };
            let statement = Statement {
                rows: options.rows.unwrap_or(in_order),
                simple_only: options.simple_only || copy.is_some(),
                text_only: options.text_only,
                deviates: options.deviates.clone(),
                copy,
                sql,
            };
            match (&mut script, &options.writes) {
                (Some(script), _) => script.steps.push(statement),
                (None, Some(tables)) => {
                    let what = What::Write(statement, tables.clone());
                    cases.push(Case { theme: theme.to_owned(), line: begun, what });
                }
                (None, None) => {
                    cases.push(Case { theme: theme.to_owned(), line: begun, what: What::Read(statement) })
                }
            }
        }
        sql.clear();
    }
    if !sql.is_empty() || script.is_some() {
        bail!("{theme}:{begun}: not ended");
    }
    Ok(cases)
}

fn split(values: &str) -> Vec<String> {
    values.split(" | ").map(|value| value.trim().to_owned()).collect()
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// A statement for every combination of the values of the lists in it.
fn expand(template: &str, lists: &HashMap<String, Vec<String>>) -> Result<Vec<String>> {
    let mut done = Vec::new();
    let mut open = vec![template.to_owned()];
    while let Some(text) = open.pop() {
        match first_list(&text, lists) {
            None => done.push(text),
            Some((name, values)) => {
                let whole = format!("{{{name}}}");
                open.extend(values.iter().rev().map(|value| text.replace(&whole, value)));
            }
        }
        if done.len() + open.len() > MOST_EXPANSIONS {
            bail!("more than {MOST_EXPANSIONS} statements of one template");
        }
    }
    Ok(done)
}

fn first_list<'a>(text: &'a str, lists: &'a HashMap<String, Vec<String>>) -> Option<(&'a str, &'a [String])> {
    text.match_indices('{').find_map(|(at, _)| {
        let rest = &text[at + 1..];
        let name = &rest[..rest.find('}')?];
        lists.get(name).map(|values| (name, values.as_slice()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_become_statements() {
        let file = "-- About this.\n--! list f: min(a) | max(a)\n--! + a || '|'\nSELECT {f}\n  FROM t WHERE k = {k3};\n\n--! writes t, u\nDELETE FROM t;\n--! script\nBEGIN;\n--! cleanup DROP TABLE x\nCOPY t FROM STDIN;\n{u1}\t2\n\\.\nSELECT 1\\; SELECT 2;\n--! end t\n";
        let cases = parse("x", file).unwrap();
        let reads: Vec<&str> = cases
            .iter()
            .filter_map(|case| match &case.what {
                What::Read(statement) => Some(statement.sql.as_str()),
                _ => None,
            })
            .collect();
        let k = key(3);
        assert_eq!(
            reads,
            ["min(a)", "max(a)", "a || '|'"].map(|f| format!("SELECT {f}\n  FROM t WHERE k = '{k}'"))
        );
        let What::Write(_, tables) = &cases[3].what else { panic!("{:?}", cases[3]) };
        assert_eq!(tables, &["t", "u"]);
        let What::Script { steps, cleanup, tables, .. } = &cases[4].what else { panic!("{:?}", cases[4]) };
        assert_eq!((steps.len(), cleanup.len(), tables.len()), (3, 1, 1));
        assert_eq!(steps[1].copy.as_deref(), Some(format!("{}\t2\n", key(1)).as_str()));
        assert_eq!(steps[2].sql, "SELECT 1; SELECT 2");
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        for bad in ["SELECT 1", "--! script\nSELECT 1;", "--! nonsense\n", "--! end\n"] {
            assert!(parse("x", bad).is_err(), "{bad}");
        }
    }
}
