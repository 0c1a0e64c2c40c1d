//! The two that are compared: one PostgreSQL, and the proxy with its shards.

use anyhow::{Context, Result, bail};

use crate::answer::{Event, Rows, Types, Verdict, compare, messages};
use crate::catalog::Statement;
use crate::client::{Address, Client, Value};
use crate::schema::{self, REFERENCE};
use crate::text;

/// The seed of the bucket function; see the README's "How a row finds its shard".
const SEED: i64 = 8_816_678_312_871_386_365;
const BUCKETS: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// The text in a Query message.
    Simple,
    /// Extended, with constants as parameters in text format, results in text format.
    Text,
    /// Extended, with parameters and results in binary format.
    Binary,
}

pub(crate) const MODES: [Mode; 3] = [Mode::Simple, Mode::Text, Mode::Binary];

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Simple => "simple",
            Mode::Text => "extended-text",
            Mode::Binary => "extended-binary",
        }
    }
}

pub(crate) struct Side {
    pub address: Address,
    pub client: Client,
    pub types: Types,
}

impl Side {
    pub(crate) fn connect(url: &str) -> Result<Side> {
        let address = Address::parse(url)?;
        let client = schema::connect(&address)?;
        Ok(Side { address, client, types: Types::new() })
    }

    fn again(&mut self) -> Result<()> {
        self.client = schema::connect(&self.address)?;
        Ok(())
    }
}

pub(crate) struct Sides {
    pub one: Side,
    pub four: Side,
    /// Asks the one server what types a statement's parameters have, without an error's effect on a transaction.
    describer: Client,
    /// The connections are other ones than before.
    pub lost: bool,
}

/// What came out of one statement in one mode.
pub(crate) struct Outcome {
    pub verdict: Verdict,
    /// The errors' texts, where they differ though the errors are the same.
    pub texts: Option<(String, String)>,
    pub failed: bool,
    /// One of them did not answer in the time that it was given.
    pub slow: bool,
}

impl Sides {
    pub(crate) fn connect(one: &str, four: &str) -> Result<Sides> {
        let (one, four) = (Side::connect(one)?, Side::connect(four)?);
        let describer = schema::connect(&one.address)?;
        Ok(Sides { one, four, describer, lost: false })
    }

    pub(crate) fn learn_types(&mut self) -> Result<()> {
        for side in [&mut self.one, &mut self.four] {
            side.types = schema::types(&mut side.client)?;
        }
        Ok(())
    }

    pub(crate) fn reconnect(&mut self) -> Result<()> {
        self.lost = true;
        self.one.again()?;
        self.four.again()
    }

    /// Runs it on both. A connection that is lost is a difference.
    pub(crate) fn ask(&mut self, statement: &Statement, mode: Mode) -> Result<Outcome> {
        let (sql, values) = self.parameters(statement, mode);
        let binary = mode == Mode::Binary;
        let ask = |client: &mut Client| match mode {
            Mode::Simple => client.simple(&sql, statement.copy.as_deref()),
            Mode::Text | Mode::Binary => client.extended(&sql, &values, binary, 0),
        };
        let (one, four) = (ask(&mut self.one.client), ask(&mut self.four.client));
        let (one, four) = match (one, four) {
            (Ok(one), Ok(four)) => (one, four),
            (one, four) => {
                let end = |answer: &Result<Vec<Event>>| match answer {
                    Ok(_) => "answered".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                let why = format!("  one server: {}\n  the proxy:  {}\n", end(&one), end(&four));
                self.reconnect()?;
                return Ok(Outcome {
                    verdict: Verdict::Different(why),
                    texts: None,
                    failed: true,
                    slow: false,
                });
            }
        };
        let verdict = compare((&one, &self.one.types), (&four, &self.four.types), statement.rows);
        let (expected, got) = (messages(&one), messages(&four));
        let texts =
            (verdict == Verdict::Equal && expected != got).then(|| (expected.join("; "), got.join("; ")));
        let failed = four.iter().any(|event| matches!(event, Event::Error(_)));
        let canceled = |event: &Event| matches!(event, Event::Error(error) if error.get('C') == "57014");
        let slow = one.iter().chain(&four).any(canceled);
        Ok(Outcome { verdict, texts, failed, slow })
    }

    /// The text and its parameters' values. A text that PostgreSQL does not take with parameters is left as it is.
    fn parameters(&mut self, statement: &Statement, mode: Mode) -> (String, Vec<Value>) {
        let plain = || (statement.sql.clone(), Vec::new());
        if mode == Mode::Simple {
            return plain();
        }
        let (sql, values) = text::with_parameters(&statement.sql);
        if values.is_empty() {
            return plain();
        }
        let Ok(described) = self.describer.describe(&sql) else { return plain() };
        let types = described.iter().find_map(|event| match event {
            Event::Parameters(types) => Some(types),
            _ => None,
        });
        let Some(types) = types.filter(|types| types.len() == values.len()) else { return plain() };
        let value = |(text, oid): (String, &u32)| match mode {
            Mode::Binary => binary(&text, *oid).map_or(Value::Text(text), Value::Binary),
            _ => Value::Text(text),
        };
        (sql, values.into_iter().zip(types).map(value).collect())
    }

    /// The same on both, whatever it answers.
    pub(crate) fn both(&mut self, sql: &str) -> Result<()> {
        let sent = [&mut self.one, &mut self.four].map(|side| side.client.simple(sql, None).map(|_| ()));
        if sent.iter().any(Result::is_err) {
            self.reconnect()?;
        }
        Ok(())
    }

    pub(crate) fn tables_are_equal(&mut self, tables: &[String]) -> Result<Verdict> {
        for table in tables {
            let statement = Statement {
                // Types of the suite have other OIDs on each shard.
                sql: format!("SELECT {} FROM {table} t", if table == "typed" { "t::text" } else { "*" }),
                rows: Rows::AnyOrder,
                copy: None,
                simple_only: true,
                text_only: true,
                deviates: None,
            };
            match self.ask(&statement, Mode::Simple)?.verdict {
                Verdict::Equal => {}
                Verdict::Refused(why) => {
                    return Ok(Verdict::Different(format!("  {table} afterwards: refused: {why}\n")));
                }
                Verdict::Different(why) => {
                    return Ok(Verdict::Different(format!("  {table} afterwards:\n{why}")));
                }
            }
        }
        Ok(Verdict::Equal)
    }
}

fn binary(text: &str, oid: u32) -> Option<Vec<u8>> {
    Some(match oid {
        16 => vec![u8::from(text.parse::<bool>().ok()?)],
        20 => text.parse::<i64>().ok()?.to_be_bytes().to_vec(),
        21 => text.parse::<i16>().ok()?.to_be_bytes().to_vec(),
        23 => text.parse::<i32>().ok()?.to_be_bytes().to_vec(),
        701 => text.parse::<f64>().ok()?.to_be_bytes().to_vec(),
        25 | 1042 | 1043 => text.as_bytes().to_vec(),
        2950 => {
            let digits: String = text.chars().filter(|c| *c != '-').collect();
            let bytes =
                (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok());
            bytes.collect::<Option<Vec<u8>>>().filter(|bytes| bytes.len() == 16)?
        }
        _ => return None,
    })
}

/// The shards themselves: whether each row is where its key says, and reference tables are the same everywhere. The proxy
/// would show a row that it stored in the wrong place.
pub(crate) struct Shards(Vec<Client>);

impl Shards {
    pub(crate) fn from_environment() -> Result<Shards> {
        let mut clients = Vec::new();
        while let Ok(url) = std::env::var(format!("SHARD{}_PRIMARY_URL", clients.len() + 1)) {
            clients.push(schema::connect(&Address::parse(&url)?)?);
        }
        if clients.is_empty() {
            bail!("SHARD1_PRIMARY_URL is not set");
        }
        Ok(Shards(clients))
    }

    pub(crate) fn check(&mut self, tables: &[String]) -> Result<Verdict> {
        let count = self.0.len();
        for table in tables {
            let reference = REFERENCE.contains(&table.as_str());
            if !reference && matches!(table.as_str(), "settings" | "numbers") {
                continue;
            }
            let mut first: Option<Vec<Event>> = None;
            for (index, client) in self.0.iter_mut().enumerate() {
                if reference {
                    let answer =
                        schema::run(client, &format!("SELECT * FROM {table} t ORDER BY t::text"), None)?;
                    match &first {
                        None => first = Some(answer),
                        Some(expected) if *expected == without_oids(&answer, expected) => {}
                        Some(_) => {
                            return Ok(Verdict::Different(format!(
                                "  {table} is not the same on every shard\n"
                            )));
                        }
                    }
                    continue;
                }
                let sql = format!(
                    "SELECT count(*) FROM {table} WHERE (uuid_hash_extended(tenant_id, {SEED}) & {}) / {} <> {index}",
                    BUCKETS - 1,
                    BUCKETS / count
                );
                let answer = schema::run(client, &sql, None)?;
                let strangers = answer.iter().find_map(|event| match event {
                    Event::Row(values) => values.first().cloned().flatten(),
                    _ => None,
                });
                let strangers = strangers.context("no count")?;
                if *strangers != *b"0" {
                    let n = String::from_utf8_lossy(&strangers).into_owned();
                    return Ok(Verdict::Different(format!(
                        "  {n} rows of {table} are on the wrong shard {}\n",
                        index + 1
                    )));
                }
            }
        }
        Ok(Verdict::Equal)
    }
}

/// A description with the expected one in its place: types' OIDs are each server's own.
fn without_oids(answer: &[Event], expected: &[Event]) -> Vec<Event> {
    let replace = |(at, event): (usize, &Event)| match (event, expected.get(at)) {
        (Event::Columns(_), Some(known @ Event::Columns(_))) => known.clone(),
        _ => event.clone(),
    };
    answer.iter().enumerate().map(replace).collect()
}
