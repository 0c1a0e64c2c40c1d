//! The only place that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Now, cut to milliseconds: what a uuidv7 can carry, so that an id and its row agree.
pub fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(now_ms() as i64).unwrap_or_default()
}

/// A new id: a UUID of version 7 with this millisecond. Ids of one process rise.
pub fn new_id<T: From<Uuid>>() -> T {
    Uuid::now_v7().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::PaymentId;

    #[test]
    fn ids_rise_and_carry_the_time() {
        let before = now();
        let ids: Vec<PaymentId> = (0..10_000).map(|_| new_id()).collect();
        assert!(ids.windows(2).all(|w| w[0] < w[1]));
        assert!(ids[0].created_at().is_some_and(|at| at >= before));
    }
}
