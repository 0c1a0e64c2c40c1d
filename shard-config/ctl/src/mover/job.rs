//! A move's durable record: `shard_catalog.move` and its events.
//!
//! A phase changes only from the phase that the mover believes to be in. That one condition, with the row lock behind
//! it, is what makes an unknown COMMIT harmless: whoever comes next waits for it and then sees what it did.

use anyhow::Context;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use shard_config::ShardId;
use tokio_postgres::Row;

use super::machine::{Phase, Wish};
use super::scope::Scope;
use crate::direct::Db;

/// The class of the moves' own advisory locks. Clients cannot take it (H10); the one two below marks proxies' backends.
pub const LOCK_CLASS: i32 = 1_936_224_870;

#[derive(Debug, Clone)]
pub struct Job {
    pub id: i64,
    pub scope: Scope,
    pub source: ShardId,
    pub target: ShardId,
    pub phase: Phase,
    pub planned_epoch: i64,
    /// What the steps note for each other and for the operator, by name.
    pub detail: Value,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What was noted at some moment.
#[derive(Debug, Clone)]
pub struct Note {
    pub at: DateTime<Utc>,
    pub phase: String,
    pub text: String,
}

const COLUMNS: &str = "id, scope, source, target, phase, planned_epoch, detail, created_at, updated_at";

impl Job {
    fn read(row: &Row) -> anyhow::Result<Self> {
        let phase: String = row.try_get(4)?;
        let shard = |n: i32| u16::try_from(n).map(ShardId).context("a shard's number");
        Ok(Self {
            id: row.try_get(0)?,
            scope: Scope::from_json(&row.try_get::<_, Value>(1)?)?,
            source: shard(row.try_get(2)?)?,
            target: shard(row.try_get(3)?)?,
            phase: Phase::from_name(&phase)
                .with_context(|| format!("phase \"{phase}\": this move was made by another version"))?,
            planned_epoch: row.try_get(5)?,
            detail: row.try_get(6)?,
            created_at: row.try_get(7)?,
            updated_at: row.try_get(8)?,
        })
    }

    pub async fn create(
        db: &Db,
        scope: &Scope,
        source: ShardId,
        target: ShardId,
        epoch: i64,
        detail: &Value,
    ) -> anyhow::Result<Self> {
        let sql = format!(
            "INSERT INTO shard_catalog.move (scope, source, target, phase, planned_epoch, detail) \
             VALUES ($1, $2, $3, 'preflight', $4, $5) RETURNING {COLUMNS}"
        );
        let (source, target) = (i32::from(source.0), i32::from(target.0));
        let row = db.one(&sql, &[&scope.json(), &source, &target, &epoch, detail]).await?;
        let job = Self::read(&row)?;
        job.note(db, "planned").await?;
        Ok(job)
    }

    pub async fn load(db: &Db, id: i64) -> anyhow::Result<Self> {
        let sql = format!("SELECT {COLUMNS} FROM shard_catalog.move WHERE id = $1");
        let row = db.first(&sql, &[&id]).await?;
        Self::read(&row.with_context(|| format!("there is no move {id}: shardctl moves lists them"))?)
    }

    /// Newest first.
    pub async fn list(db: &Db, limit: i64) -> anyhow::Result<Vec<Self>> {
        if !db.holds("SELECT to_regclass('shard_catalog.move') IS NOT NULL", &[]).await? {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT {COLUMNS} FROM shard_catalog.move ORDER BY id DESC LIMIT $1");
        db.rows(&sql, &[&limit]).await?.iter().map(Self::read).collect()
    }

    /// Goes to `next` and says why; false when the phase on record is another one by now.
    pub async fn go(&mut self, db: &Db, next: Phase, why: &str) -> anyhow::Result<bool> {
        let sql = "WITH moved AS (UPDATE shard_catalog.move SET phase = $3, updated_at = clock_timestamp() \
                   WHERE id = $1 AND phase = $2 RETURNING id) \
                   INSERT INTO shard_catalog.move_event (move_id, phase, text) SELECT id, $3, $4 FROM moved";
        let changed = db.execute(sql, &[&self.id, &self.phase.name(), &next.name(), &why]).await? == 1;
        if changed {
            self.phase = next;
        }
        Ok(changed)
    }

    pub async fn note(&self, db: &Db, text: &str) -> anyhow::Result<()> {
        let sql = "INSERT INTO shard_catalog.move_event (move_id, phase, text) VALUES ($1, $2, $3)";
        db.execute(sql, &[&self.id, &self.phase.name(), &text]).await.map(drop)
    }

    pub async fn notes(db: &Db, id: i64, after: DateTime<Utc>) -> anyhow::Result<Vec<Note>> {
        // The newest: a step that has been tried again for hours has written more than anybody reads.
        let sql = "SELECT at, phase, text FROM (SELECT id, at, phase, text FROM shard_catalog.move_event \
                   WHERE move_id = $1 AND at > $2 ORDER BY id DESC LIMIT 1000) newest ORDER BY id";
        let rows = db.rows(sql, &[&id, &after]).await?;
        let note = |row: &Row| {
            anyhow::Ok(Note { at: row.try_get(0)?, phase: row.try_get(1)?, text: row.try_get(2)? })
        };
        rows.iter().map(note).collect()
    }

    /// Sets single entries of `detail`; others, such as an operator's wish that came meanwhile, stay.
    pub async fn set(&mut self, db: &Db, entries: Value) -> anyhow::Result<()> {
        let sql = "UPDATE shard_catalog.move SET detail = detail || $2, updated_at = clock_timestamp() \
                   WHERE id = $1 RETURNING detail";
        self.detail = db.value(sql, &[&self.id, &entries]).await?;
        Ok(())
    }

    /// `set` and `note` at once.
    pub async fn set_noted(&mut self, db: &Db, entries: Value, text: &str) -> anyhow::Result<()> {
        let sql = "WITH noted AS (INSERT INTO shard_catalog.move_event (move_id, phase, text) VALUES ($1, $3, $4)) \
                   UPDATE shard_catalog.move SET detail = detail || $2, updated_at = clock_timestamp() \
                   WHERE id = $1 RETURNING detail";
        self.detail = db.value(sql, &[&self.id, &entries, &self.phase.name(), &text]).await?;
        Ok(())
    }

    pub async fn refresh(&mut self, db: &Db) -> anyhow::Result<()> {
        *self = Self::load(db, self.id).await?;
        Ok(())
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.detail.get(key).and_then(Value::as_str)
    }

    pub fn number(&self, key: &str) -> Option<i64> {
        self.detail.get(key).and_then(Value::as_i64)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.detail.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn wish(&self) -> Option<Wish> {
        Wish::from_name(self.text("wish")?)
    }

    /// Whether the operator has paused the move.
    pub fn paused(&self) -> bool {
        self.flag("paused")
    }

    /// Names of everything that the move makes on servers.
    pub fn publication(&self, way: Way) -> String {
        Self::publication_of(self.id, way)
    }

    pub fn publication_of(id: i64, way: Way) -> String {
        format!("shard_{}_{id}", way.word())
    }

    pub fn verify_slot(&self, way: Way) -> String {
        format!("shard_verify_{}_{}", way.word(), self.id)
    }

    pub fn mark_id(&self, way: Way) -> i64 {
        self.id * 2 + i64::from(way == Way::Back)
    }

    pub fn gid_prefix(&self) -> String {
        format!("shard_move:{}:", self.id)
    }

    /// The application name of every session of this move's mover, by which a later one ends what is left of it.
    pub fn session_name(&self) -> String {
        format!("shardctl move {}", self.id)
    }

    /// The replication origin of the mover's own deletions, which lets them past the guards.
    pub fn origin(&self) -> String {
        format!("shard_clean_{}", self.id)
    }

    pub fn giver(&self, way: Way) -> ShardId {
        if way == Way::Out { self.source } else { self.target }
    }

    pub fn taker(&self, way: Way) -> ShardId {
        if way == Way::Out { self.target } else { self.source }
    }

    pub fn json(&self) -> Value {
        json!({
            "id": self.id, "scope": self.scope.json(), "source": self.source.0, "target": self.target.0,
            "phase": self.phase.name(), "planned_epoch": self.planned_epoch, "detail": self.detail,
            "created_at": self.created_at, "updated_at": self.updated_at,
        })
    }
}

/// Which way rows flow: out of the source, or back to it during the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    Back,
}

impl Way {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Out => "move",
            Self::Back => "back",
        }
    }
}

impl Wish {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cutover => "cutover",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
            Self::Finish => "finish",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Cutover, Self::Abort, Self::Rollback, Self::Finish]
            .into_iter()
            .find(|wish| wish.name() == name)
    }
}
