//! PURE. The commands that wait, one line a shard, and how far the topic's partitions may be committed.
//!
//! A shard that is away keeps its own line waiting and no other. Commands of a tenant go through one line in the topic's
//! order; a line has at most one try under way. An offset may be committed when every command before it has its outcome,
//! so one that waits holds back its partition's offset, and what was done after it may be delivered again: it is known by
//! its key. A line is bounded: whoever reads the topic must not read the partitions of a line that is full.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::domain::ids::TenantId;

/// The line of commands that cannot be executed: they only go to the dead letter topic.
pub(super) const UNFIT: u16 = u16::MAX;

/// Where a command came from, whose it is and what it takes in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ticket {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// `None`: unfit.
    pub(super) tenant: Option<TenantId>,
    pub(super) bytes: usize,
}

pub(super) trait Waiting {
    fn ticket(&self) -> Ticket;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) commands: usize,
    pub(super) bytes: usize,
    /// Pauses after a try that left commands: doubled from the first to the longest.
    pub(super) pause_first: Duration,
    pub(super) pause_longest: Duration,
}

struct Line<C> {
    waiting: VecDeque<C>,
    /// With those of the try under way.
    commands: usize,
    bytes: usize,
    trying: bool,
    pause: Duration,
    not_before: Option<Instant>,
    /// Partitions that are not read because this line was full.
    paused: BTreeSet<i32>,
}

#[derive(Default)]
struct Partition {
    open: BTreeSet<i64>,
    next: i64,
}

pub(super) struct Lines<C> {
    bounds: Bounds,
    lines: BTreeMap<u16, Line<C>>,
    /// A tenant whose commands wait stays in their line, whatever the shard map says meanwhile.
    tenants: FxHashMap<TenantId, (u16, usize)>,
    partitions: BTreeMap<i32, Partition>,
}

impl<C: Waiting> Lines<C> {
    pub(super) fn new(bounds: Bounds) -> Lines<C> {
        Lines { bounds, lines: BTreeMap::new(), tenants: FxHashMap::default(), partitions: BTreeMap::new() }
    }

    /// Takes a command in; `shard` is where its tenant lives now. True: its partition must not be read until
    /// [`Lines::resumable`] names it.
    pub(super) fn add(&mut self, shard: u16, command: C) -> bool {
        let ticket = command.ticket();
        let shard = match ticket.tenant {
            None => UNFIT,
            Some(tenant) => {
                let (line, waiting) = self.tenants.entry(tenant).or_insert((shard, 0));
                *waiting += 1;
                *line
            }
        };
        let partition = self.partitions.entry(ticket.partition).or_default();
        partition.open.insert(ticket.offset);
        partition.next = partition.next.max(ticket.offset + 1);
        let first = self.bounds.pause_first;
        let line = self.lines.entry(shard).or_insert_with(|| Line {
            waiting: VecDeque::new(),
            commands: 0,
            bytes: 0,
            trying: false,
            pause: first,
            not_before: None,
            paused: BTreeSet::new(),
        });
        line.waiting.push_back(command);
        line.commands += 1;
        line.bytes += ticket.bytes;
        let full = line.commands >= self.bounds.commands || line.bytes >= self.bounds.bytes;
        if full {
            line.paused.insert(ticket.partition);
        }
        full
    }

    /// The next line that may be tried now, with up to `most` of its commands, in order.
    pub(super) fn start(&mut self, now: Instant, most: usize) -> Option<(u16, Vec<C>)> {
        let ready = |line: &Line<C>| {
            !line.trying && !line.waiting.is_empty() && line.not_before.is_none_or(|at| at <= now)
        };
        let (shard, line) = self.lines.iter_mut().find(|(_, line)| ready(line))?;
        line.trying = true;
        let most = most.max(1).min(line.waiting.len());
        Some((*shard, line.waiting.drain(..most).collect()))
    }

    /// When the next line that rests may be tried.
    pub(super) fn next_start(&self) -> Option<Instant> {
        let resting = self.lines.values().filter(|line| !line.trying && !line.waiting.is_empty());
        resting.filter_map(|line| line.not_before).min()
    }

    /// A try of `shard` has ended: `done` have their outcome, `again` have not and keep their places.
    pub(super) fn finish(&mut self, shard: u16, now: Instant, done: &[Ticket], again: Vec<C>) {
        let Some(line) = self.lines.get_mut(&shard) else { return };
        line.trying = false;
        // One command that cannot be executed must not slow down a shard that answers.
        if again.is_empty() || !done.is_empty() {
            line.pause = self.bounds.pause_first;
        }
        line.not_before = None;
        if !again.is_empty() {
            line.not_before = Some(now + line.pause);
            line.pause = (line.pause * 2).min(self.bounds.pause_longest);
        }
        for command in again.into_iter().rev() {
            line.waiting.push_front(command);
        }
        for ticket in done {
            line.commands = line.commands.saturating_sub(1);
            line.bytes = line.bytes.saturating_sub(ticket.bytes);
            if let Some(partition) = self.partitions.get_mut(&ticket.partition) {
                partition.open.remove(&ticket.offset);
            }
            if let Some(tenant) = ticket.tenant
                && let Some((_, waiting)) = self.tenants.get_mut(&tenant)
            {
                *waiting -= 1;
                if *waiting == 0 {
                    self.tenants.remove(&tenant);
                }
            }
        }
    }

    /// Partitions that may be read again: the lines that were full have come down to half.
    pub(super) fn resumable(&mut self) -> Vec<i32> {
        let mut resumed = BTreeSet::new();
        for line in self.lines.values_mut() {
            if line.commands <= self.bounds.commands / 2 && line.bytes <= self.bounds.bytes / 2 {
                resumed.append(&mut line.paused);
            }
        }
        for line in self.lines.values() {
            resumed.retain(|partition| !line.paused.contains(partition));
        }
        resumed.into_iter().collect()
    }

    /// Per partition the offset before which every command has its outcome.
    pub(super) fn committable(&self) -> BTreeMap<i32, i64> {
        let upto = |p: &Partition| p.open.first().copied().unwrap_or(p.next);
        self.partitions.iter().map(|(number, partition)| (*number, upto(partition))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Waiting for Ticket {
        fn ticket(&self) -> Ticket {
            *self
        }
    }

    fn lines() -> Lines<Ticket> {
        let ms = Duration::from_millis;
        Lines::new(Bounds { commands: 4, bytes: 1_000, pause_first: ms(100), pause_longest: ms(300) })
    }

    fn ticket(tenant: u128, offset: i64) -> Ticket {
        Ticket { partition: 0, offset, tenant: Some(TenantId(uuid::Uuid::from_u128(tenant))), bytes: 10 }
    }

    #[test]
    fn a_line_that_waits_holds_up_no_other_and_keeps_its_order() {
        let (mut lines, now) = (lines(), Instant::now());
        lines.add(1, ticket(1, 0));
        lines.add(2, ticket(2, 1));
        lines.add(1, ticket(1, 2));
        let (dead, first) = lines.start(now, 10).expect("a line");
        assert_eq!((dead, first.len()), (1, 2));
        let (alive, other) = lines.start(now, 10).expect("the other line");
        assert_eq!((alive, other.len()), (2, 1));
        assert!(lines.start(now, 10).is_none());
        // The map moved the tenant meanwhile: what comes now must not overtake.
        lines.add(2, ticket(1, 3));
        lines.finish(2, now, &other, vec![]);
        lines.finish(1, now, &[], first);
        assert_eq!(lines.committable(), BTreeMap::from([(0, 0)]), "the oldest still waits");
        assert!(lines.start(now, 10).is_none(), "it rests");
        let later = lines.next_start().expect("a time");
        let (_, again) = lines.start(later, 10).expect("the line");
        assert_eq!(again.iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 2, 3]);
        lines.finish(1, later, &again[..1], again[1..].to_vec());
        assert_eq!(lines.committable(), BTreeMap::from([(0, 2)]));
        let (_, rest) = lines.start(later + Duration::from_secs(1), 10).expect("the line");
        lines.finish(1, later, &rest, vec![]);
        assert_eq!(lines.committable(), BTreeMap::from([(0, 4)]));
        assert!(lines.tenants.is_empty());
    }

    #[test]
    fn a_full_line_stops_its_partitions_until_it_is_half_empty() {
        let (mut lines, now) = (lines(), Instant::now());
        for offset in 0..3 {
            assert!(!lines.add(1, ticket(1, offset)));
        }
        assert!(lines.add(1, ticket(1, 3)));
        assert!(lines.resumable().is_empty());
        let (_, some) = lines.start(now, 1).expect("a line");
        lines.finish(1, now, &some, vec![]);
        assert!(lines.resumable().is_empty(), "three of four");
        let (_, some) = lines.start(now, 1).expect("a line");
        lines.finish(1, now, &some, vec![]);
        assert_eq!(lines.resumable(), [0]);
        assert!(lines.resumable().is_empty(), "once");
        assert!(lines.add(1, Ticket { bytes: 1_000, ..ticket(1, 4) }), "full by size");
    }
}
