//! Real PostgreSQL servers for the tests of this binary: shards, each with a streaming replica when asked for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub const PG_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Tests of this binary run in parallel; each takes its own ports.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

pub fn take_port() -> u16 {
    let base: u16 = std::env::var("TEST_PORT_BASE").ok().and_then(|p| p.parse().ok()).unwrap_or(18100);
    loop {
        let port = base + NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub struct Server {
    pub port: u16,
    data: PathBuf,
}

pub struct Cluster {
    pub directory: PathBuf,
    pub primaries: Vec<Server>,
    pub replicas: Vec<Server>,
}

fn as_postgres(program: &str) -> Command {
    let path = format!("{PG_BIN}/{program}");
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"));
    if root {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", &path]);
        command
    } else {
        Command::new(path)
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the command starts");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {text}");
}

impl Server {
    pub fn start(&self) {
        let log = self.data.join("server.log");
        run(as_postgres("pg_ctl").args([
            "-D",
            path(&self.data),
            "-l",
            path(&log),
            "-w",
            "-t",
            "60",
            "start",
        ]));
    }

    pub fn stop(&self, mode: &str) {
        let mut command = as_postgres("pg_ctl");
        command.args(["-D", path(&self.data), "-m", mode, "-w", "stop"]);
        let _ = command.stdin(Stdio::null()).output();
    }

    /// As kill -9 of every process: no checkpoint, no farewell to clients.
    pub fn kill(&self) {
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).expect("running");
        let pid = pid.lines().next().expect("a pid").to_owned();
        let children = Command::new("pgrep").args(["-P", &pid]).output().expect("pgrep");
        let mut command = Command::new("kill");
        command.arg("-9").arg(&pid).args(String::from_utf8_lossy(&children.stdout).split_whitespace());
        let _ = command.stderr(Stdio::null()).status();
        let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
    }

    /// STOP: as a machine that hangs; nothing is answered and nothing is closed. CONT: it goes on.
    pub fn signal(&self, signal: &str) {
        let Ok(pid) = std::fs::read_to_string(self.data.join("postmaster.pid")) else { return };
        let pid = pid.lines().next().expect("a pid").to_owned();
        let children = Command::new("pgrep").args(["-P", &pid]).output().expect("pgrep");
        let mut command = Command::new("kill");
        command.arg(format!("-{signal}")).arg(&pid);
        command.args(String::from_utf8_lossy(&children.stdout).split_whitespace());
        let _ = command.stderr(Stdio::null()).status();
    }

    pub fn promote(&self) {
        run(as_postgres("pg_ctl").args(["-D", path(&self.data), "-w", "promote"]));
    }

    pub fn url(&self, user: &str) -> String {
        format!("postgresql://{user}:{user}@127.0.0.1:{}/payments", self.port)
    }

    pub async fn client(&self, user: &str) -> tokio_postgres::Client {
        connect(&self.url(user)).await
    }
}

pub async fn connect(url: &str) -> tokio_postgres::Client {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match tokio_postgres::connect(url, tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) if Instant::now() > deadline => panic!("{url}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl Cluster {
    /// Shards numbered from 1, each with an initdb of its own, because copies of one would be one system to the
    /// proxy (H5); roles postgres, shard_proxy (superusers) and app, each with its name as password; database
    /// payments owned by app.
    pub fn start(name: &str, shards: usize, replicas: bool) -> Self {
        let directory = std::env::temp_dir().join(format!("shard-proxy-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        run(Command::new("chmod").args(["777", path(&directory)]));
        let mut cluster = Self { directory, primaries: Vec::new(), replicas: Vec::new() };
        for number in 1..=shards {
            let server = initialise(cluster.directory.join(format!("shard{number}")));
            if replicas {
                let data = cluster.directory.join(format!("shard{number}-replica"));
                let replica = Server { port: take_port(), data };
                let source = format!("postgresql://replicator:replicator@127.0.0.1:{}/postgres", server.port);
                run(as_postgres("pg_basebackup").args([
                    "-d",
                    &source,
                    "-D",
                    path(&replica.data),
                    "-R",
                    "--no-sync",
                    "-c",
                    "fast",
                ]));
                write_configuration(&replica);
                replica.start();
                cluster.replicas.push(replica);
            }
            cluster.primaries.push(server);
        }
        cluster
    }

    /// The proxy's configuration for these servers.
    pub fn configuration(&self, listen: u16, http: u16, extra: &str) -> String {
        let state = self.directory.join(format!("state-{listen}"));
        let mut text = format!(
            "[proxy]\nname = \"p{listen}\"\nlisten = \"127.0.0.1:{listen}\"\nhttp = \"127.0.0.1:{http}\"\nstate_dir = \"{}\"\n\
             [pool]\nprimary_min = 1\nreplica_min = 0\n\
             [control]\nuser = \"shard_proxy\"\npassword = \"shard_proxy\"\n[[user]]\nname = \"app\"\npassword = \"app\"\n\
             [[user]]\nname = \"postgres\"\npassword = \"postgres\"\n",
            state.display()
        );
        for (index, server) in self.primaries.iter().enumerate() {
            let replica =
                self.replicas.get(index).map(|r| format!("\"127.0.0.1:{}\"", r.port)).unwrap_or_default();
            text += &format!(
                "[[shard]]\nid = {}\nprimary = \"127.0.0.1:{}\"\nreplicas = [{replica}]\n",
                index + 1,
                server.port
            );
        }
        text + extra
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in self.primaries.iter().chain(&self.replicas) {
            server.signal("CONT");
            server.stop("immediate");
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn write_configuration(server: &Server) {
    let text = format!(
        "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nshared_buffers = 16MB\n\
         max_connections = 100\nmax_prepared_transactions = 50\nwal_level = logical\nmax_wal_senders = 5\n\
         password_encryption = 'scram-sha-256'\nhot_standby = on\nwal_receiver_status_interval = 1s\n",
        server.port
    );
    write_as_postgres(&server.data.join("postgresql.auto.conf.test"), &text);
    let main = server.data.join("postgresql.conf");
    let old = std::fs::read_to_string(&main).unwrap_or_default();
    if !old.contains("postgresql.auto.conf.test") {
        write_as_postgres(&main, &format!("{old}\ninclude 'postgresql.auto.conf.test'\n"));
    }
}

/// The data directory belongs to the user that runs the servers.
fn write_as_postgres(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    let _ = Command::new("chown").arg("postgres").arg(path).stderr(Stdio::null()).status();
}

/// A running server with the roles and the database.
fn initialise(data: PathBuf) -> Server {
    let mut server = Server { port: 0, data };
    let options = ["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-A", "trust"];
    run(as_postgres("initdb").args(options).arg("-D").arg(&server.data));
    // Not before: others on this machine might take it meanwhile.
    server.port = take_port();
    write_configuration(&server);
    server.start();
    let setup = "CREATE ROLE shard_proxy SUPERUSER LOGIN PASSWORD 'shard_proxy';
        CREATE ROLE app LOGIN PASSWORD 'app'; CREATE ROLE replicator REPLICATION LOGIN PASSWORD 'replicator';
        ALTER ROLE postgres PASSWORD 'postgres'; CREATE DATABASE payments OWNER app";
    let port = server.port.to_string();
    let mut psql = as_postgres("psql");
    psql.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-v", "ON_ERROR_STOP=1"]);
    for statement in setup.split(';') {
        psql.args(["-c", statement]);
    }
    run(&mut psql);
    let hba = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n";
    write_as_postgres(&server.data.join("pg_hba.conf"), hba);
    run(as_postgres("pg_ctl").args(["-D", path(&server.data), "reload"]));
    server
}
