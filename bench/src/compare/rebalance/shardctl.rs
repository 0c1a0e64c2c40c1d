//! The operator's tool as a DBA runs it, and what the moves wrote about themselves.
use super::maps::Map;
use super::pauses::Moved;
use super::phases::Event;
use super::scope::Scope;
use crate::measure::wal::connect;
use crate::stack::{Stack, authority};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;
use uuid::Uuid;

pub struct Shardctl {
    program: PathBuf,
    url: String,
    config: PathBuf,
    plan: PathBuf,
    /// A superuser on the shard that holds the control data.
    control: tokio_postgres::Client,
}

/// One move's own record.
#[derive(Clone, Debug)]
pub struct Move {
    pub id: i64,
    pub source: i32,
    pub target: i32,
    pub phase: String,
    pub scope: Scope,
    pub detail: Value,
    /// Seconds that the first copy took.
    pub copy_s: Option<f64>,
    /// Oldest line first.
    pub history: Vec<Event>,
}

impl Move {
    /// From then on, in microseconds since the UNIX epoch.
    pub fn since(&self, us: i64) -> Moved<'_> {
        let from = self.history.partition_point(|event| event.at_us < us);
        Moved { scope: &self.scope, history: &self.history[from..], mover_ms: self.pauses_ms() }
    }

    /// Milliseconds of every attempt at a cut-over, failed ones too, as the mover has them.
    pub fn pauses_ms(&self) -> Vec<f64> {
        let pauses = self.detail["pauses"].as_array().map(Vec::as_slice).unwrap_or_default();
        pauses.iter().filter_map(|pause| pause["ms"].as_f64()).collect()
    }

    /// Rows of the scope when both sides were compared: what was copied, and what replication has brought since.
    pub fn rows(&self) -> Option<i64> {
        self.detail["verify"]["rows"].as_i64()
    }

    /// Rows that the copy copied.
    pub fn copied_rows(&self) -> Option<i64> {
        self.detail["progress"]["rows"].as_i64()
    }
}

impl Shardctl {
    pub async fn new(stack: &Stack) -> Result<Shardctl> {
        let program = std::env::current_exe()?.with_file_name("shardctl");
        if !program.exists() {
            bail!("{} is not built: cargo build --release --workspace", program.display());
        }
        let directory = super::directory()?;
        let proxy = stack.proxies.first().context("no proxy")?;
        Ok(Shardctl {
            program,
            url: format!("postgresql://app:app@{proxy}/payments"),
            config: directory.join("proxy1").join("proxy.toml"),
            plan: directory.join("rebalance-plan.json"),
            control: connect(&stack.shards[0].primary).await?,
        })
    }

    pub fn plan_file(&self) -> &Path {
        &self.plan
    }

    /// What each step of the saved plan moves.
    pub fn planned(&self) -> Result<Vec<Scope>> {
        let text = std::fs::read_to_string(&self.plan).with_context(|| self.plan.display().to_string())?;
        Scope::of_plan(&serde_json::from_str(&text)?)
    }

    /// Runs one verb to its end; its own words are the error.
    pub async fn run(&self, arguments: &[String]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--url").arg(&self.url).arg("--config").arg(&self.config).arg("--json").args(arguments);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("shardctl")?;
        if !output.status.success() {
            bail!(
                "shardctl {} ended with {}: {}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout).trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    pub async fn last_move(&self) -> Result<Option<i64>> {
        let moves = "SELECT to_regclass('shard_catalog.move') IS NOT NULL";
        if !self.control.query_one(moves, &[]).await?.try_get::<_, bool>(0)? {
            return Ok(None);
        }
        Ok(self.control.query_one("SELECT max(id) FROM shard_catalog.move", &[]).await?.try_get(0)?)
    }

    /// The moves made after the one given; the one given, too, when there is none (it was rolled back).
    pub async fn moves_after(&self, last: Option<i64>) -> Result<Vec<Move>> {
        let sql = "SELECT id, source, target, phase, scope, detail,
                (SELECT extract(epoch FROM min(b.at) - min(a.at))::float8
                   FROM shard_catalog.move_event a, shard_catalog.move_event b
                  WHERE a.move_id = m.id AND a.phase = 'copying' AND b.move_id = m.id AND b.phase = 'catching_up')
             FROM shard_catalog.move m WHERE id >= $1 ORDER BY id";
        let rows = self.control.query(sql, &[&last.unwrap_or(0)]).await?;
        let read = |row: &tokio_postgres::Row| -> Result<Move> {
            Ok(Move {
                id: row.try_get(0)?,
                source: row.try_get(1)?,
                target: row.try_get(2)?,
                phase: row.try_get(3)?,
                scope: Scope::from_json(&row.try_get(4)?)?,
                detail: row.try_get(5)?,
                copy_s: row.try_get(6)?,
                history: Vec::new(),
            })
        };
        let mut moves: Vec<Move> = rows.iter().map(read).collect::<Result<_>>()?;
        if moves.iter().any(|one| Some(one.id) > last) {
            moves.retain(|one| Some(one.id) > last);
        }
        let ids: Vec<i64> = moves.iter().map(|one| one.id).collect();
        let sql = "SELECT move_id, (extract(epoch FROM at) * 1000000)::int8, phase
             FROM shard_catalog.move_event WHERE move_id = ANY($1) ORDER BY at, id";
        for row in self.control.query(sql, &[&ids]).await? {
            let id: i64 = row.try_get(0)?;
            if let Some(one) = moves.iter_mut().find(|one| one.id == id) {
                one.history.push(Event { at_us: row.try_get(1)?, phase: row.try_get(2)? });
            }
        }
        Ok(moves)
    }

    /// All that the catalog has had.
    pub async fn maps(&self) -> Result<Vec<Map>> {
        let sql = "SELECT epoch, (extract(epoch FROM created_at) * 1000000)::int8 FROM shard_catalog.map ORDER BY 1";
        let rows = self.control.query(sql, &[]).await?;
        rows.iter().map(|row| Ok(Map { epoch: row.try_get(0)?, made_us: row.try_get(1)? })).collect()
    }

    pub async fn busiest_tenant(&self) -> Result<Uuid> {
        let client = connect(&self.url).await?;
        let sql = "SELECT tenant_id FROM payments GROUP BY tenant_id ORDER BY count(*) DESC LIMIT 1";
        Ok(client.query_one(sql, &[]).await?.try_get(0)?)
    }

    /// A shard that the tenant is not on.
    pub async fn other_shard(&self, tenant: &Uuid) -> Result<u16> {
        let output = Command::new(&self.program)
            .args(["--url", &self.url, "--json", "route", &tenant.to_string()])
            .output()
            .await?;
        let route: Value = serde_json::from_slice(&output.stdout).context("shardctl route")?;
        let now = route["shard"].as_u64().context("shardctl route names no shard")?;
        Ok(if now == 4 { 3 } else { 4 })
    }
}

async fn cargo_stack(arguments: &[&str]) -> Result<String> {
    let program =
        std::env::var_os("STACK_BIN").context("STACK_BIN is not set: run `cargo compare -- rebalance`")?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await?;
    if !output.status.success() {
        bail!("cargo stack {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub async fn add_shard() -> Result<()> {
    cargo_stack(&["add-shard"]).await.map(drop)
}

/// The stack with the shards that it has by now.
pub async fn stack_now(before: &Stack) -> Result<Stack> {
    let text = cargo_stack(&["env"]).await?;
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let mut now = before.clone();
    now.shards.clear();
    for id in 1..=u16::MAX {
        let Some(primary) = value(&format!("SHARD{id}_PRIMARY_URL")) else { break };
        // What is asked for by name must be what is running: a port says which.
        anyhow::ensure!(!authority(&primary).is_empty(), "SHARD{id}_PRIMARY_URL");
        now.shards.push(crate::stack::Shard {
            id,
            primary,
            replica: value(&format!("SHARD{id}_REPLICA_URL")),
        });
    }
    Ok(now)
}
