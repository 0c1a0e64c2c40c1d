//! Which server of a shard is its primary. PURE.
//!
//! The configuration only says where servers are; who they are is discovered (H5): the primary is the server out of
//! recovery with the shard's system identifier and the highest timeline ever seen. A promotion raises the timeline,
//! so an old primary that comes back is recognised by its lower one and never written to, even when the promoted
//! server is unreachable at that moment.

use serde::{Deserialize, Serialize};

/// What one server said of itself when it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observation {
    pub(super) system_identifier: i64,
    pub(super) in_recovery: bool,
    pub(super) timeline: u32,
    /// A WAL receiver is connected and streaming.
    pub(super) streaming: bool,
}

/// What must survive a restart of the proxy (`memory`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) system_identifier: Option<i64>,
    /// The highest timeline any server of the shard ever reported.
    pub(super) timeline: u32,
}

/// A server's position among the shard's addresses, and the timeline it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub slot: u16,
    pub timeline: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) primary: Option<Placed>,
    pub(super) replicas: Vec<Placed>,
    pub(super) remembered: Remembered,
    /// Servers that were rejected, and why; for the log and `SHOW SHARDS`.
    pub(super) rejected: Vec<(u16, Rejection)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    /// Another cluster answers at this address, or the configured primary has not said yet which one is ours.
    ForeignSystem,
    /// A server of another shard answers at this address.
    OtherShard,
    /// A primary of an earlier timeline: it was replaced by a promotion.
    OldTimeline,
    /// A second writable server on the same timeline.
    SecondPrimary,
    /// A standby that does not follow the primary.
    NotStreaming,
}

impl Rejection {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ForeignSystem => "foreign_system",
            Self::OtherShard => "other_shard",
            Self::OldTimeline => "old_timeline",
            Self::SecondPrimary => "second_primary",
            Self::NotStreaming => "not_streaming",
        }
    }
}

/// `seen[slot]` is `None` while the server is down. `before` is the previous decision. `taken` are the identifiers of
/// the other shards: two shards in one server would show each other's rows as their own.
pub(super) fn decide(before: &Roles, seen: &[Option<Observation>], taken: &[i64]) -> Roles {
    let mut remembered = before.remembered;
    if remembered.system_identifier.is_none() {
        // Only from the configured primary, slot 0, and not from whoever answers first: this is remembered for ever,
        // and a wrong replica address would keep the right servers out.
        let first = seen.first().copied().flatten().map(|o| o.system_identifier);
        remembered.system_identifier = first.filter(|id| !taken.contains(id));
    }
    let is_taken = |o: &Observation| taken.contains(&o.system_identifier);
    let ours = |o: &Observation| Some(o.system_identifier) == remembered.system_identifier && !is_taken(o);
    // A standby that follows timeline 2 proves that timeline 2 exists, also before its primary is reached.
    for observation in seen.iter().flatten().filter(|o| ours(o)) {
        remembered.timeline = remembered.timeline.max(observation.timeline);
    }

    let mut roles = Roles { remembered, ..Roles::default() };
    let writable: Vec<Placed> = servers(seen)
        .filter(|(_, o)| ours(o) && !o.in_recovery && o.timeline == remembered.timeline)
        .map(|(slot, o)| Placed { slot, timeline: o.timeline })
        .collect();
    roles.primary = match writable.as_slice() {
        [only] => Some(*only),
        // Two histories under one timeline number cannot be told apart. The one in use stays; with none in use,
        // nobody can say which one holds the acknowledged rows, so none is.
        several => before.primary.filter(|p| several.contains(p)),
    };

    for (slot, observation) in servers(seen) {
        let was_replica = before.replicas.iter().find(|p| p.slot == slot);
        let rejection = if is_taken(&observation) {
            Some(Rejection::OtherShard)
        } else if !ours(&observation) {
            Some(Rejection::ForeignSystem)
        } else if !observation.in_recovery {
            match roles.primary {
                Some(primary) if primary.slot == slot => None,
                _ if observation.timeline < remembered.timeline => Some(Rejection::OldTimeline),
                _ => Some(Rejection::SecondPrimary),
            }
        } else if observation.streaming && observation.timeline == remembered.timeline {
            roles.replicas.push(Placed { slot, timeline: observation.timeline });
            None
        } else if let (None, Some(replica)) = (roles.primary, was_replica) {
            // With the primary gone nobody streams; what was replayed so far is still as good as it was.
            roles.replicas.push(*replica);
            None
        } else {
            Some(Rejection::NotStreaming)
        };
        roles.rejected.extend(rejection.map(|r| (slot, r)));
    }
    roles
}

fn servers(seen: &[Option<Observation>]) -> impl Iterator<Item = (u16, Observation)> {
    seen.iter().enumerate().filter_map(|(slot, o)| o.map(|o| (slot as u16, o)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(before: &Roles, seen: &[Option<Observation>]) -> Roles {
        super::decide(before, seen, &[])
    }

    fn primary(timeline: u32) -> Option<Observation> {
        Some(Observation { system_identifier: 7, in_recovery: false, timeline, streaming: false })
    }

    fn standby(timeline: u32) -> Option<Observation> {
        Some(Observation { system_identifier: 7, in_recovery: true, timeline, streaming: true })
    }

    fn lone(mut o: Option<Observation>) -> Option<Observation> {
        o.as_mut().expect("up").streaming = false;
        o
    }

    fn slot_of(roles: &Roles) -> Option<u16> {
        roles.primary.map(|p| p.slot)
    }

    #[test]
    fn h5_a_promotion_moves_the_primary_and_the_old_one_never_comes_back() {
        let start = decide(&Roles::default(), &[primary(1), standby(1)]);
        assert_eq!((slot_of(&start), start.replicas.len()), (Some(0), 1));

        let gone = decide(&start, &[None, lone(standby(1))]);
        assert_eq!((slot_of(&gone), gone.replicas.len()), (None, 1), "the replica still serves reads");

        let promoted = decide(&gone, &[None, primary(2)]);
        assert_eq!((slot_of(&promoted), promoted.remembered.timeline), (Some(1), 2));

        let returned = decide(&promoted, &[primary(1), primary(2)]);
        assert_eq!(slot_of(&returned), Some(1));
        assert_eq!(returned.rejected, [(0, Rejection::OldTimeline)]);

        let alone = decide(&returned, &[primary(1), None]);
        assert_eq!(slot_of(&alone), None, "the promoted server's rows are not on the old primary");

        let restarted = Roles { remembered: alone.remembered, ..Roles::default() };
        assert_eq!(slot_of(&decide(&restarted, &[primary(1), None])), None, "remembered over a restart");
    }

    #[test]
    fn h5_another_cluster_at_the_address_is_never_used() {
        let start = decide(&Roles::default(), &[primary(1), standby(1)]);
        let foreign =
            Some(Observation { system_identifier: 8, in_recovery: false, timeline: 9, streaming: false });
        let roles = decide(&start, &[foreign, lone(standby(1))]);
        assert_eq!((slot_of(&roles), roles.remembered.timeline), (None, 1));
        assert_eq!(roles.rejected, [(0, Rejection::ForeignSystem)]);
    }

    #[test]
    fn a_standby_reveals_a_promotion_that_was_not_seen() {
        let start = decide(&Roles::default(), &[primary(1), standby(1), standby(1)]);
        let roles = decide(&start, &[primary(1), None, standby(2)]);
        assert_eq!(slot_of(&roles), None);
        assert_eq!(roles.rejected, [(0, Rejection::OldTimeline)]);
    }

    #[test]
    fn two_writable_servers_on_one_timeline_keep_the_one_in_use() {
        let start = decide(&Roles::default(), &[primary(1), standby(1)]);
        let split = decide(&start, &[primary(1), primary(1)]);
        assert_eq!(slot_of(&split), Some(0));
        assert_eq!(split.rejected, [(1, Rejection::SecondPrimary)]);
        assert_eq!(slot_of(&decide(&Roles::default(), &[primary(1), primary(1)])), None);
    }

    #[test]
    fn a_lagging_or_disconnected_standby_is_no_replica() {
        let roles = decide(&Roles::default(), &[primary(2), lone(standby(1))]);
        assert!(roles.replicas.is_empty());
        assert_eq!(roles.rejected, [(1, Rejection::NotStreaming)]);
    }

    #[test]
    fn h5_only_the_configured_primary_says_which_system_is_ours() {
        let of =
            |system_identifier, o: Option<Observation>| o.map(|o| Observation { system_identifier, ..o });
        // A replica's address is wrong: another cluster's primary answers there, and before ours does.
        let early = decide(&Roles::default(), &[None, of(8, primary(5))]);
        assert_eq!((slot_of(&early), early.remembered), (None, Remembered::default()), "nothing is learnt");
        assert_eq!(early.rejected, [(1, Rejection::ForeignSystem)]);
        let later = decide(&early, &[primary(1), of(8, primary(5))]);
        assert_eq!((slot_of(&later), later.remembered.system_identifier), (Some(0), Some(7)));
        // Once it is known, any slot may be the primary.
        let restarted = Roles { remembered: later.remembered, ..Roles::default() };
        assert_eq!(slot_of(&decide(&restarted, &[None, primary(2)])), Some(1));
    }

    #[test]
    fn h5_one_system_is_not_two_shards() {
        let roles = super::decide(&Roles::default(), &[primary(1), standby(1)], &[7]);
        assert_eq!((slot_of(&roles), roles.replicas.len()), (None, 0));
        assert_eq!(roles.remembered, Remembered::default(), "neither its identity nor its timeline is ours");
        assert_eq!(roles.rejected, [(0, Rejection::OtherShard), (1, Rejection::OtherShard)]);
    }
}
