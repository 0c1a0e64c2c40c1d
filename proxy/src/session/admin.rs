//! A client of the admin console: the database named `admin`. Off the data path, so plain and small.

use std::collections::HashMap;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::admin::{self, Context, Table};
use crate::error::ProxyError;
use crate::wire::{build, frame, read};
use crate::worker::Worker;

/// Prepared statements a console client may have.
const STATEMENTS: usize = 100;

pub struct AdminSession {
    worker: Rc<Worker>,
    stream: TcpStream,
    input: Vec<u8>,
    user: String,
    statements: HashMap<Vec<u8>, String>,
    portal: String,
    skip: bool,
}

impl AdminSession {
    pub fn new(worker: Rc<Worker>, stream: TcpStream, input: Vec<u8>, user: String) -> Self {
        Self { worker, stream, input, user, statements: HashMap::new(), portal: String::new(), skip: false }
    }

    pub async fn run(mut self) {
        tracing::info!(user = self.user, "admin console opened");
        let context = self.worker.admin_context();
        loop {
            let size = match frame::client_frame(&self.input) {
                Ok(Some(size)) if size <= self.input.len() => size,
                Ok(_) => {
                    if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                        return;
                    }
                    continue;
                }
                Err(error) => {
                    let mut out = Vec::new();
                    ProxyError::protocol(error.to_string()).write(&mut out);
                    let _ = self.stream.write_all(&out).await;
                    return;
                }
            };
            let message: Vec<u8> = self.input.drain(..size).collect();
            if message[0] == b'X' {
                return;
            }
            let out = self.answer(&context, &message).await;
            if self.stream.write_all(&out).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&mut self, context: &Context, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if self.skip && message[0] != b'S' {
            return out;
        }
        let result = match message[0] {
            b'Q' => {
                let sql = String::from_utf8_lossy(read::query(message).unwrap_or_default()).into_owned();
                if sql.trim().trim_matches(';').is_empty() {
                    out.extend_from_slice(build::EMPTY_QUERY);
                } else {
                    match admin::execute(context, &sql).await {
                        Ok(table) => {
                            build::row_description(&mut out, &table.columns);
                            rows(&mut out, &table);
                        }
                        Err(refusal) => ProxyError::from(&refusal).write(&mut out),
                    }
                }
                build::ready(&mut out, b'I');
                return out;
            }
            b'S' => {
                self.skip = false;
                build::ready(&mut out, b'I');
                return out;
            }
            _ => self.extended(context, message, &mut out).await,
        };
        if let Err(error) = result {
            error.write(&mut out);
            self.skip = true;
        }
        out
    }

    async fn extended(
        &mut self,
        context: &Context,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ProxyError> {
        let malformed = || ProxyError::protocol("malformed message");
        let unknown = || ProxyError::new("26000", "prepared statement does not exist");
        match message[0] {
            b'P' => {
                let parse = read::parse(message).ok_or_else(malformed)?;
                if self.statements.len() >= STATEMENTS {
                    self.statements.clear();
                }
                self.statements.insert(parse.name.to_vec(), String::from_utf8_lossy(parse.sql).into_owned());
                out.extend_from_slice(build::PARSE_COMPLETE);
            }
            b'B' => {
                let bind = read::bind(message).ok_or_else(malformed)?;
                if bind.count > 0 {
                    return Err(ProxyError::new("08P01", "admin commands have no parameters"));
                }
                self.portal = self.statements.get(bind.statement).ok_or_else(unknown)?.clone();
                out.extend_from_slice(build::BIND_COMPLETE);
            }
            b'D' => {
                let (kind, name) = read::named(message).ok_or_else(malformed)?;
                let sql =
                    if kind == b'S' { self.statements.get(name).ok_or_else(unknown)? } else { &self.portal };
                if kind == b'S' {
                    out.extend_from_slice(b"t\0\0\0\x06\0\0");
                }
                match admin::describe(sql) {
                    Some(columns) if !columns.is_empty() => build::row_description(out, columns),
                    _ => out.extend_from_slice(build::NO_DATA),
                }
            }
            b'E' => {
                let table = admin::execute(context, &self.portal).await.map_err(|r| ProxyError::from(&r))?;
                rows(out, &table);
            }
            b'C' => out.extend_from_slice(build::CLOSE_COMPLETE),
            _ => {}
        }
        Ok(())
    }
}

fn rows(out: &mut Vec<u8>, table: &Table) {
    for row in &table.rows {
        let start = build::begin(out, b'D');
        out.extend_from_slice(&(row.len() as u16).to_be_bytes());
        for value in row {
            match value {
                Some(text) => {
                    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
                None => out.extend_from_slice(&(-1i32).to_be_bytes()),
            }
        }
        build::end(out, start);
    }
    build::command_complete(out, table.tag);
}
