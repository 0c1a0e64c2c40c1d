//! `stack status`, `logs` and the summary after a start.

use crate::args::Options;
use crate::process::log_tail;
use crate::server::{Kind, Stack, kind, number};
use crate::up;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

pub(crate) struct Row {
    pub name: String,
    pub state: &'static str,
    pub role: &'static str,
    pub pid: Option<i32>,
    pub port: u16,
    pub http: Option<u16>,
}

pub(crate) fn rows(stack: &Stack) -> Result<Vec<Row>> {
    let state = stack.state().clone();
    let mut rows = Vec::new();
    for name in state.names() {
        let recorded = state.processes.get(&name);
        let alive = recorded.is_some_and(|process| process.alive());
        let condition = match recorded {
            None => "stopped",
            Some(_) if !alive => "dead",
            Some(process) if process.paused() => "paused",
            Some(_) => "running",
        };
        let role = match kind(&name) {
            Kind::Postgres if alive => stack.postgres_role(&name),
            _ => "",
        };
        let port = state.port(&name)?;
        let http = match kind(&name) {
            Kind::Proxy => Some(state.proxy_http(number(&name)?)),
            Kind::Core => Some(port),
            _ => None,
        };
        rows.push(Row {
            state: condition,
            role,
            pid: recorded.filter(|_| alive).map(|p| p.pid),
            port,
            http,
            name,
        });
    }
    Ok(rows)
}

/// Exit status 1 when something that should run does not.
pub(crate) fn status(options: &Options) -> Result<bool> {
    let stack = up::open(options)?;
    let rows = rows(&stack)?;
    let all = rows.iter().all(|row| row.state == "running");
    if options.json {
        let servers: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({"name": row.name, "state": row.state, "role": row.role, "pid": row.pid, "port": row.port,
                       "http": row.http, "log": stack.state().log(&row.name)})
            })
            .collect();
        let state = stack.state();
        out!(
            "{:#}",
            json!({
                "dir": state.dir, "profile": state.profile.name(), "shards": state.shards, "servers": servers,
            })
        );
        return Ok(all);
    }
    out!("{:<16} {:<8} {:<8} {:>8} {:>6}", "NAME", "STATE", "ROLE", "PID", "PORT");
    for row in &rows {
        let pid = row.pid.map(|pid| pid.to_string()).unwrap_or_default();
        out!("{:<16} {:<8} {:<8} {:>8} {:>6}", row.name, row.state, row.role, pid, row.port);
    }
    Ok(all)
}

pub(crate) fn summary(stack: &Stack) {
    let state = stack.state();
    let port = |name: &str| state.port(name).unwrap_or_default();
    out!();
    if state.running("core1").is_some() {
        out!("  payments    http://127.0.0.1:{}/v1/  (admin token: `cargo stack env`)", port("core1"));
    }
    if state.running("proxy1").is_some() {
        out!("  SQL         psql postgresql://app:app@127.0.0.1:{}/payments", port("proxy1"));
        out!("  metrics     http://127.0.0.1:{}/metrics", state.proxy_http(1));
    }
    out!("  one shard   psql postgresql://postgres:postgres@127.0.0.1:{}/payments", port("shard1-primary"));
    out!("  Kafka       127.0.0.1:{}    Redis 127.0.0.1:{}", port("kafka"), port("redis"));
    out!(
        "  next        cargo stack status | logs NAME | env | down      cargo load -- --rate 500 --duration 20"
    );
}

pub(crate) fn logs(options: &Options) -> Result<bool> {
    let stack = up::open(options)?;
    let Some(name) = options.words.first() else {
        bail!("logs of what? there are {}", stack.state().names().join(", "));
    };
    stack.state().port(name)?;
    let path = stack.state().log(name);
    out_part!("{}", log_tail(&path, 0, options.lines));
    if !options.follow {
        return Ok(true);
    }
    let mut file = std::fs::File::open(&path)?;
    file.seek(SeekFrom::End(0))?;
    let mut out = std::io::stdout();
    loop {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        out.write_all(&bytes)?;
        out.flush()?;
        std::thread::sleep(Duration::from_millis(200));
    }
}
