//! In which order the parts of a statement are done to a shard.
//!
//! PostgreSQL runs the parts of WITH row by row, as they ask for each other's rows, and looks at foreign keys when all have
//! ended; a shard is given one part after the other, and looks at them after each. Rows are inserted first, those that
//! others refer to in front; then they are updated; then deleted, those that others refer to at last. Where the outcome
//! could be another than PostgreSQL's, or where PostgreSQL's depends on its plan, the statement is refused.

use super::super::Failure;
use super::super::exchange::{self, fields};
use super::shape::{Shape, broken, full_name, literal};
use super::unsupported;
use crate::route::{Command, Written};
use crate::session::multi_hook::Participants;
use crate::wire::read;

/// The parts that only insert, those that change, and those that only delete, each in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) inserting: Vec<usize>,
    pub(super) changing: Vec<usize>,
    pub(super) deleting: Vec<usize>,
}

/// How the tables of two parts are tied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// Foreign keys lead from the first one's table to the second one's, perhaps over others.
    Refers(usize, usize),
    /// The first one's table is a partition or a child of the second one's.
    Inherits(usize, usize),
}

/// What a part does, as far as foreign keys care.
#[derive(Debug, Clone, Copy)]
struct Doing {
    command: Command,
    /// It sets columns of the table's foreign keys, or such that foreign keys point to.
    sets_refers: bool,
    sets_referred: bool,
}

impl Order {
    pub(super) async fn of(
        p: &mut Participants<'_>,
        at: usize,
        writes: &[Written],
        shapes: &[Shape],
    ) -> Result<Self, Failure> {
        let ties = if writes.len() > 1 { ties(p, at, writes).await? } else { Vec::new() };
        let doing: Vec<Doing> =
            writes.iter().zip(shapes).map(|(written, shape)| doing(written, shape)).collect();
        arrange(&doing, &ties).map_err(|tie| refused(tie, writes))
    }
}

fn doing(written: &Written, shape: &Shape) -> Doing {
    // A generated column follows others.
    let sets = |column: &&super::Column| column.generated || written.assigned.contains(&column.name);
    Doing {
        command: written.command,
        sets_refers: shape.columns.iter().filter(|column| column.refers).any(|column| sets(&column)),
        sets_referred: shape.columns.iter().filter(|column| column.referred).any(|column| sets(&column)),
    }
}

/// The ties of parts whose tables are not one, and those of a table with itself for two parts.
async fn ties(p: &mut Participants<'_>, at: usize, writes: &[Written]) -> Result<Vec<Tie>, Failure> {
    let list: Vec<String> = writes
        .iter()
        .enumerate()
        .map(|(n, written)| {
            format!("({n}, {}::pg_catalog.regclass::pg_catalog.oid)", literal(&full_name(written)))
        })
        .collect();
    let sql = format!(
        "WITH RECURSIVE w (n, rel) AS (VALUES {}),
            refers (n, rel) AS (
                SELECT w.n, k.confrelid FROM w JOIN pg_catalog.pg_constraint k ON k.contype = 'f' AND k.conrelid = w.rel
                UNION SELECT r.n, k.confrelid FROM refers r JOIN pg_catalog.pg_constraint k ON k.contype = 'f' AND k.conrelid = r.rel),
            inherits (n, rel) AS (
                SELECT w.n, i.inhparent FROM w JOIN pg_catalog.pg_inherits i ON i.inhrelid = w.rel
                UNION SELECT c.n, i.inhparent FROM inherits c JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.rel)
         SELECT 'r', r.n, w.n FROM refers r JOIN w ON w.rel = r.rel AND w.n <> r.n
         UNION ALL SELECT 'i', c.n, w.n FROM inherits c JOIN w ON w.rel = c.rel AND w.n <> c.n",
        list.join(", ")
    );
    let reply = exchange::ask(p, at, &sql).await?.ok()?;
    let mut ties = Vec::new();
    for row in &reply.rows {
        let values = fields(row).ok_or_else(broken)?;
        let text = |n: usize| std::str::from_utf8(values.get(n).copied().flatten().unwrap_or_default());
        let number = |n: usize| text(n).ok().and_then(|text| text.parse().ok()).ok_or_else(broken);
        let (one, other) = (number(1)?, number(2)?);
        ties.push(if text(0) == Ok("r") { Tie::Refers(one, other) } else { Tie::Inherits(one, other) });
    }
    Ok(ties)
}

/// The order, or a tie for which there is none.
fn arrange(doing: &[Doing], ties: &[Tie]) -> Result<Order, Tie> {
    if let Some(tie) = ties.iter().find(|tie| !is_harmless(doing, **tie) || is_circle(doing, ties, **tie)) {
        return Err(*tie);
    }
    let mut order = Order::default();
    for (n, one) in doing.iter().enumerate() {
        match one.command {
            Command::Insert => order.inserting.push(n),
            Command::Update | Command::Merge => order.changing.push(n),
            Command::Delete => order.deleting.push(n),
        }
    }
    // How many of the parts' tables one refers to, in whatever number of steps: a table refers to more than any to which it
    // refers, as long as they are no circle.
    let depth = |n: &usize| ties.iter().filter(|tie| matches!(tie, Tie::Refers(one, _) if one == n)).count();
    order.inserting.sort_by_key(depth);
    order.deleting.sort_by_key(|n| std::cmp::Reverse(depth(n)));
    Ok(order)
}

fn is_harmless(doing: &[Doing], tie: Tie) -> bool {
    use Command::{Delete, Insert, Merge, Update};
    let (one, other) = match tie {
        Tie::Refers(one, other) | Tie::Inherits(one, other) => (one, other),
    };
    let (Some(child), Some(parent)) = (doing.get(one), doing.get(other)) else { return false };
    if let Tie::Inherits(..) = tie {
        return child.command == Insert && parent.command == Insert;
    }
    match (child.command, parent.command) {
        // What is referred to is there first, and is gone last.
        (Insert | Update | Delete, Insert) | (Delete, Delete) => true,
        (Insert | Delete, Update) => !parent.sets_referred,
        (Update, Update) => !child.sets_refers && !parent.sets_referred,
        // What a deleted row takes along is looked for after the update.
        (Update, Delete) => !child.sets_refers,
        // Whether the new row goes with the one that it refers to, or is an error, depends on which came first.
        (Insert, Delete) | (Merge, _) | (_, Merge) => false,
    }
}

/// Two parts that refer to each other's tables, or to their one table, have no first.
fn is_circle(doing: &[Doing], ties: &[Tie], tie: Tie) -> bool {
    let Tie::Refers(one, other) = tie else { return false };
    let alike = doing.get(one).map(|d| d.command) == doing.get(other).map(|d| d.command);
    let ordered = !matches!(doing.get(one).map(|d| d.command), Some(Command::Update));
    alike && ordered && ties.contains(&Tie::Refers(other, one))
}

fn refused(tie: Tie, writes: &[Written]) -> Failure {
    let name = |n: usize| writes.get(n).map(full_name).unwrap_or_default();
    let what = match tie {
        Tie::Refers(one, other) if name(one) == name(other) => {
            format!("has two parts that write {}, which refers to itself by a foreign key", name(one))
        }
        Tie::Refers(one, other) => {
            format!(
                "writes {} and {}, which are tied by a foreign key, in an order that shards cannot follow",
                name(one),
                name(other)
            )
        }
        Tie::Inherits(one, other) => {
            format!("writes {} and {}, a table and a part of it", name(one), name(other))
        }
    };
    unsupported(&what, "Write to one of the tables in a statement of its own.")
}

/// Parts that delete rows of the table into which the n-th inserts.
pub(super) fn deletes_of_its_table(writes: &[Written], n: usize) -> impl Iterator<Item = usize> + '_ {
    let table = |written: &Written| (written.schema.clone(), written.name.clone());
    let own = writes.get(n).filter(|written| written.command == Command::Insert).map(table);
    writes
        .iter()
        .enumerate()
        .filter(move |(_, other)| other.command == Command::Delete && own.as_ref() == Some(&table(other)))
        .map(|(other, _)| other)
}

/// Rows that another part deletes are still there. Whether PostgreSQL finds them depends on its plan: a row that it inserts
/// may come before or behind the deletion of the one that it replaces.
pub(super) fn if_in_the_way(failure: Failure, written: &Written) -> Failure {
    let Failure::Server(message) = &failure else { return failure };
    match read::error_field(message, b'C') {
        Some(b"23505" | b"23P01") => {
            let what = format!("inserts rows of {} where others are that it may delete", full_name(written));
            match unsupported(&what, "Use UPDATE, or two statements in a transaction.") {
                Failure::Ours(error) => {
                    let found = read::error_field(message, b'M').unwrap_or_default();
                    Failure::Ours(error.detail(String::from_utf8_lossy(found)))
                }
                refused => refused,
            }
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doing(command: Command) -> Doing {
        Doing { command, sets_refers: false, sets_referred: false }
    }

    #[test]
    fn what_is_referred_to_comes_first_and_goes_last() {
        let (insert, update, delete) =
            (doing(Command::Insert), doing(Command::Update), doing(Command::Delete));
        // 0 refers to 1, and 1 to 2.
        let chain = [Tie::Refers(0, 1), Tie::Refers(0, 2), Tie::Refers(1, 2)];
        assert_eq!(arrange(&[insert; 3], &chain).unwrap().inserting, [2, 1, 0]);
        assert_eq!(arrange(&[delete; 3], &chain).unwrap().deleting, [0, 1, 2]);
        let mixed = arrange(&[update, insert, delete], &[Tie::Refers(0, 2)]).unwrap();
        assert_eq!(mixed, Order { inserting: vec![1], changing: vec![0], deleting: vec![2] });
    }

    #[test]
    fn orders_that_shards_cannot_follow_are_refused() {
        let tie = Tie::Refers(0, 1);
        let is_refused = |child: Doing, parent: Doing| arrange(&[child, parent], &[tie]) == Err(tie);
        let all = [Command::Insert, Command::Update, Command::Delete, Command::Merge].map(doing);
        let [insert, update, delete, merge] = all;
        assert!(is_refused(insert, delete));
        assert!(all.iter().all(|other| is_refused(*other, merge) && is_refused(merge, *other)));
        let moves = Doing { sets_refers: true, ..update };
        assert!(is_refused(moves, delete) && is_refused(moves, update) && !is_refused(moves, insert));
        let renamed = Doing { sets_referred: true, ..update };
        assert!([insert, update, delete].iter().all(|child| is_refused(*child, renamed)));
        assert!([insert, update, delete].iter().all(|child| !is_refused(*child, update)));
        assert!(!is_refused(update, delete) && !is_refused(delete, delete) && !is_refused(delete, insert));
        let circle = [tie, Tie::Refers(1, 0)];
        assert!(arrange(&[insert, insert], &circle).is_err() && arrange(&[delete, delete], &circle).is_err());
        assert!(arrange(&[update, update], &circle).is_ok());
        let part = Tie::Inherits(0, 1);
        assert_eq!(arrange(&[insert, delete], &[part]), Err(part));
        assert!(arrange(&[insert, insert], &[part]).is_ok());
    }
}
