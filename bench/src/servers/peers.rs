//! Our proxy and its peers, each configured as its manual recommends for this use, one thread each.
use super::postgres::Postgres;
use super::{Server, give_away, program, unprivileged_command};
use crate::measure::wal::connect;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio_postgres::Client;

pub const DATABASE: &str = "payments";
pub const USER: &str = "app";
pub const PASSWORD: &str = "app";
pub const CONTROL_USER: &str = "shard_proxy";
/// Server connections a database (PgBouncer) and a shard (ours).
pub const POOL: u16 = 50;
const MAX_CLIENTS: u32 = 11_000;
/// HAProxy wants two descriptors a connection up front and is measured with few hundred.
const MAX_HAPROXY_CLIENTS: u32 = 2_000;

pub const SHARDS: u16 = 4;
pub const BUCKETS: u16 = 4096;
/// The seed of the bucket function, from its definition in SQL.
pub const HASH_SEED: i64 = 8816678312871386365;

/// The roles and the database that proxies and clients expect.
pub async fn prepare(server: &Postgres) -> Result<()> {
    let admin = server.connect("postgres").await?;
    admin
        .batch_execute(&format!(
            "CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'; \
             CREATE ROLE {CONTROL_USER} LOGIN SUPERUSER PASSWORD '{CONTROL_USER}'"
        ))
        .await?;
    admin.batch_execute(&format!("CREATE DATABASE {DATABASE} OWNER {USER}")).await?;
    Ok(())
}

/// A connection as the application, to a server or to a proxy.
pub async fn app(port: u16) -> Result<Client> {
    connect(&format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}")).await
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    give_away(path)
}

pub fn haproxy(directory: &Path, port: u16, postgres: u16) -> Result<Server> {
    let file = directory.join("haproxy.cfg");
    write(
        &file,
        &format!(
            "global\n  nbthread 1\n  maxconn {MAX_HAPROXY_CLIENTS}\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
             timeout client 1h\n  timeout server 1h\nlisten postgres\n  bind 127.0.0.1:{port}\n  \
             server one 127.0.0.1:{postgres}\n"
        ),
    )?;
    let mut command = Command::new(program("haproxy", "haproxy")?);
    command.arg("-db").arg("-f").arg(&file);
    Server::start(command, "haproxy", port, directory, Signal::SIGTERM)
}

/// Plain passwords in the file let it speak SCRAM on both sides.
pub fn pgbouncer(directory: &Path, port: u16, postgres: u16) -> Result<Server> {
    let users = directory.join("pgbouncer.users");
    write(&users, &format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
    let file = directory.join("pgbouncer.ini");
    write(
        &file,
        &format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={postgres} dbname={DATABASE}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
             auth_file = {}\npool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = {MAX_CLIENTS}\n\
             log_connections = 0\nlog_disconnections = 0\nserver_reset_query =\n",
            users.display()
        ),
    )?;
    let mut command = unprivileged_command(&program("pgbouncer", "pgbouncer")?, directory)?;
    command.arg(&file);
    Server::start(command, "pgbouncer", port, directory, Signal::SIGINT)
}

/// For `compare proxy`: pgbench's table is sharded by its own key.
pub const PGBENCH_TABLE: &str =
    "[[table]]\nname = \"public.pgbench_accounts\"\nkind = \"sharded\"\nkey = \"aid\"\ntype = \"int4\"\n";
/// For `compare posting`: what the stack says about the posting function.
pub const POSTING_FUNCTION: &str =
    "[[function]]\nname = \"public.post_payments\"\nroute = \"key_array\"\nargument = 1\n";

/// Routing and SCRAM on, one worker, the given shards; `extra` ends the configuration.
pub fn shard_proxy(
    binary: &Path,
    directory: &Path,
    ports: (u16, u16),
    shards: &[u16],
    extra: &str,
) -> Result<Server> {
    let (port, http) = ports;
    let state = directory.join("proxy-state");
    std::fs::create_dir_all(&state)?;
    let mut text = format!(
        "[proxy]\nname = \"compare\"\nlisten = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n\
         database = \"{DATABASE}\"\nworkers = 1\nstate_dir = \"{}\"\nmax_clients = {MAX_CLIENTS}\ndefault_shard = 1\n\n\
         [key]\ncolumn = \"tenant_id\"\ntype = \"uuid\"\nbuckets = 4096\n\n[pool]\nprimary_max = {POOL}\n\n\
         [reads]\npolicy = \"primary\"\n\n[control]\nuser = \"{CONTROL_USER}\"\npassword = \"{CONTROL_USER}\"\n\n\
         [[user]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\n{extra}",
        state.display()
    );
    for (index, shard) in shards.iter().enumerate() {
        let _ =
            write!(text, "\n[[shard]]\nid = {}\nprimary = \"127.0.0.1:{shard}\"\nreplicas = []\n", index + 1);
    }
    let file = directory.join("shard-proxy.toml");
    write(&file, &text)?;
    let mut command = Command::new(binary);
    command.arg("--config").arg(&file);
    Server::start(command, "shard-proxy", port, directory, Signal::SIGTERM)
}

/// Started by `cargo compare`, the `perf` build is made up to date; else what lies beside this program is taken.
pub fn shard_proxy_binary(wanted: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(path) = wanted {
        return Ok(path.clone());
    }
    if let Some(workspace) = std::env::var_os("STACK_WORKSPACE") {
        let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--profile", "perf", "-p", "shard-proxy"])
            .current_dir(workspace)
            .status()
            .context("cannot run cargo")?;
        anyhow::ensure!(built.success(), "cargo build --profile perf -p shard-proxy failed");
    }
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("this program has no directory")?;
    [target.join("perf/shard-proxy"), target.join("release/shard-proxy")]
        .into_iter()
        .find(|file| file.is_file())
        .context("shard-proxy is not built: run `cargo build --profile perf -p shard-proxy`")
}
