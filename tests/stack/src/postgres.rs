//! PostgreSQL servers: making data directories, configuration, starting, promotion and the way back.
//!
//! A data directory is made beside its final place and renamed when complete, so that an interrupted start leaves
//! nothing that looks finished. Each primary gets its own `initdb`: copies of one would share a system identifier, and
//! a replica wired to the wrong shard would then stream happily.

use crate::args::Profile;
use crate::process::{Process, is_zombie, log_tail, run, wait_until};
use crate::server::Stack;
use crate::settings::{Role, STANDBY, config};
use crate::state::State;
use crate::tools::memory_bytes;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) const DATABASE: &str = "payments";
const START_LIMIT: Duration = Duration::from_secs(60);
/// Half a second each, for what a killed server left behind to end.
const LINGERING_ATTEMPTS: u32 = 40;

/// Everything that a new cluster gets; run in single-user mode, before anybody can connect.
const CLUSTER_SQL: &str = "\
CREATE ROLE app LOGIN PASSWORD 'app';\n\n\
CREATE ROLE shard_proxy LOGIN SUPERUSER PASSWORD 'shard_proxy';\n\n\
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'replicator';\n\n\
CREATE DATABASE payments OWNER app;\n\n";
const DATABASE_SQL: &str = "ALTER SCHEMA public OWNER TO app;\n\n";
const STATEMENTS_SQL: &str = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements;\n\n";

const HBA: &str = "\
# Made by `cargo stack`. Every login gives a password, also on this machine: the same doors as in production.
local   all             all                             scram-sha-256
host    all             all             127.0.0.1/32    scram-sha-256
host    replication     replicator      127.0.0.1/32    scram-sha-256
host    replication     postgres        127.0.0.1/32    scram-sha-256
";

pub(crate) fn data(dir: &Path, name: &str) -> PathBuf {
    dir.join("pg").join(name)
}

pub(crate) fn is_standby(data: &Path) -> bool {
    data.join("standby.signal").exists()
}

impl Stack {
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.tools.postgres.join(name));
        if let Some((uid, gid)) = self.tools.user {
            command.uid(uid).gid(gid);
        }
        // HOME of root would be unreadable for the server user; the locale decides initdb's messages only.
        command
            .current_dir("/")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PGDATA")
            .env_remove("PGHOST")
            .env_remove("PGPORT");
        command
    }

    /// Files in data directories belong to the server's user: pg_rewind replaces them.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| path.display().to_string())?;
        self.give(path)
    }

    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.tools.user {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn make_directory(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        self.give(path)
    }

    pub(crate) fn psql(&self, port: u16, database: &str, sql: &str) -> Result<String> {
        let out = run(self
            .program("psql")
            .env("PGPASSWORD", "postgres")
            .env("PGCONNECT_TIMEOUT", "5")
            .args(["-h", "127.0.0.1", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database])
            .args(["-p", &port.to_string(), "-c", sql]))?;
        Ok(out.trim().to_owned())
    }

    /// A new cluster with roles and database, never started before.
    fn init_cluster(&self, state: &State, name: &str) -> Result<()> {
        let data = data(&state.dir, name);
        let fresh = data.with_extension("new");
        self.make_directory(&state.dir.join("pg"))?;
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        let password = state.dir.join("pg").join(format!("{name}.pw"));
        self.write(&password, "postgres\n")?;
        let made = run(self
            .program("initdb")
            .args(["--no-sync", "--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8", "-U", "postgres"])
            .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&fresh));
        fs::remove_file(&password)?;
        made?;
        self.write(&fresh.join("pg_hba.conf"), HBA)?;
        let main = fresh.join("postgresql.conf");
        let text = fs::read_to_string(&main)?;
        self.write(&main, &format!("{text}\ninclude 'stack.conf'\n"))?;
        self.write(&fresh.join("stack.conf"), "")?;
        self.single_user(&fresh, "postgres", CLUSTER_SQL)?;
        let statements = if self.has_statements() { STATEMENTS_SQL } else { "" };
        self.single_user(&fresh, DATABASE, &format!("{DATABASE_SQL}{statements}"))?;
        fs::rename(&fresh, &data)?;
        Ok(())
    }

    fn single_user(&self, data: &Path, database: &str, sql: &str) -> Result<()> {
        use std::io::Write;
        let mut child = self
            .program("postgres")
            .args(["--single", "-j", "-F", "-c", "exit_on_error=true", "-c", "log_checkpoints=off", "-D"])
            .arg(data)
            .arg(database)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .context("postgres --single")?;
        child.stdin.take().context("stdin")?.write_all(sql.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("setting up {}: {}", data.display(), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn base_backup(&self, state: &State, name: &str, primary_port: u16) -> Result<()> {
        let data = data(&state.dir, name);
        let fresh = data.with_extension("new");
        for old in [&fresh, &data] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| old.display().to_string())?;
            }
        }
        self.ensure_slot(primary_port)?;
        run(self
            .program("pg_basebackup")
            .env("PGPASSWORD", "replicator")
            .args(["--no-sync", "--checkpoint=fast", "-X", "stream", "-S", STANDBY])
            .args(["-h", "127.0.0.1", "-U", "replicator", "-p", &primary_port.to_string(), "-D"])
            .arg(&fresh))?;
        self.write(&fresh.join("standby.signal"), "")?;
        fs::rename(&fresh, &data)?;
        Ok(())
    }

    /// The physical slot keeps WAL for a standby that is away. `true`: reserve from now on, not from the first use.
    fn ensure_slot(&self, port: u16) -> Result<()> {
        let sql = format!(
            "SELECT pg_create_physical_replication_slot('{STANDBY}', true) \
             WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = '{STANDBY}')"
        );
        self.psql(port, "postgres", &sql).map(drop)
    }

    fn has_statements(&self) -> bool {
        let share = self.tools.postgres.ancestors().nth(1).map(Path::to_path_buf).unwrap_or_default();
        let debian = format!("/usr/share/postgresql/{}/extension", self.tools.postgres_version);
        [PathBuf::from(debian), share.join("share/extension"), share.join("share/postgresql/extension")]
            .iter()
            .any(|dir| dir.join("pg_stat_statements.control").exists())
    }

    fn configure(&self, state: &State, name: &str, role: Role) -> Result<()> {
        let run_dir = state.dir.join("run");
        self.make_directory(&run_dir)?;
        let statements = self.has_statements();
        let text =
            config(state, name, role, &run_dir, self.tools.postgres_version, statements, memory_bytes())?;
        self.write(&data(&state.dir, name).join("stack.conf"), &text)
    }

    fn reload(&self, state: &State, name: &str) {
        if let Some(process) = state.running(name) {
            process.signal(Signal::SIGHUP);
        }
    }

    /// Starts a server with whatever its data directory says and waits until it accepts connections.
    pub(crate) fn start_postgres(&self, name: &str) -> Result<()> {
        let dir = self.state().dir.clone();
        let data = data(&dir, name);
        if !data.join("PG_VERSION").exists() {
            bail!("{name} has no data directory yet: `cargo stack up` makes it");
        }
        let log = self.state().log(name);
        let mut attempts = 0;
        loop {
            let from = fs::metadata(&log).map(|meta| meta.len()).unwrap_or(0);
            let pid_file = data.join("postmaster.pid");
            let holder = fs::read_to_string(&pid_file).unwrap_or_default();
            if holder.lines().next().and_then(|pid| pid.trim().parse().ok()).is_some_and(is_zombie) {
                // PostgreSQL takes a zombie for a running server.
                fs::remove_file(&pid_file)?;
            }
            let process = self.spawn(name, self.program("postgres").arg("-D").arg(&data))?;
            let ready = || {
                let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
                let mut lines = text.lines();
                // Line 8 is the postmaster's state: PM_STATUS_READY and PM_STATUS_STANDBY of pidfile.h.
                lines.next() == Some(&process.pid.to_string())
                    && matches!(lines.nth(6).map(str::trim), Some("ready" | "standby"))
            };
            if wait_until(START_LIMIT, || ready() || !process.alive()) && process.alive() {
                return Ok(());
            }
            let tail = log_tail(&log, from, 15);
            // After kill -9 of the postmaster its backends need a moment to notice.
            let lingering =
                tail.contains("shared memory block") || tail.contains("lock file \"postmaster.pid\"");
            attempts += 1;
            if process.alive() || !lingering || attempts > LINGERING_ATTEMPTS {
                bail!("{name} did not become ready; {}:\n{tail}", log.display());
            }
            if attempts >= LINGERING_ATTEMPTS / 2 {
                // One that waits for a lock of a sibling that was killed never notices.
                Process::working_in(&data, "postgres")?
                    .iter()
                    .for_each(|orphan| orphan.signal(Signal::SIGKILL));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Both servers of a shard, from nothing or from their data; the standby streams when this returns.
    pub(crate) fn start_shard(&self, shard: u16) -> Result<()> {
        let state = self.state().clone();
        let primary = state.primary_of(shard);
        let standby = state.standby_of(shard);
        let primary_port = state.port(&primary)?;
        if !data(&state.dir, &primary).join("PG_VERSION").exists() {
            self.init_cluster(&state, &primary)?;
        }
        let wait_for_standby = state.profile != Profile::Async;
        let was_running = state.running(&primary).is_some();
        self.configure(&state, &primary, Role::Primary { wait_for_standby })?;
        if was_running {
            self.reload(&state, &primary)
        } else {
            self.start_postgres(&primary)?
        }

        let standby_data = data(&state.dir, &standby);
        if !standby_data.join("PG_VERSION").exists() {
            self.base_backup(&state, &standby, primary_port)?;
        } else if !is_standby(&standby_data) {
            return self.rejoin(shard);
        }
        self.configure(&state, &standby, Role::Standby { primary_port })?;
        match state.running(&standby) {
            Some(_) => self.reload(&state, &standby),
            None => self.start_postgres(&standby)?,
        }
        self.wait_streaming(&state, shard, &standby)
    }

    fn wait_streaming(&self, state: &State, shard: u16, standby: &str) -> Result<()> {
        let port = state.port(&state.primary_of(shard))?;
        let sql = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{STANDBY}' AND state = 'streaming'"
        );
        if wait_until(START_LIMIT, || self.psql(port, "postgres", &sql).is_ok_and(|count| count == "1")) {
            return Ok(());
        }
        bail!(
            "{standby} does not stream from shard {shard}'s primary:\n{}",
            log_tail(&state.log(standby), 0, 15)
        );
    }

    pub(crate) fn start_oracle(&self) -> Result<()> {
        let state = self.state().clone();
        if !data(&state.dir, "oracle").join("PG_VERSION").exists() {
            self.init_cluster(&state, "oracle")?;
        }
        self.configure(&state, "oracle", Role::Primary { wait_for_standby: false })?;
        match state.running("oracle") {
            Some(_) => self.reload(&state, "oracle"),
            None => self.start_postgres("oracle")?,
        }
        Ok(())
    }

    /// The standby becomes the primary; the old primary is stopped if it still runs, and stays down.
    pub(crate) fn promote(&self, shard: u16) -> Result<()> {
        let state = self.state().clone();
        let (old, new) = (state.primary_of(shard), state.standby_of(shard));
        let new_port = state.port(&new)?;
        if state.running(&new).is_none() {
            bail!("{new} is not running: `cargo stack start {new}` first");
        }
        if !is_standby(&data(&state.dir, &new)) {
            bail!("{new} is not a standby: `cargo stack rejoin shard{shard}` first");
        }
        // A fast shutdown sends all WAL to the standby before it ends: a planned switch loses nothing.
        self.stop(std::slice::from_ref(&old))?;
        self.psql(new_port, "postgres", "SELECT pg_promote(true, 60)")?;
        if self.psql(new_port, "postgres", "SELECT pg_is_in_recovery()")? != "f" {
            bail!("{new} did not leave recovery within 60 s:\n{}", log_tail(&state.log(&new), 0, 15));
        }
        // Nobody follows it yet: waiting for a standby would stop every commit.
        self.configure(&state, &new, Role::Primary { wait_for_standby: false })?;
        self.reload(&state, &new);
        self.ensure_slot(new_port)?;
        self.change(|state| {
            state.promoted.insert(shard, new.clone());
        })?;
        self.say(&format!("shard{shard}: {new} is the primary; {old} is down (`cargo stack rejoin shard{shard}` brings it back)"));
        Ok(())
    }

    /// The server that is not the primary comes back as a synchronous standby, by pg_rewind or a fresh base backup.
    pub(crate) fn rejoin(&self, shard: u16) -> Result<()> {
        let state = self.state().clone();
        let (primary, name) = (state.primary_of(shard), state.standby_of(shard));
        let primary_port = state.port(&primary)?;
        if state.running(&primary).is_none() {
            bail!("{primary}, the primary of shard {shard}, is not running");
        }
        let data = data(&state.dir, &name);
        let runs = is_standby(&data) && state.running(&name).is_some();
        if runs && self.wait_streaming(&state, shard, &name).is_ok() {
            self.say(&format!("{name} is a running standby already"));
            return Ok(());
        }
        self.stop(std::slice::from_ref(&name))?;
        if !is_standby(&data) {
            self.ensure_slot(primary_port)?;
            // pg_rewind reads the source's timeline from its control file, which a promotion updates at the next checkpoint.
            self.psql(primary_port, "postgres", "CHECKPOINT")?;
            let source =
                format!("host=127.0.0.1 port={primary_port} user=postgres password=postgres dbname=postgres");
            let rewound =
                run(self.program("pg_rewind").arg("-D").arg(&data).arg(format!("--source-server={source}")));
            match rewound {
                Ok(_) => {
                    // Slots are not rewound; those of its time as a primary would hold WAL for ever.
                    for slot in fs::read_dir(data.join("pg_replslot"))?.filter_map(Result::ok) {
                        fs::remove_dir_all(slot.path())?;
                    }
                    self.write(&data.join("standby.signal"), "")?;
                }
                Err(error) => {
                    self.say(&format!(
                        "{name}: pg_rewind cannot help here, taking a fresh base backup ({error})"
                    ));
                    self.base_backup(&state, &name, primary_port)?;
                }
            }
        }
        let follow = || {
            self.configure(&state, &name, Role::Standby { primary_port })?;
            self.start_postgres(&name)?;
            self.wait_streaming(&state, shard, &name)
        };
        if let Err(error) = follow() {
            // WAL from before the promotion, which pg_rewind goes back to, may be gone from the primary.
            self.say(&format!("{name} does not follow, taking a fresh base backup ({error})"));
            self.stop(std::slice::from_ref(&name))?;
            self.base_backup(&state, &name, primary_port)?;
            follow()?;
        }
        self.configure(
            &state,
            &primary,
            Role::Primary { wait_for_standby: state.profile != Profile::Async },
        )?;
        self.reload(&state, &primary);
        self.say(&format!("shard{shard}: {name} follows {primary}"));
        Ok(())
    }

    /// "primary", "standby" or "starting", from what the server itself wrote.
    pub(crate) fn postgres_role(&self, name: &str) -> &'static str {
        let data = data(&self.state().dir, name);
        let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        match text.lines().nth(7).map(str::trim) {
            Some("ready") if is_standby(&data) => "standby",
            Some("ready") => "primary",
            Some("standby") => "standby",
            _ => "starting",
        }
    }
}
