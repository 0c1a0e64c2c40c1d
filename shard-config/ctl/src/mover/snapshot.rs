//! A logical slot and a snapshot that belong together: the snapshot shows every transaction that had committed when the slot
//! began, and the slot has every other one (`CREATE_REPLICATION_SLOT ... EXPORT_SNAPSHOT`, protocol-replication.html).
//! What is copied in the snapshot and then continued from the slot has every row once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;

use super::copy::oldest;
use super::scope::{ident, literal};
use crate::direct::{Db, Servers};

/// Held by an open transaction. Any number of sessions of the same server may read in it; with the holder it is gone.
#[derive(Debug)]
pub(super) struct Snapshot {
    _holder: Db,
    name: String,
    /// Where the slot begins.
    pub(super) at: String,
}

impl Snapshot {
    /// Makes the slot, which must not exist. It waits for transactions under way, so long.
    pub(super) async fn with_slot(
        servers: &Servers,
        source: &Db,
        session_name: &str,
        slot: &str,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let holder = async {
            let holder = servers.beside(source, session_name).await?;
            endless(&holder, "").await?;
            anyhow::Ok(holder)
        };
        let made = create(servers, source, session_name, slot, patience);
        // The walsender's snapshot is there as long as its session. Nobody leaves it alone while it waits.
        let (made, holder) = futures_util::join!(made, holder);
        let ((_walsender, made), holder) = (made?, holder?);
        let exported = made.get("snapshot_name").context("no snapshot came with the slot")?;
        let at = made.get("consistent_point").context("nothing says where the slot begins")?.clone();
        let export = format!("{} SELECT pg_export_snapshot()", enter(exported));
        // Without its code, which says that no repetition mends it.
        let answer =
            holder.command(&export).await.map_err(|error| anyhow::anyhow!("the snapshot: {error:#}"))?;
        // The walsender's goes with its connection, and that counts against max_wal_senders.
        let name = answer.into_values().next().context("a snapshot without a name")?;
        Ok(Self { _holder: holder, name, at })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// The session that has made the slot, and what it was answered.
async fn create(
    servers: &Servers,
    source: &Db,
    session_name: &str,
    slot: &str,
    patience: Duration,
) -> anyhow::Result<(Db, BTreeMap<String, String>)> {
    let mut walsender = servers.replication(source, session_name).await?;
    walsender.patience = patience;
    let command = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT", ident(slot));
    match walsender.command(&command).await {
        Ok(made) => Ok((walsender, made)),
        Err(error) => {
            // No statement_timeout ends it: it would go on waiting for transactions, and then make the slot.
            let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                       WHERE application_name = $1 AND backend_type = 'walsender'";
            source.rows(end, &[&session_name]).await?;
            anyhow::bail!("slot {slot}: {error:#}; {}", oldest(source).await?);
        }
    }
}

/// Begins a transaction that sees what the snapshot shows.
pub(super) fn enter(snapshot: &str) -> String {
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {};",
        literal(snapshot)
    )
}

/// A session that waits, in a transaction or not, for as long as its runner lives: an operator may pause the copy. `more`: what
/// else it begins with.
pub(super) async fn endless(db: &Db, more: &str) -> anyhow::Result<()> {
    // transaction_timeout is of PostgreSQL 17.
    db.run(&format!(
        "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
         SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout'{more}"
    ))
    .await
}
