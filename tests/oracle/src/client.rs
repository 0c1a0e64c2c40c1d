//! A client that tells every message of an answer. Blocking: one question at a time is all it needs.

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::{backend, frontend};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::answer::{Column, Event, ServerError};

/// An answer that takes longer is a hang.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where to connect: `postgresql://user:password@host:port/database`.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    user: String,
    password: String,
    host: String,
    database: String,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Address> {
        let parts = || {
            let rest = url.split_once("://")?.1;
            let (login, place) = rest.split_once('@')?;
            let (user, password) = login.split_once(':')?;
            let (host, database) = place.split_once('/')?;
            let owned = |text: &str| text.to_owned();
            Some(Address {
                user: owned(user),
                password: owned(password),
                host: owned(host),
                database: owned(database.split('?').next().unwrap_or(database)),
            })
        };
        parts().with_context(|| format!("{url}: expected postgresql://user:password@host:port/database"))
    }
}

/// A parameter's value in the format that is sent.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Binary(Vec<u8>),
}

pub(crate) struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    /// What ParameterStatus told so far.
    told: BTreeMap<String, String>,
}

impl Client {
    pub(crate) fn connect(address: &Address, settings: &[(&str, &str)]) -> Result<Client> {
        let stream = TcpStream::connect(&address.host).with_context(|| address.host.clone())?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut client = Client { stream, buffer: BytesMut::new(), told: BTreeMap::new() };
        let mut out = BytesMut::new();
        let mut parameters = vec![("user", address.user.as_str()), ("database", address.database.as_str())];
        parameters.extend_from_slice(settings);
        frontend::startup_message(parameters, &mut out)?;
        client.send(&out)?;
        client.log_in(&address.password)?;
        Ok(client)
    }

    fn log_in(&mut self, password: &str) -> Result<()> {
        let mut scram: Option<ScramSha256> = None;
        loop {
            let mut out = BytesMut::new();
            match self.message()? {
                backend::Message::AuthenticationSasl(_) => {
                    let exchange = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), &mut out)?;
                    scram = Some(exchange);
                }
                backend::Message::AuthenticationSaslContinue(body) => {
                    let exchange = scram.as_mut().context("SCRAM out of order")?;
                    exchange.update(body.data())?;
                    frontend::sasl_response(exchange.message(), &mut out)?;
                }
                backend::Message::AuthenticationSaslFinal(body) => {
                    scram.as_mut().context("SCRAM out of order")?.finish(body.data())?;
                }
                backend::Message::ErrorResponse(body) => bail!("login: {:?}", error(&body)?),
                backend::Message::ParameterStatus(body) => {
                    self.told.insert(body.name()?.to_owned(), body.value()?.to_owned());
                }
                backend::Message::ReadyForQuery(_) => return Ok(()),
                _ => {}
            }
            self.send(&out)?;
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the connection was lost")
    }

    fn message(&mut self) -> Result<backend::Message> {
        loop {
            if let Some(message) = backend::Message::parse(&mut self.buffer)? {
                return Ok(message);
            }
            let mut chunk = [0; 32_768];
            match self.stream.read(&mut chunk).context("no answer")? {
                0 => bail!("the connection was closed"),
                size => self.buffer.extend_from_slice(&chunk[..size]),
            }
        }
    }

    /// The answer to a Query message. `copy`: what is sent when the server asks for rows.
    pub(crate) fn simple(&mut self, sql: &str, copy: Option<&str>) -> Result<Vec<Event>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out)?;
        self.answer(copy)
    }

    /// Parse, Describe of the statement, Sync: what the parameters' types are.
    pub(crate) fn describe(&mut self, sql: &str) -> Result<Vec<Event>> {
        let mut out = BytesMut::new();
        frontend::parse("", sql, [], &mut out)?;
        frontend::describe(b'S', "", &mut out)?;
        frontend::sync(&mut out);
        self.send(&out)?;
        self.answer(None)
    }

    /// Parse, Describe of the statement, Bind, Describe of the portal, Execute, Sync.
    pub(crate) fn extended(
        &mut self,
        sql: &str,
        values: &[Value],
        binary: bool,
        rows: i32,
    ) -> Result<Vec<Event>> {
        let mut out = BytesMut::new();
        frontend::parse("", sql, [], &mut out)?;
        frontend::describe(b'S', "", &mut out)?;
        let formats = values.iter().map(|value| i16::from(matches!(value, Value::Binary(_))));
        let bound = frontend::bind(
            "",
            "",
            formats,
            values,
            |value, out| {
                out.extend_from_slice(match value {
                    Value::Text(text) => text.as_bytes(),
                    Value::Binary(bytes) => bytes,
                });
                Ok(IsNull::No)
            },
            [i16::from(binary)],
            &mut out,
        );
        match bound {
            Ok(()) => {}
            Err(frontend::BindError::Conversion(error)) => bail!("bind: {error}"),
            Err(frontend::BindError::Serialization(error)) => return Err(error).context("bind"),
        }
        frontend::describe(b'P', "", &mut out)?;
        frontend::execute("", rows, &mut out)?;
        frontend::sync(&mut out);
        self.send(&out)?;
        self.answer(None)
    }

    /// All up to ReadyForQuery.
    fn answer(&mut self, copy: Option<&str>) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let before = self.told.clone();
        loop {
            let event = match self.message()? {
                backend::Message::RowDescription(body) => Event::Columns(columns(&body)?),
                backend::Message::ParameterDescription(body) => {
                    Event::Parameters(body.parameters().collect()?)
                }
                backend::Message::NoData => Event::Columns(Vec::new()),
                backend::Message::DataRow(body) => {
                    let bytes = body.buffer_bytes();
                    let value =
                        |range: Option<std::ops::Range<usize>>| Ok(range.map(|range| bytes.slice(range)));
                    Event::Row(body.ranges().map(value).collect::<Vec<Option<Bytes>>>()?)
                }
                backend::Message::CommandComplete(body) => Event::Tag(body.tag()?.to_owned()),
                backend::Message::EmptyQueryResponse => Event::Tag("(empty)".to_owned()),
                backend::Message::PortalSuspended => Event::Tag("(suspended)".to_owned()),
                backend::Message::ErrorResponse(body) => Event::Error(error(&body)?),
                backend::Message::NoticeResponse(body) => Event::Notice(fields(body.fields())?),
                backend::Message::ParameterStatus(body) => {
                    self.told.insert(body.name()?.to_owned(), body.value()?.to_owned());
                    continue;
                }
                backend::Message::CopyInResponse(_) => {
                    let mut out = BytesMut::new();
                    match copy {
                        Some(rows) => {
                            frontend::CopyData::new(rows.as_bytes())?.write(&mut out);
                            frontend::copy_done(&mut out);
                        }
                        None => frontend::copy_fail("no rows", &mut out)?,
                    }
                    self.send(&out)?;
                    continue;
                }
                backend::Message::CopyData(body) => Event::Row(vec![Some(body.into_bytes())]),
                backend::Message::ReadyForQuery(body) => {
                    let changed = self.told.iter().filter(|(name, value)| before.get(*name) != Some(*value));
                    events.extend(changed.map(|(name, value)| Event::Setting(name.clone(), value.clone())));
                    events.push(Event::Ready(char::from(body.status())));
                    return Ok(events);
                }
                _ => continue,
            };
            events.push(event);
        }
    }
}

fn columns(body: &backend::RowDescriptionBody) -> Result<Vec<Column>> {
    let column = |field: backend::Field<'_>| {
        Ok(Column {
            name: field.name().to_owned(),
            of_table: field.table_oid() != 0,
            number: field.column_id(),
            type_oid: field.type_oid(),
            size: field.type_size(),
            modifier: field.type_modifier(),
            format: field.format(),
        })
    };
    Ok(body.fields().map(column).collect()?)
}

fn error(body: &backend::ErrorResponseBody) -> Result<ServerError> {
    fields(body.fields())
}

fn fields(mut fields: backend::ErrorFields<'_>) -> Result<ServerError> {
    let mut error = ServerError::default();
    while let Some(field) = fields.next()? {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        error.0.insert(char::from(field.type_()), value);
    }
    Ok(error)
}
