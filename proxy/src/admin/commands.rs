//! One entry a command: its words, its columns, its help. SHOW HELP, Describe and the answers all come from here.

use super::{INT8, TEXT};

#[derive(Debug)]
pub struct Command {
    /// In lower case.
    pub name: &'static str,
    pub columns: &'static [(&'static str, u32)],
    pub help: &'static str,
}

/// PgBouncer's columns are those of 1.23, in its order.
pub const COMMANDS: &[Command] = &[
    Command { name: "show help", columns: &[("command", TEXT), ("description", TEXT)], help: "This list." },
    Command {
        name: "show pools",
        columns: &[
            ("database", TEXT),
            ("user", TEXT),
            ("cl_active", INT8),
            ("cl_waiting", INT8),
            ("cl_active_cancel_req", INT8),
            ("cl_waiting_cancel_req", INT8),
            ("sv_active", INT8),
            ("sv_active_cancel", INT8),
            ("sv_being_canceled", INT8),
            ("sv_idle", INT8),
            ("sv_used", INT8),
            ("sv_tested", INT8),
            ("sv_login", INT8),
            ("maxwait", INT8),
            ("maxwait_us", INT8),
            ("pool_mode", TEXT),
        ],
        help: "Connections of each pool: one a shard, role and user, named database/shard[/replica].",
    },
    Command { name: "show clients", columns: CONNECTION, help: "Client connections." },
    Command { name: "show servers", columns: CONNECTION, help: "Server connections." },
    Command {
        name: "show stats",
        columns: &[
            ("database", TEXT),
            ("total_xact_count", INT8),
            ("total_query_count", INT8),
            ("total_received", INT8),
            ("total_sent", INT8),
            ("total_xact_time", INT8),
            ("total_query_time", INT8),
            ("total_wait_time", INT8),
            ("avg_xact_count", INT8),
            ("avg_query_count", INT8),
            ("avg_recv", INT8),
            ("avg_sent", INT8),
            ("avg_xact_time", INT8),
            ("avg_query_time", INT8),
            ("avg_wait_time", INT8),
        ],
        help: "Totals since the start, and rates per second since the start; times are not measured (0).",
    },
    Command {
        name: "show databases",
        columns: &[
            ("name", TEXT),
            ("host", TEXT),
            ("port", INT8),
            ("database", TEXT),
            ("force_user", TEXT),
            ("pool_size", INT8),
            ("min_pool_size", INT8),
            ("reserve_pool", INT8),
            ("pool_mode", TEXT),
            ("max_connections", INT8),
            ("current_connections", INT8),
            ("paused", INT8),
            ("disabled", INT8),
        ],
        help: "One row a server of a shard; disabled = 1 while it is not used.",
    },
    Command {
        name: "show lists",
        columns: &[("list", TEXT), ("items", INT8)],
        help: "How many there are of what.",
    },
    Command {
        name: "show config",
        columns: &[("key", TEXT), ("value", TEXT), ("default", TEXT), ("changeable", TEXT)],
        help: "The configuration in use; changeable = by RELOAD.",
    },
    Command { name: "show version", columns: &[("version", TEXT)], help: "Version of the proxy." },
    Command {
        name: "show shards",
        columns: &[
            ("shard", INT8),
            ("address", TEXT),
            ("role", TEXT),
            ("timeline", INT8),
            ("buckets", INT8),
            ("reason", TEXT),
        ],
        help: "Every server, its role as discovered, and why it is not used.",
    },
    Command {
        name: "show map",
        columns: &[
            ("bucket_from", INT8),
            ("bucket_to", INT8),
            ("shard", INT8),
            ("epoch", INT8),
            ("overrides", TEXT),
        ],
        help: "The shard map: which shard owns which buckets; overrides = single tenants of them elsewhere, [hash,shard].",
    },
    Command {
        name: "show moves",
        columns: &[
            ("move", INT8),
            ("scope", TEXT),
            ("source", INT8),
            ("target", INT8),
            ("stage", TEXT),
            ("since_version", INT8),
            ("version", INT8),
        ],
        help: "What moves, as this proxy serves it; version = of the catalog.",
    },
    Command {
        name: "show proxies",
        columns: &[
            ("name", TEXT),
            ("id", TEXT),
            ("address", TEXT),
            ("lease_s", TEXT),
            ("version", INT8),
            ("drained", INT8),
            ("epoch", INT8),
            ("held", INT8),
            ("self", TEXT),
            ("note", TEXT),
            ("shards", TEXT),
        ],
        help: "Every proxy that the catalog knows: its lease, what it serves by, whom it waits for, which shards it knows.",
    },
    Command {
        name: "show tables",
        columns: &[
            ("schema", TEXT),
            ("name", TEXT),
            ("kind", TEXT),
            ("key", TEXT),
            ("refused_because", TEXT),
        ],
        help: "How each table is routed, and why one is not.",
    },
    Command {
        name: "show counters",
        columns: &[("name", TEXT), ("value", INT8)],
        help: "Everything the workers count, since the start.",
    },
    Command {
        name: "show refusals",
        columns: &[("kind", TEXT), ("count", INT8)],
        help: "What went wrong or was refused since the start, by kind.",
    },
    Command {
        name: "reload",
        columns: &[],
        help: "Read the configuration file again; clients stay connected.",
    },
];

const CONNECTION: &[(&str, u32)] = &[
    ("type", TEXT),
    ("user", TEXT),
    ("database", TEXT),
    ("state", TEXT),
    ("addr", TEXT),
    ("port", INT8),
    ("local_addr", TEXT),
    ("local_port", INT8),
    ("connect_time", TEXT),
    ("request_time", TEXT),
    ("wait", INT8),
    ("wait_us", INT8),
    ("close_needed", INT8),
    ("ptr", TEXT),
    ("link", TEXT),
    ("remote_pid", INT8),
    ("tls", TEXT),
    ("application_name", TEXT),
    ("prepared_statements", INT8),
    ("pinned", TEXT),
];

pub(super) fn find(words: &[&str]) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name.split(' ').eq(words.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_by_their_words_only() {
        assert_eq!(find(&["show", "pools"]).map(|c| c.name), Some("show pools"));
        assert!(find(&["show"]).is_none());
        assert!(find(&["show", "pools", "x"]).is_none());
        assert!(find(&[]).is_none());
    }
}
