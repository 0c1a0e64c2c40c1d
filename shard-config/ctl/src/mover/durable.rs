//! What the settings of both shards make of commits that clients were told of. A move must not take rows from where a crash
//! does not lose them to where it does; what an operator has chosen for a shard is only said. The mover's own commits do
//! not go by these settings (`direct`).

use super::job::Job;
use super::preflight::Problem;
use crate::direct::Db;

#[derive(Debug)]
struct Durability {
    fsync: bool,
    has_standbys: bool,
    /// Where clients are answered before the disk (`off`), or before the standbys that are named (`local`) have it.
    early: Vec<String>,
}

impl Durability {
    async fn of(db: &Db) -> anyhow::Result<Self> {
        // This session has set its own, so what is asked for is what it began with, and what other roles begin with.
        let sql = "WITH told AS (
                SELECT reset_val AS value, 'synchronous_commit' AS what FROM pg_settings WHERE name = 'synchronous_commit'
                UNION SELECT split_part(entry, '=', 2), format('synchronous_commit of role %I', r.rolname)
                  FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) entry
                 WHERE starts_with(entry, 'synchronous_commit=')
                   AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))),
            standbys AS (SELECT current_setting('synchronous_standby_names') <> '' AS named)
            SELECT current_setting('fsync') = 'on', named,
                (SELECT coalesce(array_agg(format('%s is %s', what, value) ORDER BY what), '{}') FROM told
                  WHERE value = 'off' OR value = 'local' AND named)
              FROM standbys";
        let row = db.one(sql, &[]).await?;
        Ok(Self { fsync: row.try_get(0)?, has_standbys: row.try_get(1)?, early: row.try_get(2)? })
    }
}

/// What would lose rows that are safe where they are.
pub(super) async fn problems(job: &Job, source: &Db, target: &Db) -> anyhow::Result<Vec<Problem>> {
    let (from, to) = tokio::try_join!(Durability::of(source), Durability::of(target))?;
    if to.fsync || !from.fsync {
        return Ok(Vec::new());
    }
    Ok(vec![Problem {
        what: format!("shard {}: fsync is off, and it is on on shard {}", job.target, job.source),
        remedy: "rows would move from where a crash does not lose them to where it does: set fsync = on"
            .into(),
    }])
}

/// What is so already, or is how the operator wants it.
pub(super) async fn notes(job: &Job, source: &Db, target: &Db) -> anyhow::Result<Vec<String>> {
    let (from, to) = tokio::try_join!(Durability::of(source), Durability::of(target))?;
    let mut notes = Vec::new();
    for (shard, of) in [(job.source, &from), (job.target, &to)] {
        if !of.fsync {
            notes.push(format!(
                "shard {shard}: fsync is off: a crash of its machine loses rows, those that move, too"
            ));
        }
        notes.extend(of.early.iter().map(|what| {
            format!("shard {shard}: {what}: clients are told of commits that a crash or a failover loses; the move's own wait for both")
        }));
    }
    if from.has_standbys && !to.has_standbys {
        notes.push(format!(
            "commits wait for a standby on shard {} and for none on shard {}: there a failover loses what is written last",
            job.source, job.target
        ));
    }
    Ok(notes)
}
