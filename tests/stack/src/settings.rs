//! postgresql.conf of each server: durable by default, scaled to the machine (R22).

use crate::args::Profile;
use crate::state::State;
use anyhow::Result;
use std::path::Path;

/// The name that primaries know their standby by, whichever directory it lies in.
pub(crate) const STANDBY: &str = "replica";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Primary { wait_for_standby: bool },
    Standby { primary_port: u16 },
}

/// The settings of one server, scaled to the machine's memory, of which all servers together take a quarter.
pub(crate) fn config(
    state: &State,
    name: &str,
    role: Role,
    run_dir: &Path,
    version: u32,
    statements: bool,
    memory: u64,
) -> Result<String> {
    let mib = |bytes: u64| bytes >> 20;
    let servers = u64::from(state.shards) * 2 + 1;
    let shared_buffers = mib(memory / 4 / servers).clamp(64, 2048);
    let effective_cache = mib(memory * 3 / 4 / servers).clamp(128, 32_768);
    let wal_buffers = if memory >= 8 << 30 { 64 } else { 16 };
    let work_mem = if memory >= 8 << 30 { 8 } else { 4 };
    let sync = state.profile != Profile::FastUnsafe;
    let on = |value: bool| if value { "on" } else { "off" };
    // Debian's own default is /var/run/postgresql; a socket's path is limited to 107 bytes (sun_path).
    let sockets = run_dir.display().to_string();
    let sockets = if sockets.len() < 80 { sockets } else { String::new() };
    // Many servers share the processors: none vacuums as if it had them to itself, nor all at the same moment.
    let naptime = 13 + name.chars().find_map(|c| c.to_digit(10)).unwrap_or(0) % 5;
    let mut text = format!(
        "# Made by `cargo stack up`; changes are overwritten. {name}, profile {profile}.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{sockets}'
cluster_name = '{name}'
max_connections = 500
superuser_reserved_connections = 10
max_prepared_transactions = 500
password_encryption = 'scram-sha-256'
shared_buffers = {shared_buffers}MB
effective_cache_size = {effective_cache}MB
work_mem = {work_mem}MB
maintenance_work_mem = 64MB
wal_level = logical
wal_buffers = {wal_buffers}MB
min_wal_size = 1GB
max_wal_size = 4GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
fsync = {fsync}
full_page_writes = {fsync}
synchronous_commit = {fsync}
max_wal_senders = 20
max_replication_slots = 20
max_slot_wal_keep_size = 8GB
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 500ms
hot_standby = on
hot_standby_feedback = on
max_worker_processes = 24
max_logical_replication_workers = 12
random_page_cost = 1.1
jit = off
autovacuum_naptime = {naptime}s
autovacuum_max_workers = 2
autovacuum_vacuum_cost_delay = 10ms
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] %q%u@%d %a '
log_lock_waits = on
log_checkpoints = on
log_timezone = 'UTC'
timezone = 'UTC'
",
        profile = state.profile.name(),
        port = state.port(name)?,
        fsync = on(sync),
    );
    if version >= 15 {
        text.push_str("wal_compression = lz4\n");
    }
    if statements {
        text.push_str("shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = top\n");
    }
    match role {
        Role::Primary { wait_for_standby } => {
            let names = if wait_for_standby && sync { format!("FIRST 1 ({STANDBY})") } else { String::new() };
            text.push_str(&format!("synchronous_standby_names = '{names}'\n"));
        }
        Role::Standby { primary_port } => text.push_str(&format!(
            "# A promoted standby has nobody to wait for until the old primary rejoins.
synchronous_standby_names = ''
primary_slot_name = '{STANDBY}'
primary_conninfo = 'host=127.0.0.1 port={primary_port} user=replicator password=replicator application_name={STANDBY}'
recovery_target_timeline = 'latest'
"
        )),
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(profile: Profile, role: Role, memory: u64) -> String {
        let mut state = State::new(Path::new("/d"), 17000).unwrap();
        state.profile = profile;
        config(&state, "shard1-primary", role, Path::new("/d/run"), 15, true, memory).unwrap()
    }

    #[test]
    fn durability_is_off_in_one_profile_only() {
        let primary = Role::Primary { wait_for_standby: true };
        assert!(check(Profile::Sync, primary, 8 << 30).contains("\nfsync = on\n"));
        assert!(check(Profile::Sync, primary, 8 << 30).contains("'FIRST 1 (replica)'"));
        assert!(
            check(Profile::Async, Role::Primary { wait_for_standby: false }, 8 << 30)
                .contains("\nfsync = on\n")
        );
        assert!(check(Profile::FastUnsafe, primary, 8 << 30).contains("\nfsync = off\n"));
        assert!(check(Profile::FastUnsafe, primary, 8 << 30).contains("synchronous_standby_names = ''"));
    }

    #[test]
    fn h5_a_promoted_standby_waits_for_nobody() {
        let text = check(Profile::Sync, Role::Standby { primary_port: 17001 }, 8 << 30);
        assert!(
            text.contains("\nsynchronous_standby_names = ''\n")
                && text.contains("primary_slot_name = 'replica'")
        );
    }

    #[test]
    fn memory_is_shared_among_all_servers() {
        assert!(
            check(Profile::Sync, Role::Standby { primary_port: 1 }, 36 << 30)
                .contains("shared_buffers = 1024MB")
        );
        assert!(
            check(Profile::Sync, Role::Standby { primary_port: 1 }, 1 << 30)
                .contains("shared_buffers = 64MB")
        );
    }
}
