//! Real servers for these tests: two shards (the first with a streaming replica) and the proxy before them.
//! Started once for all tests; a watchdog shell stops them when this process ends, however it ends.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub struct Cluster {
    pub proxy_port: u16,
    pub http_port: u16,
    pub shard_ports: [u16; 2],
    pub proxy_pid: u32,
    _watchdog: std::sync::Mutex<Child>,
}

/// What both shards begin with. Keys: int8 `k`; odd and even are not a rule, `key_on` finds one per shard.
const SCHEMA: &str = "
create table t (k bigint not null, id int not null, v text, primary key (k, id));
create table plain (id int primary key, v text);
create schema a;
create schema b;
create table a.same (k bigint primary key, v text);
create table b.same (id int primary key, v text);
create function writes(bigint) returns int language plpgsql volatile as
 $$begin insert into t values ($1, 777, 'sly') on conflict do nothing; return 1; end$$;
create function sly(bigint) returns int language plpgsql immutable as $$begin return writes($1); end$$;
";

pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(start)
}

fn binaries() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL's server programs are missing: apt-get install postgresql")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// PostgreSQL refuses to run as root.
fn as_postgres(command: &mut Command) -> &mut Command {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("a user named postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn run(command: &mut Command) {
    let output = as_postgres(command).output().expect("started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn start() -> Cluster {
    let bin = binaries();
    let dir = std::env::temp_dir().join(format!("shard-proxy-session-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("directory");
    std::fs::write(dir.join("password"), "postgres").expect("password file");
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("a user named postgres");
        std::os::unix::fs::chown(&dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
    }
    let (first, second, replica) = (dir.join("s1"), dir.join("s2"), dir.join("r1"));
    let conf = format!(
        "fsync=off\nshared_buffers=16MB\nmax_connections=60\nlisten_addresses='127.0.0.1'\nunix_socket_directories='{}'\n\
         wal_level=logical\nmax_prepared_transactions=20\nlog_min_messages=warning\n",
        dir.display()
    );
    // Each its own initdb: copies of one would be one system to the proxy (H5).
    for data in [&first, &second] {
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args(["-U", "postgres", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]);
        run(initdb.arg("--pwfile").arg(dir.join("password")).arg("-D").arg(data));
        let mut file =
            std::fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("conf");
        file.write_all(conf.as_bytes()).expect("written");
    }
    let ports = [free_port(), free_port(), free_port()];
    let mut watchdog = String::from("trap '' INT TERM HUP\n");
    let server = |data: &Path, port: u16| {
        let log = data.with_extension("log");
        run(Command::new("sh")
            .arg("-c")
            .arg(format!(
                "{}/pg_ctl -D {} -l {} -o '-p {port}' -w start",
                bin.display(),
                data.display(),
                log.display()
            ))
            .stdout(Stdio::null()));
    };
    server(&first, ports[0]);
    server(&second, ports[1]);
    for port in [ports[0], ports[1]] {
        psql(
            port,
            "postgres",
            "postgres",
            &[
                "create role app login password 'app'",
                "create role busy login password 'busy'",
                "create role solo login password 'solo'",
                "create role shard_proxy superuser login password 'shard_proxy'",
                "create database db owner app",
            ],
        );
        let mut command = psql_command(port, "app", "db");
        let output = command.args(["-c", SCHEMA]).output().expect("psql");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        psql(port, "app", "db", &["grant all on all tables in schema public to solo"]);
    }
    let mut backup = Command::new(bin.join("pg_basebackup"));
    backup.env("PGPASSWORD", "postgres").args([
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-c",
        "fast",
        "-R",
        "--no-sync",
    ]);
    run(backup.args(["-p", &ports[0].to_string(), "-D"]).arg(&replica));
    server(&replica, ports[2]);

    let (proxy_port, http_port) = (free_port(), free_port());
    let config = format!(
        "[proxy]\nlisten=\"127.0.0.1:{proxy_port}\"\nhttp=\"127.0.0.1:{http_port}\"\ndatabase=\"db\"\nstate_dir=\"{dir}/state\"\n\
         max_clients=3000\n[key]\ncolumn=\"k\"\ntype=\"int8\"\n[pool]\nprimary_max=4\nprimary_min=1\nreplica_max=4\nreplica_min=1\n\
         connect_timeout_ms=1000\nleak_detection_s=1\n[reads]\npoll_ms=20\n[control]\nuser=\"shard_proxy\"\npassword=\"shard_proxy\"\n\
         [[user]]\nname=\"app\"\npassword=\"app\"\nadmin=true\n[[user]]\nname=\"busy\"\npassword=\"busy\"\n[[user]]\nname=\"solo\"\npassword=\"solo\"\n[[shard]]\nid=1\nprimary=\"127.0.0.1:{}\"\nreplicas=[\"127.0.0.1:{}\"]\n\
         [[shard]]\nid=2\nprimary=\"127.0.0.1:{}\"\n[[function]]\nname=\"public.sly\"\nroute=\"key\"\nargument=1\n",
        ports[0],
        ports[2],
        ports[1],
        dir = dir.display(),
    );
    let path = dir.join("proxy.toml");
    std::fs::write(&path, config).expect("config");
    std::fs::create_dir_all(dir.join("state")).expect("state");
    let log = std::fs::File::create(dir.join("proxy.log")).expect("log");
    let proxy = Command::new(env!("CARGO_BIN_EXE_shard-proxy"))
        .arg("--config")
        .arg(&path)
        .stderr(log)
        .spawn()
        .expect("the proxy");
    let proxy_pid = proxy.id();
    watchdog.push_str(&format!("read line\nkill {proxy_pid} 2>/dev/null\n"));
    for data in [&replica, &first, &second] {
        watchdog.push_str(&format!("kill -QUIT $(head -1 {}/postmaster.pid) 2>/dev/null\n", data.display()));
    }
    let keep = std::env::var_os("KEEP_TEST_DIR").is_some();
    watchdog.push_str(&format!(
        "sleep 1\n{}\n",
        if keep { ":".to_owned() } else { format!("rm -rf {}", dir.display()) }
    ));
    let watchdog =
        Command::new("sh").args(["-c", &watchdog]).stdin(Stdio::piped()).spawn().expect("watchdog");

    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", proxy_port)).is_err() || !ready(http_port) {
        assert!(Instant::now() < deadline, "the proxy did not get ready: see {}", dir.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    Cluster {
        proxy_port,
        http_port,
        shard_ports: [ports[0], ports[1]],
        proxy_pid,
        _watchdog: std::sync::Mutex::new(watchdog),
    }
}

fn ready(port: u16) -> bool {
    http(port, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

pub fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
    Some(answer)
}

pub fn psql_command(port: u16, user: &str, database: &str) -> Command {
    let mut command = Command::new("psql");
    command.env("PGPASSWORD", user).args(["-X", "-A", "-t", "-h", "127.0.0.1", "-U", user, "-d", database]);
    command.args(["-p", &port.to_string(), "-v", "ON_ERROR_STOP=1"]);
    command
}

/// Runs statements and returns what they print.
pub fn psql(port: u16, user: &str, database: &str, statements: &[&str]) -> String {
    let mut command = psql_command(port, user, database);
    for statement in statements {
        command.args(["-c", statement]);
    }
    let output = command.output().expect("psql");
    assert!(output.status.success(), "{statements:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Cluster {
    /// The n-th key (from `from` on) that lives on the shard at this position.
    pub fn key_on(&self, shard: usize, from: i64) -> i64 {
        let map = shard_config::ShardMap::even(&[shard_config::ShardId(1), shard_config::ShardId(2)], 4096);
        let owner = |k: &i64| map.shard_of(shard_config::bucket_of_int8(*k, 4096)).0 as usize == shard + 1;
        (from..).find(owner).expect("endless")
    }

    /// Asks a shard directly.
    pub fn on_shard(&self, shard: usize, sql: &str) -> String {
        psql(self.shard_ports[shard], "postgres", "db", &[sql])
    }

    pub fn proxy_rss_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.proxy_pid)).expect("the proxy lives");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    pub fn counter(&self, name: &str) -> u64 {
        let admin = psql(self.proxy_port, "app", "admin", &["SHOW COUNTERS"]);
        let line = admin.lines().find(|l| l.split('|').next() == Some(name));
        line.and_then(|l| l.split('|').nth(1))
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{name} in {admin}"))
    }
}
