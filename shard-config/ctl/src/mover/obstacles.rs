//! What a cut-over waits for, as the servers say; asked, and nothing changed. Who wrote rows of the scope is asked of the fence.

use super::copy::{oldest, slot_state};
use super::job::{Job, Way};
use super::preflight::human;
use crate::direct::Db;

/// WAL that may be read within the pause: a quarter of a second.
const FAR: i64 = 128 << 20;

/// A slot that is read within the pause, and reads too much.
pub async fn far_slot(source: &Db, target: &Db, job: &Job) -> anyhow::Result<Option<String>> {
    for (db, slot) in [(source, job.verify_slot(Way::Out)), (target, job.publication(Way::Back))] {
        if let Some((_, kept)) = slot_state(db, &slot).await?.filter(|(_, kept)| *kept > FAR) {
            let who = oldest(db).await?;
            return Ok(Some(format!(
                "slot {slot}, which has {} of WAL to read each time: {who}",
                human(kept)
            )));
        }
    }
    Ok(None)
}
