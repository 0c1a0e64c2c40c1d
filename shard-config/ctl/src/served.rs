//! The servers of the configuration file beside those that a running proxy serves: what a reload would change, and whether it
//! can. PURE. The proxy decides by itself once more (`proxy/src/control/reload.rs`), and looks at what is new.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use shard_config::{Config, HostPort, ShardId};

/// A server of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub shard: ShardId,
    pub place: HostPort,
    /// Whether the file calls it the primary; which one is, is asked of the servers.
    pub primary: bool,
    /// What its name stands for; `None`: nothing.
    pub address: Option<SocketAddr>,
}

impl Listed {
    /// Of the whole file, before names are looked up.
    pub fn all(config: &Config) -> Vec<Self> {
        let mut all = Vec::new();
        for shard in &config.shards {
            for (n, place) in std::iter::once(&shard.primary).chain(&shard.replicas).enumerate() {
                let listed = Self { shard: shard.id, place: place.clone(), primary: n == 0, address: None };
                all.push(listed);
            }
        }
        all
    }
}

/// A server that a proxy serves, as `SHOW SHARDS` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub shard: ShardId,
    pub address: SocketAddr,
    pub role: String,
    /// Why it is not used, or does not go.
    pub reason: String,
}

/// The role of the servers of a shard that a reload has taken out, until what began there before has ended.
pub const LEAVING: &str = "leaving";

/// What keeps a shard in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    pub buckets: u16,
    pub tenants: usize,
    /// Moves from or to it that are not over.
    pub moves: Vec<i64>,
    /// Sessions that are pinned to a server of it, whichever proxy they are of, and transactions that are prepared there and not
    /// finished; or that it cannot be asked.
    pub others: Vec<String>,
}

/// What a reload would do, or why it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Will(String),
    Cannot(String),
}

impl Change {
    pub fn text(&self) -> &str {
        match self {
            Self::Will(text) | Self::Cannot(text) => text,
        }
    }

    pub fn is_possible(&self) -> bool {
        matches!(self, Self::Will(_))
    }
}

/// From what one proxy serves to what the file says.
pub fn changes(file: &[Listed], served: &[Served], holds: impl Fn(ShardId) -> Holds) -> Vec<Change> {
    let served: Vec<&Served> = served.iter().filter(|one| one.role != LEAVING).collect();
    let shards_of_file: BTreeSet<_> = file.iter().map(|one| one.shard).collect();
    let shards_served: BTreeSet<_> = served.iter().map(|one| one.shard).collect();
    let (lowest, highest) = (shards_served.first().copied(), shards_served.last().copied());
    let mut found = Vec::new();
    for &shard in shards_of_file.difference(&shards_served) {
        found.push(match highest {
            Some(highest) if shard < highest => Change::Cannot(format!(
                "shard {shard} would come before shard {highest}: give it the number {}, or restart the proxies",
                highest.0.saturating_add(1)
            )),
            _ => Change::Will(format!("shard {shard} is added, once its servers were looked at")),
        });
    }
    for &shard in shards_served.difference(&shards_of_file) {
        found.push(gone(shard, &holds(shard), lowest == Some(shard)));
    }
    for listed in file.iter().filter(|one| shards_served.contains(&one.shard)) {
        let (shard, place) = (listed.shard, &listed.place);
        let known = |one: &&Served| one.shard == shard && Some(one.address) == listed.address;
        if listed.address.is_none() {
            found.push(Change::Cannot(format!("{place} of shard {shard} has no address")));
        } else if !served.iter().any(|one| known(&one)) {
            found.push(Change::Will(format!("server {place} of shard {shard} is added")));
        }
    }
    for one in served.iter().filter(|one| shards_of_file.contains(&one.shard)) {
        let (shard, address) = (one.shard, one.address);
        if file.iter().any(|listed| listed.shard == shard && listed.address == Some(address)) {
            continue;
        }
        found.push(match one.role.as_str() {
            "primary" => Change::Cannot(format!(
                "server {address} of shard {shard} is not in the file and is its primary: promote another one before it goes"
            )),
            _ => Change::Will(format!("server {address} of shard {shard} is taken out")),
        });
    }
    found
}

/// How a shard that is not in the file any more goes, or what keeps it.
fn gone(shard: ShardId, holds: &Holds, lowest: bool) -> Change {
    let mut keeps = Vec::new();
    if holds.buckets > 0 {
        keeps.push(format!("owns {} buckets", holds.buckets));
    }
    if holds.tenants > 0 {
        keeps.push(format!("owns {} single tenants", holds.tenants));
    }
    // Asked for before the first proxy is told: else this one takes the shard out, and another one refuses.
    if keeps.is_empty() && holds.moves.is_empty() && !lowest && !holds.others.is_empty() {
        let others = holds.others.join("; ");
        return Change::Cannot(format!(
            "shard {shard} is not in the file, and {others}: reload when that is over"
        ));
    }
    let put = format!("put it back into the file, and first: shardctl plan drain {shard}");
    Change::Cannot(match (keeps.is_empty(), holds.moves.is_empty()) {
        (true, true) if lowest => format!(
            "shard {shard} is not in the file and has the lowest number, so that rows of reference tables are locked there: stop all \
             proxies and start them without it"
        ),
        (true, true) => return Change::Will(format!("shard {shard} owns nothing and is taken out")),
        (true, false) => format!(
            "shard {shard} is not in the file, and moves {:?} from or to it are not over: put it back until they are",
            holds.moves
        ),
        (false, _) => format!("shard {shard} is not in the file and {}: {put}", keeps.join(" and ")),
    })
}

/// A primary that the file calls a replica, or the other way round: no proxy minds.
pub fn renamed(file: &[Listed], served: &[Served]) -> Vec<String> {
    let mut found = Vec::new();
    for listed in file.iter().filter(|listed| listed.primary) {
        // One that is not in the file at all cannot go: that is another matter.
        let named = |one: &Served| file.iter().any(|other| other.address == Some(one.address));
        let of_shard = |one: &&Served| one.shard == listed.shard && one.role == "primary" && named(one);
        if let Some(one) = served.iter().find(of_shard)
            && listed.address.is_some_and(|address| address != one.address)
        {
            found.push(format!(
                "the file calls {} the primary of shard {}, and {} is; the proxies know, nothing has to be reloaded for it",
                listed.place, listed.shard, one.address
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(shard: u16, port: u16, primary: bool) -> Listed {
        let place = HostPort { host: "h".to_owned(), port };
        Listed { shard: ShardId(shard), place, primary, address: Some(at(port)) }
    }

    fn served(shard: u16, port: u16, role: &str) -> Served {
        Served { shard: ShardId(shard), address: at(port), role: role.to_owned(), reason: String::new() }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn running() -> Vec<Served> {
        vec![served(2, 1, "primary"), served(2, 2, "replica"), served(5, 3, "primary")]
    }

    #[track_caller]
    fn check(file: &[Listed], holds: Holds, possible: bool, text: &str) {
        let found = changes(file, &running(), |_| holds.clone());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].is_possible(), possible, "{found:?}");
        assert!(found[0].text().contains(text), "{found:?}");
    }

    #[test]
    fn what_is_alike_changes_nothing() {
        let file = [listed(2, 2, true), listed(2, 1, false), listed(5, 3, true)];
        assert_eq!(changes(&file, &running(), |_| Holds::default()), []);
        assert!(renamed(&file, &running())[0].contains("the file calls h:2 the primary of shard 2"));
        for file in [[listed(2, 1, true), listed(2, 2, false)], [listed(2, 2, true), listed(5, 3, true)]] {
            assert!(renamed(&file, &running()).is_empty(), "{file:?}");
        }
    }

    #[test]
    fn shards_and_servers_come() {
        let old = [listed(2, 1, true), listed(2, 2, false), listed(5, 3, true)];
        let with = |more: Listed| [&old[..], &[more]].concat();
        let none = Holds::default;
        check(&with(listed(6, 9, true)), none(), true, "shard 6 is added");
        check(&with(listed(3, 9, true)), none(), false, "give it the number 6");
        check(&with(listed(5, 9, false)), none(), true, "server h:9 of shard 5 is added");
        let unknown = Listed { address: None, ..listed(5, 9, false) };
        check(&with(unknown), none(), false, "h:9 of shard 5 has no address");
    }

    #[test]
    fn a_shard_goes_when_it_owns_nothing_and_a_primary_never() {
        let without_five = [listed(2, 1, true), listed(2, 2, false)];
        let none = Holds::default;
        check(&without_five, none(), true, "shard 5 owns nothing and is taken out");
        check(&[listed(5, 3, true)], none(), false, "shard 2 is not in the file and has the lowest number");
        let leaving = [served(2, 1, "primary"), served(2, 2, "replica"), served(5, 3, LEAVING)];
        assert_eq!(changes(&without_five, &leaving, |_| none()), [], "it was taken out already");
        check(&without_five, Holds { buckets: 7, ..none() }, false, "owns 7 buckets: put it back");
        let both = Holds { buckets: 7, tenants: 2, moves: vec![3], ..none() };
        check(&without_five, both, false, "owns 7 buckets and owns 2 single tenants");
        check(&without_five, Holds { moves: vec![3], ..none() }, false, "moves [3]");
        let pinned = Holds { others: vec!["client 2a of p2 is pinned".to_owned()], ..none() };
        check(&without_five, pinned, false, "client 2a of p2 is pinned: reload when that is over");
        let five = listed(5, 3, true);
        check(&[listed(2, 1, true), five.clone()], none(), true, "127.0.0.1:2 of shard 2 is taken out");
        check(&[listed(2, 2, true), five], none(), false, "promote another one");
    }
}
