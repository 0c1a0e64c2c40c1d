//! How much room a move's shards have, and when it is too little. PURE: what is asked of the servers, and what is done then, is in
//! `disk`.

use std::collections::BTreeMap;
use std::time::Duration;

use shard_config::ShardId;

use super::machine::Phase;
use super::preflight::human;

/// Between two looks, and between two while a disk is short.
const EVERY: Duration = Duration::from_secs(10);
const EVERY_SHORT: Duration = Duration::from_secs(3);
/// One figure of `df` may be that of a moment: a vacuum, a sort, a checkpoint that is late. So many in a row are not.
const LOOKS: u32 = 3;
/// What a server is to keep free: 2 % of the disk, which on a large one is more than is written between looks and while the move is
/// undone. A small disk keeps more than that, and yet no more than a quarter.
const RESERVE_PART: i64 = 50;
const RESERVE_LEAST: i64 = 256 << 20;
const RESERVE_MOST: i64 = 16 << 30;
/// Slots that keep no more WAL are not what fills a disk.
const SPARED: i64 = 64 << 20;
/// A slot that is read at once keeps what was written since PostgreSQL last wrote down which transactions were under way, which it
/// does every 15 s: 150 to 450 MB on busy servers.
const USUAL: i64 = 512 << 20;
/// The target wants this much more room than the rows and their indexes have on the source: WAL, and the application's growth.
const ROOM: i64 = 2;

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub free: i64,
    pub size: i64,
}

impl Disk {
    /// One that had no room even for the question; how large it is nobody could ask.
    pub(super) const FULL: Self = Self { free: 0, size: RESERVE_LEAST * 4 };

    /// What is to stay free.
    pub fn reserve(self) -> i64 {
        (self.size / RESERVE_PART).max(RESERVE_LEAST.min(self.size / 4)).min(RESERVE_MOST)
    }

    fn is_short(self) -> bool {
        self.free < self.reserve()
    }

    /// Nothing is left to wait with.
    fn is_urgent(self) -> bool {
        self.free < self.reserve() / 4
    }
}

/// Where a server keeps its data and its WAL: the same disk, unless pg_wal is a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disks {
    pub data: Disk,
    pub wal: Disk,
}

impl Disks {
    /// That with less to spare, if it is short.
    pub(super) fn short(self) -> Option<Disk> {
        let both = [self.data, self.wal].into_iter().filter(|disk| disk.is_short());
        both.min_by_key(|disk| disk.free - disk.reserve())
    }

    /// What there is too little of for rows of `bytes` to come here. A move that is under way ends when it comes to the reserve.
    pub(super) fn lack_as_target(self, bytes: i64) -> Option<Lack> {
        let (data, wal) = (self.data.reserve(), self.wal.reserve());
        let need = bytes.saturating_mul(ROOM).saturating_add(data);
        if self.data.free < need {
            let remedy = format!("make room, or move fewer buckets at a time; {} stay free", human(data));
            return Some(Lack { place: "", free: self.data.free, need, remedy });
        }
        (self.wal.free < wal).then(|| Lack {
            place: " where its WAL is",
            free: self.wal.free,
            need: wal,
            remedy: "make room there: a move ends when less is free".into(),
        })
    }

    /// The same of rows that are to leave. A source that is short already is what they leave for, so it needs no reserve: nothing
    /// comes here but the WAL that is kept while they are copied, about as much as they are.
    pub(super) fn lack_as_source(self, bytes: i64) -> Option<Lack> {
        (self.wal.free < bytes).then(|| Lack {
            place: if self.wal == self.data { "" } else { " where its WAL is" },
            free: self.wal.free,
            need: bytes,
            remedy: "make room, or move fewer buckets at a time: WAL is kept there while they are copied"
                .into(),
        })
    }
}

/// A disk with less room than a move wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) place: &'static str,
    pub(super) free: i64,
    pub(super) need: i64,
    pub(super) remedy: String,
}

/// What a look at one server has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) shard: ShardId,
    pub(super) short: Option<Disk>,
    /// WAL that the move's slots keep there, and what of it has not been read.
    pub(super) kept: i64,
    pub(super) unread: i64,
}

impl Look {
    /// Whether the disk would have much more room without the move's slots.
    fn is_kept_short(&self, disk: Disk) -> bool {
        self.unread.max(self.kept - USUAL) > SPARED.max(disk.free.min(disk.reserve() / 4))
    }
}

/// Why the move, or its way back, is in the way of this server.
fn judge(phase: Phase, target: ShardId, look: &Look) -> Option<String> {
    let disk = look.short?;
    // Rows flow to who does not own them. The owner needs the move for nothing, and gains by its end what its slots keep: a source
    // that something else fills is not to lose the move that makes room there.
    let owner = (look.shard == target) == phase.target_owns();
    if owner && !look.is_kept_short(disk) {
        return None;
    }
    Some(format!(
        "shard {} has {} of its disk free, and {} are to stay so; the move keeps {} of WAL there",
        look.shard,
        human(disk.free),
        human(disk.reserve()),
        human(look.kept)
    ))
}

/// How often in a row each shard was found short. One that was not asked is what it was.
#[derive(Debug, Default)]
pub(super) struct Shortage(BTreeMap<ShardId, u32>);

impl Shortage {
    /// Why the move is to end, or its way back, if it is.
    pub(super) fn seen(&mut self, phase: Phase, target: ShardId, looks: &[Look]) -> Option<String> {
        let mut end = None;
        for look in looks {
            let Some(why) = judge(phase, target, look) else {
                self.0.remove(&look.shard);
                continue;
            };
            let times = self.0.entry(look.shard).or_default();
            *times += 1;
            if *times >= LOOKS || look.short.is_some_and(Disk::is_urgent) {
                end.get_or_insert(why);
            }
        }
        end
    }

    /// Until the next look.
    pub(super) fn pause(&self) -> Duration {
        if self.0.is_empty() { EVERY } else { EVERY_SHORT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;
    const GIB: i64 = 1 << 30;
    const SOURCE: ShardId = ShardId(1);
    const TARGET: ShardId = ShardId(2);

    fn disk(free: i64, size: i64) -> Disk {
        Disk { free, size }
    }

    #[test]
    fn a_part_of_the_disk_stays_free() {
        let sizes = [
            (400 * MIB, 100 * MIB),
            (GIB, 256 * MIB),
            (10 * GIB, 256 * MIB),
            (100 * GIB, 2 * GIB),
            (20_000 * GIB, 16 * GIB),
        ];
        for (size, reserve) in sizes {
            assert_eq!(disk(0, size).reserve(), reserve);
            assert!(disk(reserve - 1, size).is_short() && !disk(reserve, size).is_short());
        }
        assert!(Disk::FULL.is_short() && Disk::FULL.is_urgent());
    }

    #[test]
    fn a_move_wants_room_for_its_rows_and_what_is_to_stay_free() {
        let disks = |data, wal| Disks { data: disk(data, 100 * GIB), wal: disk(wal, 50 * GIB) };
        let target = |data, wal| disks(data, wal).lack_as_target(3 * GIB).map(|lack| (lack.place, lack.need));
        assert_eq!(target(8 * GIB, GIB), None);
        assert_eq!(target(8 * GIB - 1, GIB), Some(("", 8 * GIB)));
        assert_eq!(target(8 * GIB, GIB - 1), Some((" where its WAL is", GIB)));
        // The source is short of what is to stay free, and gets room by the move.
        let source = |data, wal| disks(data, wal).lack_as_source(3 * GIB).map(|lack| (lack.place, lack.need));
        assert_eq!(source(0, 3 * GIB), None);
        assert_eq!(source(0, 3 * GIB - 1), Some((" where its WAL is", 3 * GIB)));
        let one = disk(GIB, 100 * GIB);
        let one = Disks { data: one, wal: one };
        assert_eq!(one.lack_as_source(GIB), None);
        assert_eq!(one.lack_as_source(GIB + 1).map(|lack| lack.place), Some(""));
    }

    #[test]
    fn the_disk_with_less_to_spare_is_what_is_short() {
        let (data, wal) = (disk(GIB, 100 * GIB), disk(0, 10 * GIB));
        assert_eq!(Disks { data, wal }.short(), Some(data));
        assert_eq!(Disks { data: disk(90 * GIB, 100 * GIB), wal }.short(), Some(wal));
        assert_eq!(Disks { data: disk(2 * GIB, 100 * GIB), wal: disk(GIB, 10 * GIB) }.short(), None);
    }

    #[test]
    fn a_move_ends_for_a_disk_that_it_fills() {
        let short = Some(disk(GIB, 100 * GIB));
        let check = |phase, shard, short, [kept, unread]: [i64; 2], ends| {
            let look = Look { shard, short, kept, unread };
            assert_eq!(judge(phase, TARGET, &look).is_some(), ends, "{phase:?} {look:?}");
        };
        for (phase, takes, owns) in [
            (Phase::Copying, TARGET, SOURCE),
            (Phase::Ready, TARGET, SOURCE),
            (Phase::Window, SOURCE, TARGET),
            (Phase::BackVerifying, SOURCE, TARGET),
        ] {
            // Rows flow there, whatever fills it.
            check(phase, takes, short, [0, 0], true);
            check(phase, takes, None, [9 * GIB, 9 * GIB], false);
            // What fills it is something else: slots that are read keep as much on any busy server.
            check(phase, owns, short, [0, 0], false);
            check(phase, owns, short, [450 * MIB, 30 * MIB], false);
            check(phase, owns, short, [450 * MIB, 450 * MIB], false);
            check(phase, owns, short, [501 * MIB, 501 * MIB], false);
            // Nobody reads it; or a transaction that does not end keeps all since it began.
            check(phase, owns, short, [513 * MIB, 513 * MIB], true);
            check(phase, owns, short, [2 * GIB, MIB], true);
            check(phase, owns, None, [9 * GIB, 9 * GIB], false);
            // When little is left, as much as that is much.
            let little = Some(disk(100 * MIB, 100 * GIB));
            check(phase, owns, little, [101 * MIB, 101 * MIB], true);
            check(phase, owns, little, [99 * MIB, 99 * MIB], false);
            check(phase, owns, little, [450 * MIB, 30 * MIB], false);
            check(phase, owns, Some(Disk::FULL), [SPARED, SPARED], false);
        }
        let said =
            judge(Phase::Ready, TARGET, &Look { shard: TARGET, short, kept: GIB / 2, unread: GIB / 2 });
        assert_eq!(
            said.unwrap(),
            "shard 2 has 1.0 GiB of its disk free, and 2.0 GiB are to stay so; the move keeps 512.0 MiB of WAL there"
        );
    }

    #[test]
    fn one_figure_alone_ends_nothing() {
        let look = |shard, free| Look {
            shard,
            short: Some(disk(free, 100 * GIB)).filter(|disk| disk.is_short()),
            kept: 9 * GIB,
            unread: 9 * GIB,
        };
        let mut shortage = Shortage::default();
        let mut seen = |looks: &[Look], ends: bool, pause: Duration| {
            let end = shortage.seen(Phase::Copying, TARGET, looks);
            assert_eq!((end.is_some(), shortage.pause()), (ends, pause), "{looks:?}");
        };
        let (short, well, urgent) = (GIB, 2 * GIB, GIB / 2 - 1);
        seen(&[look(SOURCE, well), look(TARGET, short)], false, EVERY_SHORT);
        seen(&[look(SOURCE, well), look(TARGET, short)], false, EVERY_SHORT);
        seen(&[look(SOURCE, well), look(TARGET, well)], false, EVERY);
        // From the start again; each shard for itself, and one that does not answer is not well by that.
        seen(&[look(SOURCE, well), look(TARGET, short)], false, EVERY_SHORT);
        seen(&[look(SOURCE, short), look(TARGET, short)], false, EVERY_SHORT);
        seen(&[look(SOURCE, well)], false, EVERY_SHORT);
        seen(&[look(SOURCE, well), look(TARGET, short)], true, EVERY_SHORT);
        seen(&[look(SOURCE, well), look(TARGET, well)], false, EVERY);
        seen(&[look(SOURCE, well), look(TARGET, urgent)], true, EVERY_SHORT);
    }
}
