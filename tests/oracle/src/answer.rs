//! What a server answered, and whether two answers are the same.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

/// OIDs below are the same on every server (FirstNormalObjectId in src/include/access/transam.h).
const FIRST_USER_OID: u32 = 16_384;
/// Where an error comes from in a server's own source, and where in the text: not what an application relies on.
const SILENT_FIELDS: [char; 8] = ['S', 'M', 'D', 'H', 'P', 'W', 'q', 'p'];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub name: String,
    /// The OID of a user's table is each server's own: only whether there is one can be compared.
    pub of_table: bool,
    pub number: i16,
    pub type_oid: u32,
    pub size: i16,
    pub modifier: i32,
    pub format: i16,
}

/// The fields of an ErrorResponse or a NoticeResponse by their letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerError(pub BTreeMap<char, String>);

impl ServerError {
    pub(crate) fn get(&self, field: char) -> &str {
        self.0.get(&field).map_or("", String::as_str)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Parameters(Vec<u32>),
    /// Empty: NoData.
    Columns(Vec<Column>),
    Row(Vec<Option<Bytes>>),
    Tag(String),
    Error(ServerError),
    Notice(ServerError),
    /// A parameter whose value, as the client was told, is another than before the question.
    Setting(String, String),
    Ready(char),
}

/// Names of user-defined types by the OIDs that a client of this server finds in `pg_type`.
pub(crate) type Types = HashMap<u32, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Equal,
    /// The message of the refusal.
    Refused(String),
    Different(String),
}

impl Verdict {
    /// The worse of two.
    pub(crate) fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Different(why), _) | (_, Verdict::Different(why)) => Verdict::Different(why),
            (Verdict::Refused(why), _) | (_, Verdict::Refused(why)) => Verdict::Refused(why),
            _ => Verdict::Equal,
        }
    }
}

/// How much of the rows is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The statement's ORDER BY decides it.
    InOrder,
    AnyOrder,
    /// Their values depend on the clock or on the server: only how many there are.
    Count,
}

/// The refusal in an answer of the proxy.
pub(crate) fn refusal(events: &[Event]) -> Option<String> {
    events.iter().find_map(|event| match event {
        Event::Error(error) if error.get('C') == "0A000" && error.get('R') == "shard_proxy" => {
            Some(error.get('M').to_owned())
        }
        _ => None,
    })
}

pub(crate) fn compare(one: (&[Event], &Types), four: (&[Event], &Types), rows: Rows) -> Verdict {
    if let Some(message) = refusal(four.0) {
        return Verdict::Refused(message);
    }
    let (expected, got) = (lines(one.0, one.1, rows), lines(four.0, four.1, rows));
    if expected == got {
        return Verdict::Equal;
    }
    Verdict::Different(difference(&expected, &got))
}

/// The errors' texts, of answers that are equal otherwise.
pub(crate) fn messages(events: &[Event]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Error(error) => Some(error.get('M')),
            _ => None,
        })
        .collect()
}

fn difference(expected: &[String], got: &[String]) -> String {
    let at = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
    let mut out = String::new();
    for (who, lines) in [("one server:", expected), ("the proxy: ", got)] {
        let errors = lines.iter().find(|line| line.starts_with("error"));
        let line = lines.get(at).map_or("(nothing more)", String::as_str);
        let line: String = line.chars().take(600).collect();
        let _ = writeln!(out, "  {who} [{at} of {}] {line}", lines.len());
        if let Some(error) = errors.filter(|error| **error != line) {
            let _ = writeln!(out, "  {who} {error}");
        }
    }
    out
}

/// One line an event, with runs of rows sorted when their order means nothing.
fn lines(events: &[Event], types: &Types, rows: Rows) -> Vec<String> {
    let mut lines = Vec::new();
    let mut run: Vec<String> = Vec::new();
    let mut notices = Vec::new();
    for event in events {
        // Notices come when they come, but before the end of the command.
        if let Event::Notice(_) = event {
            notices.extend(line(event, types));
            continue;
        }
        if let Event::Row(values) = event {
            run.push(row(values));
            continue;
        }
        if matches!(event, Event::Error(_)) {
            // How much of an answer comes before its error is not defined.
            run.clear();
            while lines.last().is_some_and(|line: &String| {
                ["columns", "parameters"].iter().any(|kind| line.starts_with(kind))
            }) {
                lines.pop();
            }
        }
        end_run(&mut lines, &mut run, rows);
        if matches!(event, Event::Tag(_) | Event::Error(_)) {
            lines.append(&mut notices);
        }
        lines.extend(line(event, types));
    }
    lines.append(&mut notices);
    end_run(&mut lines, &mut run, rows);
    lines
}

fn end_run(lines: &mut Vec<String>, run: &mut Vec<String>, rows: Rows) {
    match rows {
        Rows::InOrder => {}
        Rows::AnyOrder => run.sort(),
        Rows::Count => {
            if !run.is_empty() {
                lines.push(format!("{} rows", run.len()));
            }
            run.clear();
        }
    }
    lines.append(run);
}

fn row(values: &[Option<Bytes>]) -> String {
    let mut out = String::from("row");
    for value in values {
        match value {
            None => out.push_str(" NULL"),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if !text.chars().any(char::is_control) => {
                    let _ = write!(out, " '{text}'");
                }
                _ => {
                    out.push_str(" \\x");
                    bytes.iter().for_each(|byte| {
                        let _ = write!(out, "{byte:02x}");
                    });
                }
            },
        }
    }
    out
}

fn line(event: &Event, types: &Types) -> Option<String> {
    let name = |oid: u32| match types.get(&oid) {
        Some(name) => name.clone(),
        None if oid < FIRST_USER_OID => oid.to_string(),
        None => format!("{oid}, which pg_type does not know"),
    };
    Some(match event {
        Event::Parameters(oids) => {
            format!("parameters {}", oids.iter().map(|oid| name(*oid)).collect::<Vec<_>>().join(" "))
        }
        Event::Columns(columns) => {
            let mut out = String::from("columns");
            for column in columns {
                let of =
                    if column.of_table { format!(" of a table's {}", column.number) } else { String::new() };
                let _ = write!(
                    out,
                    " [{} type {} size {} modifier {} format {}{of}]",
                    column.name,
                    name(column.type_oid),
                    column.size,
                    column.modifier,
                    column.format
                );
            }
            out
        }
        Event::Row(values) => row(values),
        Event::Tag(tag) => format!("tag {tag}"),
        Event::Error(error) => format!("error{}", told(error)),
        Event::Notice(notice) => format!("notice{}", told(notice)),
        Event::Setting(name, value) => format!("setting {name} = {value}"),
        Event::Ready(status) => format!("ready {status}"),
    })
}

/// SQLSTATE, severity and the names of what is violated.
fn told(error: &ServerError) -> String {
    let mut out = String::new();
    for (field, value) in &error.0 {
        if !SILENT_FIELDS.contains(field) && !matches!(field, 'F' | 'L' | 'R') {
            let _ = write!(out, " {field}={value}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[&str]) -> Vec<Event> {
        values.iter().map(|v| Event::Row(vec![Some(Bytes::copy_from_slice(v.as_bytes()))])).collect()
    }

    fn verdict(one: &[Event], four: &[Event], how: Rows) -> Verdict {
        compare((one, &Types::new()), (four, &Types::new()), how)
    }

    #[test]
    fn order_counts_only_where_it_is_defined() {
        let (one, four) = (rows(&["a", "b"]), rows(&["b", "a"]));
        assert_eq!(verdict(&one, &four, Rows::AnyOrder), Verdict::Equal);
        assert!(matches!(verdict(&one, &four, Rows::InOrder), Verdict::Different(_)));
        assert!(matches!(verdict(&one, &rows(&["a", "a"]), Rows::AnyOrder), Verdict::Different(_)));
        assert!(matches!(verdict(&one, &rows(&["a"]), Rows::Count), Verdict::Different(_)));
    }

    #[test]
    fn an_error_is_its_state_and_a_refusal_is_ours_only() {
        let error = |code: &str, routine: &str| {
            let fields = [('C', code), ('R', routine), ('M', "m"), ('L', routine)];
            vec![Event::Error(ServerError(fields.map(|(f, v)| (f, v.to_owned())).into_iter().collect()))]
        };
        assert_eq!(verdict(&error("22012", "a"), &error("22012", "b"), Rows::AnyOrder), Verdict::Equal);
        assert!(matches!(
            verdict(&error("22012", "a"), &error("22003", "a"), Rows::AnyOrder),
            Verdict::Different(_)
        ));
        assert!(matches!(
            verdict(&error("22012", "a"), &error("0A000", "shard_proxy"), Rows::AnyOrder),
            Verdict::Refused(_)
        ));
        assert!(matches!(
            verdict(&error("22012", "a"), &error("0A000", "a"), Rows::AnyOrder),
            Verdict::Different(_)
        ));
    }

    #[test]
    fn a_type_is_its_name() {
        let column = |oid| {
            let column = Column {
                name: "c".into(),
                of_table: false,
                number: 0,
                type_oid: oid,
                size: 4,
                modifier: -1,
                format: 0,
            };
            vec![Event::Columns(vec![column])]
        };
        let types = |oid, name: &str| Types::from([(oid, name.to_owned())]);
        let same = |four: u32, known: u32| {
            compare(
                (&column(20_000), &types(20_000, "mood")),
                (&column(four), &types(known, "mood")),
                Rows::AnyOrder,
            )
        };
        assert_eq!(same(30_000, 30_000), Verdict::Equal);
        assert!(matches!(same(30_000, 30_001), Verdict::Different(_)));
    }
}
