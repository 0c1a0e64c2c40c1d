//! PURE: who waits for whom over all shards, and who has to give way.
//!
//! Each PostgreSQL finds the cycles within itself. What it cannot see is that two of its backends' opposite numbers on
//! another server belong to the same two transactions. Nodes here are transactions: all backends of one client are one
//! node, so a path may enter it on one shard and leave it on another.

use std::collections::{BTreeMap, BTreeSet};

/// A backend, by the position of its shard in `Servers::shards` and its process id.
pub(super) type Backend = (usize, i32);

/// A backend that waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) backend: Backend,
    /// When it began, microseconds of the server's clock: tells this wait from the backend's next one.
    pub(super) since_us: i64,
    /// `pg_blocking_pids`; 0 is a prepared transaction, which waits for nobody.
    pub(super) blockers: Vec<i32>,
}

/// The client of a proxy for which a backend works.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    /// Of one run of one proxy.
    pub(super) proxy: String,
    pub(super) client: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Backend(Backend),
    Client(Owner),
}

/// A transaction that has to be given up so that others can go on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Victim {
    pub(super) owner: Owner,
    /// Its waiting backend, and when that wait began.
    pub(super) backend: Backend,
    pub(super) since_us: i64,
}

/// One victim for each group of transactions that wait for each other over several shards. Every proxy that sees the
/// same waits chooses the same one: the highest owner, which says nothing about whose work is worth more.
///
/// A group that waits on one shard only is left to that server's own `deadlock_timeout`, unless it is none for the server:
/// a client may have two backends there (a query over several shards has one more on the default shard).
pub(super) fn victims(waits: &[Wait], owners: &BTreeMap<Backend, Owner>) -> BTreeSet<Victim> {
    let node =
        |backend: Backend| owners.get(&backend).map_or(Node::Backend(backend), |o| Node::Client(o.clone()));
    let mut edges: BTreeMap<Node, BTreeSet<Node>> = BTreeMap::new();
    for wait in waits {
        let shard = wait.backend.0;
        let blockers = wait.blockers.iter().filter(|pid| **pid > 0).map(|pid| node((shard, *pid)));
        edges.entry(node(wait.backend)).or_default().extend(blockers);
    }
    let reach: BTreeMap<&Node, BTreeSet<&Node>> =
        edges.keys().map(|from| (from, reachable(from, &edges))).collect();
    let mut found = BTreeSet::new();
    let mut seen: BTreeSet<&Node> = BTreeSet::new();
    for from in edges.keys() {
        if !reach[from].contains(from) || !seen.insert(from) {
            continue;
        }
        let mutual = |other: &&&Node| reach.get(**other).is_some_and(|back| back.contains(from));
        let group: BTreeSet<&Node> = reach[from].iter().filter(mutual).copied().collect();
        seen.extend(&group);
        let inside = |wait: &&Wait| group.contains(&node(wait.backend));
        let shards: BTreeSet<usize> = waits.iter().filter(inside).map(|wait| wait.backend.0).collect();
        if shards.len() < 2 && is_seen_by_server(waits.iter().filter(inside)) {
            continue;
        }
        let owned = waits.iter().filter(inside).filter_map(|wait| {
            let owner = owners.get(&wait.backend)?.clone();
            Some(Victim { owner, backend: wait.backend, since_us: wait.since_us })
        });
        found.extend(owned.max());
    }
    found
}

/// Do the backends of these waits, all of one shard, wait for each other?
fn is_seen_by_server<'a>(waits: impl Iterator<Item = &'a Wait>) -> bool {
    let mut edges: BTreeMap<Node, BTreeSet<Node>> = BTreeMap::new();
    for wait in waits {
        let blockers = wait.blockers.iter().map(|pid| Node::Backend((wait.backend.0, *pid)));
        edges.entry(Node::Backend(wait.backend)).or_default().extend(blockers);
    }
    edges.keys().any(|from| reachable(from, &edges).contains(from))
}

/// May some of these waits be a cycle on one shard that is none for the server? Where they are, a client has two backends.
pub(super) fn may_hide(waits: &[Wait], owners: &BTreeMap<Backend, Owner>) -> bool {
    let mut seen = BTreeSet::new();
    let doubled: BTreeSet<usize> = owners
        .iter()
        .filter(|((shard, _), owner)| !seen.insert((*shard, *owner)))
        .map(|((shard, _), _)| *shard)
        .collect();
    waits.iter().any(|wait| doubled.contains(&wait.backend.0))
}

fn reachable<'a>(from: &Node, edges: &'a BTreeMap<Node, BTreeSet<Node>>) -> BTreeSet<&'a Node> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Node> = edges.get(from).into_iter().flatten().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(edges.get(next).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(shard: usize, pid: i32, blockers: &[i32]) -> Wait {
        Wait { backend: (shard, pid), since_us: i64::from(pid), blockers: blockers.to_vec() }
    }

    /// Client n of proxy "p" has backend 10 * n + shard on each of its shards.
    fn owners(clients: &[(u32, &[usize])]) -> BTreeMap<Backend, Owner> {
        let mut owners = BTreeMap::new();
        for (client, shards) in clients {
            for shard in *shards {
                let owner = Owner { proxy: "p".to_owned(), client: *client };
                owners.insert((*shard, *client as i32 * 10 + *shard as i32), owner);
            }
        }
        owners
    }

    fn clients(waits: &[Wait], owners: &BTreeMap<Backend, Owner>) -> Vec<u32> {
        victims(waits, owners).into_iter().map(|v| v.owner.client).collect()
    }

    #[test]
    fn a_cycle_over_two_shards_has_one_victim() {
        let owners = owners(&[(1, &[0, 1]), (2, &[0, 1])]);
        // Client 1 waits on shard 1 for client 2, which waits on shard 0 for client 1.
        let waits = [wait(1, 11, &[21]), wait(0, 20, &[10])];
        assert_eq!(clients(&waits, &owners), [2]);
        assert_eq!(victims(&waits, &owners).first().map(|v| (v.backend, v.since_us)), Some(((0, 20), 20)));
    }

    #[test]
    fn a_chain_and_a_cycle_within_one_shard_have_none() {
        let owners = owners(&[(1, &[0, 1]), (2, &[0, 1]), (3, &[0])]);
        assert_eq!(clients(&[wait(1, 11, &[21]), wait(0, 20, &[30])], &owners), [0; 0]);
        // The server itself ends this one.
        assert_eq!(clients(&[wait(0, 10, &[20]), wait(0, 20, &[10])], &owners), [0; 0]);
        // Opposite pids on different shards that belong to nobody in common.
        assert_eq!(clients(&[wait(1, 77, &[78]), wait(0, 78, &[77])], &owners), [0; 0]);
    }

    #[test]
    fn a_cycle_on_one_shard_through_two_backends_of_one_client_has_a_victim() {
        // Client 1 has 10 and 19 on shard 0: 19 keeps a table that 77 wants, and 10 stands in the queue behind 77.
        let mut two = owners(&[(1, &[0, 1])]);
        two.insert((0, 19), Owner { proxy: "p".to_owned(), client: 1 });
        let waits = [wait(0, 10, &[77]), wait(0, 77, &[19])];
        assert_eq!(clients(&waits, &two), [1]);
        assert!(may_hide(&waits, &two) && !may_hide(&waits, &owners(&[(1, &[0, 1])])));
        // It waits for itself.
        assert_eq!(clients(&[wait(0, 10, &[19])], &two), [1]);
        // The server sees this one.
        assert_eq!(clients(&[wait(0, 10, &[77]), wait(0, 77, &[10])], &two), [0; 0]);
        // No cycle.
        assert_eq!(clients(&[wait(0, 77, &[19]), wait(0, 78, &[10])], &two), [0; 0]);
    }

    #[test]
    fn a_cycle_may_go_through_backends_of_others() {
        // Client 1 waits on shard 1 for a psql (99), which waits for client 2, which waits on shard 0 for client 1.
        let owners = owners(&[(1, &[0, 1]), (2, &[0, 1])]);
        let waits = [wait(1, 11, &[99]), wait(1, 99, &[21]), wait(0, 20, &[10])];
        assert_eq!(clients(&waits, &owners), [2]);
    }

    #[test]
    fn two_groups_have_a_victim_each_and_bystanders_none() {
        let owners = owners(&[(1, &[0, 1]), (2, &[0, 1]), (3, &[2, 3]), (4, &[2, 3]), (9, &[0, 1])]);
        let waits = [
            wait(1, 11, &[21]),
            wait(0, 20, &[10]),
            wait(3, 33, &[43]),
            wait(2, 42, &[32]),
            // Waits for a member, and nobody waits for it.
            wait(0, 90, &[10]),
        ];
        assert_eq!(clients(&waits, &owners), [2, 4]);
    }

    #[test]
    fn a_prepared_transaction_waits_for_nobody() {
        let owners = owners(&[(1, &[0, 1])]);
        assert_eq!(clients(&[wait(1, 11, &[0]), wait(0, 10, &[0])], &owners), [0; 0]);
    }
}
