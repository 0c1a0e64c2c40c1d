//! The priority of sessions that copy: the application's on the same server come first. Linux (sched(7), renice(1)).

use tokio_postgres::error::SqlState;

use super::scope::literal;
use crate::direct::{Db, is_code};

/// From 0, what every process has, to 19. A process with 5 has a third of the processor of one with 0 that wants it, too, and
/// all of it when nobody does.
const NICENESS: u8 = 5;

/// Makes the session's process give way to others from now on. Only root takes that back, so it is for sessions that do
/// nothing else. False when the server's machine has no way to do it.
pub(super) async fn give_way(db: &Db) -> anyhow::Result<bool> {
    let pid: i32 = db.value("SELECT pg_backend_pid()", &[]).await?;
    let copy = format!("COPY (SELECT) TO PROGRAM {}", literal(&command(pid)));
    match db.run(&copy).await {
        Err(error) if is_code(&error, &SqlState::EXTERNAL_ROUTINE_EXCEPTION) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Where the kernel shares the processor among sessions first, it is the session's own niceness that counts: each backend is
/// one. It may be written ten times a second, whoever writes (autogroup).
fn command(pid: i32) -> String {
    let session = format!("/proc/{pid}/autogroup");
    let write = format!("echo {NICENESS} 2>/dev/null > {session}");
    format!(
        "cat > /dev/null; renice -n {NICENESS} -p {pid} > /dev/null 2>&1 && \
         {{ [ ! -e {session} ] || {write} || {{ sleep 0.2; {write}; }} || {{ sleep 0.4; {write}; }}; }}"
    )
}
