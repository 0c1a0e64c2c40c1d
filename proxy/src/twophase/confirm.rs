//! Is a decision that can be read also on the synchronous standby?
//!
//! A commit becomes visible on its own server before the standby has it when the wait is cut short: the backend is
//! ended, or the server restarts. Whoever acted on such a decision would commit the other shards, and a promotion of
//! the standby would then lose the first one's part (H4, H5). A later transaction of our own with a record in the
//! WAL is a proof: its commit waits until the standby has everything in front of it, too.

use std::collections::HashMap;

use anyhow::Context;
use deadpool_postgres::Object;
use shard_config::ShardId;
use tokio::task::JoinSet;

/// One message that nobody reads. `on` waits for the standby's disk; a role's or a server's setting may say less. Sent
/// as one simple query, which is one transaction without a BEGIN that an error would leave open.
const WRITE: &str = "SET LOCAL synchronous_commit = on;
    SELECT pg_catalog.pg_logical_emit_message(true, 'shard_proxy', '')";

/// The proofs under way: one a shard. A backend that waits for a standby cannot be given up (to cancel it would end
/// the wait and prove nothing), so the wait is kept over many questions instead of begun anew by each of them.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    waiting: HashMap<ShardId, JoinSet<anyhow::Result<()>>>,
}

impl Confirmations {
    /// Returns when what `client`'s server shows now is on its synchronous standby, if it has one. May wait for ever
    /// and may be given up at any time.
    pub(super) async fn wait(&mut self, shard: ShardId, client: Object) -> anyhow::Result<()> {
        let waiting = self.waiting.entry(shard).or_default();
        // One of an earlier question began before this decision, and says nothing about it.
        while let Some(earlier) = waiting.join_next().await {
            if let Err(error) = earlier.context("a task ended early").flatten() {
                tracing::debug!(shard = shard.0, ?error, "an earlier wait for the standby failed");
            }
        }
        waiting.spawn(async move { Ok(client.batch_execute(WRITE).await?) });
        waiting.join_next().await.context("the wait for the standby is missing")?.context("it ended early")?
    }
}
