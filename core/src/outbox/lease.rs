//! Who publishes the outbox of a shard: one row of `relay_leases` on the shard itself, so that it fails over with it.
//!
//! The epoch grows at every takeover. Marking checks owner and epoch in its own statement, so a relay that was paused
//! cannot mark; see the room's page for why what it still sends does no harm.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, Error};

/// Held by this process until `valid_until`, judged by the time before the statement that got it was sent: the row's own
/// expiry is later, so no other relay can have taken over before.
#[derive(Debug)]
pub struct Lease {
    pub shard: i32,
    pub owner: String,
    pub epoch: i64,
    ttl: Duration,
    valid_until: Instant,
    renew_at: Instant,
}

impl Lease {
    /// Takes the lease if it is free, lapsed or already this owner's. The grant is flushed to disk and standbys as the
    /// server's settings say, so the session must not have turned `synchronous_commit` off yet.
    pub async fn acquire(
        client: &Client,
        shard: i32,
        owner: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>, Error> {
        let asked = Instant::now();
        // Looking first spares the shard a row lock every time a standby relay asks.
        let free = "SELECT NOT EXISTS (SELECT 1 FROM relay_leases WHERE shard_id = $1 AND owner <> $2 \
                    AND expires_at > clock_timestamp())";
        if !client.query_one(free, &[&shard, &owner]).await?.try_get::<_, bool>(0)? {
            return Ok(None);
        }
        let take = "INSERT INTO relay_leases AS l (shard_id, owner, epoch, expires_at) \
                    VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 millisecond') \
                    ON CONFLICT (shard_id) DO UPDATE SET owner = excluded.owner, epoch = l.epoch + 1, \
                    expires_at = excluded.expires_at \
                    WHERE l.owner = excluded.owner OR l.expires_at <= clock_timestamp() RETURNING epoch";
        let Some(row) = client.query_opt(take, &[&shard, &owner, &(ttl.as_millis() as f64)]).await? else {
            return Ok(None);
        };
        let mut lease = Lease {
            shard,
            owner: owner.to_owned(),
            epoch: row.try_get(0)?,
            ttl,
            valid_until: asked,
            renew_at: asked,
        };
        lease.extend(asked);
        Ok(Some(lease))
    }

    fn extend(&mut self, asked: Instant) {
        self.valid_until = asked + self.ttl;
        self.renew_at = asked + self.ttl / 3;
    }

    pub fn is_valid(&self) -> bool {
        Instant::now() < self.valid_until
    }

    pub fn renew_at(&self) -> Instant {
        self.renew_at
    }

    /// False: somebody else has taken over.
    pub async fn renew(&mut self, client: &Client) -> Result<bool, Error> {
        let asked = Instant::now();
        let renew = "UPDATE relay_leases SET expires_at = clock_timestamp() + $4 * interval '1 millisecond' \
                     WHERE shard_id = $1 AND owner = $2 AND epoch = $3";
        let ttl = self.ttl.as_millis() as f64;
        let held = client.execute(renew, &[&self.shard, &self.owner, &self.epoch, &ttl]).await? == 1;
        if held {
            self.extend(asked);
        }
        Ok(held)
    }

    pub async fn release(self, client: &Client) -> Result<(), Error> {
        let release = "UPDATE relay_leases SET expires_at = clock_timestamp() \
                       WHERE shard_id = $1 AND owner = $2 AND epoch = $3";
        client.execute(release, &[&self.shard, &self.owner, &self.epoch]).await.map(|_| ())
    }
}
