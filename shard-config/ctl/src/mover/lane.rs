//! One lane of the first copy: a session that reads, a session that writes, and rows on their way between them. The one reads the
//! next piece while the other one still writes the last, so that neither waits for the other's round trips. Each piece is one
//! transaction on either side. Between two pieces nothing is locked, however long somebody lets it wait.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Statement;

use super::leaves::{held, hold_sql};
use super::niceness::give_way;
use super::pace::{PART_BYTES, Pace};
use super::piece::Piece;
use super::scope::ident;
use super::snapshot::{endless, enter};
use super::tables::Table;
use super::transfer::Work;
use crate::direct::{Db, Servers};

/// No server says nothing for so long unless it is gone. Somebody may hold a lock for a while.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a binary COPY of no rows consists of: signature, flags, length of the extension, and the end.
const BINARY_EMPTY: usize = 11 + 4 + 4 + 2;
/// Rows go on in parcels of about so many bytes. A server sends each by itself.
const PARCEL: usize = 32 << 10;
/// Bytes that were read and not written yet, but for what the system keeps for connections, and for a row that is larger.
const UNDER_WAY: usize = 1 << 20;
/// And so many messages, of pieces without rows, too.
const PARCELS: usize = 64;

pub(super) struct Lane {
    giver: Side,
    taker: Side,
}

/// One session of it.
struct Side {
    db: Db,
    /// The machine lets others go first.
    gives_way: bool,
}

impl Side {
    /// Who gives way at every moment need not do so between pieces.
    fn rest(&self, pace: &Pace, took: Duration) -> Duration {
        if self.gives_way { Duration::ZERO } else { pace.rest(took) }
    }
}

impl Lane {
    pub(super) async fn open(
        servers: &Servers,
        source: &Db,
        target: &Db,
        name: &str,
    ) -> anyhow::Result<Self> {
        let open = async |beside: &Db, what: &str| {
            let mut db = servers.beside(beside, name).await?;
            endless(&db, what).await?;
            let gives_way = give_way(&db).await?;
            db.patience = PATIENCE;
            anyhow::Ok(Side { db, gives_way })
        };
        // As for replicated rows: the source has checked them, and the target's triggers have fired there. A loss of the last
        // commits is a loss of this session, and then everything is copied anew; who ends the copy waits for the disk.
        let writes = "; SET session_replication_role = replica; SET synchronous_commit = off";
        let (giver, taker) = futures_util::try_join!(open(source, ""), open(target, writes))?;
        Ok(Self { giver, taker })
    }

    /// The session that reads.
    pub(super) fn giver(&self) -> &Db {
        &self.giver.db
    }

    /// Copies piece after piece until none is left, or there are too many lanes.
    pub(super) async fn run(self, work: Arc<Work>, snapshot: String) -> anyhow::Result<()> {
        let (send, receive) = channel(PARCELS);
        let belt = Belt { send, room: Arc::new(Semaphore::new(UNDER_WAY)) };
        let done = futures_util::try_join!(
            give(&work, &self.giver, &snapshot, belt),
            take(&work, &self.taker, receive)
        );
        // Whoever looks after the copy need not find out.
        work.ended.notify_one();
        done.map(drop)
    }
}

/// What passes from the one side to the other.
enum Parcel {
    /// Rows of this table follow.
    Begin(usize),
    Rows(Bytes, OwnedSemaphorePermit),
    /// The source has told all of a piece: the first that is heard of it when it has no rows.
    End(Read),
}

struct Read {
    piece: Piece,
    begun: Instant,
    /// How long it was held by the limit of bytes.
    limited: Duration,
    /// Without that, and without having waited for the target.
    took: Duration,
    bytes: u64,
}

struct Belt {
    send: Sender<Parcel>,
    room: Arc<Semaphore>,
}

impl Belt {
    async fn put(&self, parcel: Parcel) -> anyhow::Result<()> {
        self.send.send(parcel).await.ok().context("nobody takes the rows")
    }

    async fn rows(&self, rows: Bytes) -> anyhow::Result<()> {
        let size = u32::try_from(rows.len().min(UNDER_WAY))?;
        let room = self.room.clone().acquire_many_owned(size).await?;
        self.put(Parcel::Rows(rows, room)).await
    }
}

/// The side of the source.
async fn give(work: &Work, side: &Side, snapshot: &str, belt: Belt) -> anyhow::Result<()> {
    let (giver, mut current) = (&side.db, None);
    loop {
        while let Some(wait) = work.pace.wait(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
        let Some(piece) = work.next_piece(&mut current) else { return Ok(()) };
        let table = &work.tables[piece.leaf.table];
        let read = give_piece(work, giver, snapshot, piece, &belt)
            .await
            .with_context(|| format!("reading {}", table.full_name()))?;
        let rest = side.rest(&work.pace, read.took);
        // What it has locked is free while the target is still at it.
        futures_util::try_join!(belt.put(Parcel::End(read)), giver.run("COMMIT"))?;
        tokio::time::sleep(rest).await;
    }
}

async fn give_piece(
    work: &Work,
    giver: &Db,
    snapshot: &str,
    piece: Piece,
    belt: &Belt,
) -> anyhow::Result<Read> {
    let (leaf, table) = (&piece.leaf.name, piece.leaf.table);
    let begin = format!("{} {}", enter(snapshot), hold_sql(leaf));
    let out = out_sql(work, &piece);
    let (begun, out) = futures_util::join!(giver.command(&begin), giver.prepare(&out));
    // Without its code: that the snapshot is gone is nothing that repetition does not mend.
    held(leaf, &begun.map_err(|error| anyhow::anyhow!("the snapshot: {error:#}"))?)?;
    let begun = Instant::now();
    let mut given = Given {
        giver,
        belt,
        pace: &work.pace,
        begun,
        limited: Duration::ZERO,
        full: Duration::ZERO,
        bytes: 0,
    };
    given.rows(&out?, table, work.binary[table]).await?;
    let Given { limited, full, bytes, .. } = given;
    let took = begun.elapsed().saturating_sub(limited + full);
    Ok(Read { piece, begun, limited, took, bytes })
}

/// One statement of the source.
struct Given<'a> {
    giver: &'a Db,
    belt: &'a Belt,
    pace: &'a Pace,
    begun: Instant,
    /// How long it has waited for the limit of bytes.
    limited: Duration,
    /// How long it has waited because the belt was full.
    full: Duration,
    bytes: u64,
}

impl Given<'_> {
    /// Of no rows the target hears nothing.
    async fn rows(&mut self, out: &Statement, table: usize, binary: bool) -> anyhow::Result<()> {
        let mut out = pin!(self.giver.copy_out(out).await?);
        let mut next = self.giver.answered(out.try_next()).await?;
        if binary && next.as_ref().is_some_and(|first| first.len() <= BINARY_EMPTY) {
            // The end of the statement.
            let mut bytes = 0;
            while let Some(end) = next {
                bytes += end.len();
                anyhow::ensure!(bytes <= BINARY_EMPTY, "a COPY whose first message has no row");
                next = self.giver.answered(out.try_next()).await?;
            }
        }
        if next.is_none() {
            return Ok(());
        }
        self.belt.put(Parcel::Begin(table)).await?;
        let (mut parcel, mut counted) = (BytesMut::new(), 0);
        while let Some(row) = next {
            self.bytes += row.len() as u64;
            if row.len() < PARCEL {
                parcel.extend_from_slice(&row);
            }
            if parcel.len() >= PARCEL || row.len() >= PARCEL {
                self.put(parcel.split().freeze()).await?;
            }
            // By itself, and not once more.
            if row.len() >= PARCEL {
                self.put(row).await?;
            }
            if self.bytes - counted >= PART_BYTES {
                self.pace.copied(self.begun, self.bytes - counted);
                counted = self.bytes;
                while let Some(wait) = self.pace.owed(Instant::now()) {
                    tokio::time::sleep(wait).await;
                    self.limited += wait;
                }
            }
            next = self.giver.answered(out.try_next()).await?;
        }
        self.put(parcel.freeze()).await?;
        self.pace.copied(self.begun, self.bytes - counted);
        Ok(())
    }

    async fn put(&mut self, rows: Bytes) -> anyhow::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        self.belt.rows(rows).await?;
        self.full += begun.elapsed();
        Ok(())
    }
}

/// The side of the target.
async fn take(work: &Work, side: &Side, mut belt: Receiver<Parcel>) -> anyhow::Result<()> {
    let mut taken = Taken { taker: &side.db, into: vec![None; work.tables.len()] };
    let mut free = Instant::now();
    while let Some(parcel) = belt.recv().await {
        let (rows, read) = match parcel {
            Parcel::Begin(table) => taken
                .piece(work, table, &mut belt)
                .await
                .with_context(|| format!("writing {}", work.tables[table].full_name()))?,
            Parcel::Rows(..) => anyhow::bail!("rows of no table"),
            Parcel::End(read) => (0, read),
        };
        work.count(&read.piece, rows, read.bytes);
        // The piece before was in its way until then.
        let took = read.begun.max(free).elapsed().saturating_sub(read.limited).max(read.took);
        work.pace.spent(read.piece.pages(), took);
        tokio::time::sleep(side.rest(&work.pace, took)).await;
        free = Instant::now();
    }
    Ok(())
}

struct Taken<'a> {
    taker: &'a Db,
    /// Of each table, once there were rows for it.
    into: Vec<Option<Statement>>,
}

impl Taken<'_> {
    /// Writes what follows on the belt, up to the end of the piece: in one transaction.
    async fn piece(
        &mut self,
        work: &Work,
        table: usize,
        belt: &mut Receiver<Parcel>,
    ) -> anyhow::Result<(u64, Read)> {
        let taker = self.taker;
        let into = match &self.into[table] {
            Some(into) => into.clone(),
            None => {
                let sql = in_sql(&work.tables[table], work.binary[table]);
                self.into[table].insert(taker.prepare(&sql).await?).clone()
            }
        };
        // COPY by itself is answered before it commits, and an error of that commit would be nobody's.
        let begin = taker.run("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
        let (begin, sink) = futures_util::join!(begin, taker.copy_in(&into));
        begin?;
        let mut sink = pin!(sink?);
        let read = loop {
            match belt.recv().await.context("the rows have no end")? {
                Parcel::Rows(rows, _room) => taker.answered(sink.feed(rows)).await?,
                Parcel::Begin(_) => anyhow::bail!("rows within rows"),
                Parcel::End(read) => break read,
            }
        };
        // Sent after the end of the rows. Of a transaction that has failed it is a ROLLBACK, so what counts is that both are well.
        let end = taker.answered(sink.as_mut().finish());
        let (rows, committed) = futures_util::join!(end, taker.run("COMMIT"));
        let rows = rows?;
        committed.map(|()| (rows, read))
    }
}

fn columns(table: &Table) -> String {
    table.columns.iter().map(|column| ident(column)).collect::<Vec<_>>().join(", ")
}

fn format_of(binary: bool) -> &'static str {
    if binary { "binary" } else { "text" }
}

fn out_sql(work: &Work, Piece { leaf, from, to }: &Piece) -> String {
    let table = &work.tables[leaf.table];
    format!(
        "COPY (SELECT {} FROM ONLY {} WHERE ctid >= '({from},0)' AND ctid < '({to},0)' AND {}) TO STDOUT (FORMAT {})",
        columns(table),
        leaf.name,
        table.predicate("", &work.scope, work.buckets),
        format_of(work.binary[leaf.table])
    )
}

fn in_sql(table: &Table, binary: bool) -> String {
    // Into the root: partitions may have other names there.
    format!("COPY {} ({}) FROM STDIN (FORMAT {})", table.sql(), columns(table), format_of(binary))
}
