//! Bounds of what spans several shards.

use std::time::Duration;

/// Longest row of a COPY that is split; a row is held whole.
pub const COPY_ROW: usize = 64 << 20;
/// Bytes collected for one shard before they are sent.
pub const COPY_BUFFER: usize = 64 << 10;
/// How far behind a server may report an error and still have its line named: bytes of rows remembered per shard.
/// More than any socket buffers and than the server's own batch of rows.
pub const COPY_LINES: usize = 16 << 20;
/// Rows that a split INSERT ... RETURNING may return; they are put in the client's order before they are sent.
pub const RETURNING: usize = 64 << 20;
/// Bytes of rows that one query over several shards may bring to one server.
pub const GATHER: usize = 4 << 30;
/// Bytes of rows sent to that server at a time.
pub const GATHER_CHUNK: usize = 64 << 10;
/// From this many rows on, the planner is told what the copy looks like.
pub const GATHER_ANALYZE_ROWS: u64 = 1000;
/// How long a client waits to be told the outcome after its coordinator lost a server in the middle of a commit.
pub const RESOLVE: Duration = Duration::from_secs(10);
/// Between two questions about it.
pub const RESOLVE_PAUSE: Duration = Duration::from_millis(200);

const _: () = assert!(COPY_BUFFER < COPY_LINES && COPY_ROW >= COPY_BUFFER);
