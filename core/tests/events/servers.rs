//! Servers. All tests that run at one time share them; the last one stops them.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use testpg::TempPostgres;
use tokio_postgres::{Client, NoTls};

/// A server process. It goes with this value, and also when the test process dies without dropping it: its shell waits
/// for the end of a pipe that only this process holds.
pub struct Process {
    shell: Child,
    pipe: Option<ChildStdin>,
    pid: u32,
}

impl Process {
    pub fn start(program: &str, args: &[String], log: &Path) -> Process {
        let script =
            r#""$@" >>"$LOG" 2>&1 </dev/null & server=$!; echo $server >&3; read -r gone; kill -9 $server"#;
        let pid_file = log.with_extension("pid");
        let mut shell = Command::new("sh")
            .arg("-c")
            .arg(format!("exec 3>{}; {script}", pid_file.display()))
            .arg("server")
            .arg(program)
            .args(args)
            .env("LOG", log)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("sh: {e}"));
        let pipe = shell.stdin.take();
        let pid = wait_for("the server's pid", Duration::from_secs(5), || {
            std::fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
        });
        Process { shell, pipe, pid }
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid, name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(b"end\n");
        }
        let _ = self.shell.wait();
    }
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.is_ok_and(|s| s.success()), "kill -{name} {pid}");
}

pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn answers(port: u16) -> Option<()> {
    TcpStream::connect(("127.0.0.1", port)).ok().map(|_| ())
}

fn directory(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{n}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// redis-server without persistence.
pub struct Redis {
    pub port: u16,
    extra: Vec<String>,
    dir: PathBuf,
    process: Option<Process>,
}

impl Redis {
    pub fn start(extra: &[&str]) -> Redis {
        let extra = extra.iter().map(|s| (*s).to_owned()).collect();
        let mut redis = Redis { port: free_port(), extra, dir: directory("redis"), process: None };
        redis.restart();
        redis
    }

    pub fn restart(&mut self) {
        let mut args: Vec<String> = ["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]
            .iter()
            .map(|s| (*s).to_owned())
            .collect();
        args.extend(["--dir".to_owned(), self.dir.display().to_string()]);
        args.extend(self.extra.iter().cloned());
        self.process = Some(Process::start("redis-server", &args, &self.dir.join("log")));
        wait_for("redis-server (apt-get install redis-server)", Duration::from_secs(10), || {
            answers(self.port)
        });
    }

    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Apache Kafka, one broker, from the jars of the stack's pom.
pub struct Kafka {
    pub port: u16,
    pub data: PathBuf,
    dir: PathBuf,
    jars: PathBuf,
    process: Option<Process>,
}

/// Where the stack keeps the jars; fetched into the target directory if it has not run yet.
fn jars() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let complete = |dir: &Path| {
        let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
        names.filter_map(|e| e.file_name().into_string().ok()).any(|n| n.starts_with("kafka_2.13-"))
    };
    let stacks = cache.map(|c| c.join("shard-stack")).and_then(|c| std::fs::read_dir(c).ok());
    let found = stacks.into_iter().flatten().flatten().map(|e| e.path()).find(|dir| {
        let finished = dir
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with("kafka-") && !n.contains('.'));
        finished && complete(dir)
    });
    if let Some(found) = found {
        return found;
    }
    let own = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kafka-jars");
    if !complete(&own) {
        let pom = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/stack/kafka/pom.xml");
        let fetched = Command::new("mvn")
            .args(["-B", "-q", "-f"])
            .arg(pom)
            .arg("dependency:copy-dependencies")
            .arg(format!("-DoutputDirectory={}", own.display()))
            .status();
        assert!(fetched.is_ok_and(|s| s.success()), "Maven could not fetch Kafka (apt-get install maven)");
    }
    own
}

impl Kafka {
    pub fn start() -> Kafka {
        let dir = directory("kafka");
        let data = dir.join("data");
        let (port, controller) = (free_port(), free_port());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\nlog.dirs={}\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\nlog.retention.hours=-1\n",
            data.display()
        );
        std::fs::write(dir.join("server.properties"), properties).unwrap();
        let mut kafka = Kafka { port, data, dir, jars: jars(), process: None };
        let formatted = Command::new("java")
            .args(kafka.java("kafka.tools.StorageTool"))
            .args(["format", "-t", "dGVzdHRlc3R0ZXN0dGVzdA", "-c"])
            .arg(kafka.dir.join("server.properties"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            formatted.is_ok_and(|s| s.success()),
            "Kafka's storage was not made (apt-get install default-jre-headless)"
        );
        kafka.restart();
        kafka
    }

    fn java(&self, class: &str) -> Vec<String> {
        let jars = self.jars.join("*");
        ["-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &jars.display().to_string(), class]
            .map(str::to_owned)
            .to_vec()
    }

    pub fn restart(&mut self) {
        let mut args = self.java("kafka.Kafka");
        args.push(self.dir.join("server.properties").display().to_string());
        self.process = Some(Process::start("java", &args, &self.dir.join("log")));
        wait_for("Kafka", Duration::from_secs(60), || answers(self.port));
    }

    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.process = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What tests share.
pub struct Servers {
    pub postgres: TempPostgres,
    pub kafka: Kafka,
}

impl Servers {
    /// Started by the first caller, stopped with the last.
    pub fn get() -> Arc<Servers> {
        static RUNNING: Mutex<Weak<Servers>> = Mutex::new(Weak::new());
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let mut running = RUNNING.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(servers) = running.upgrade() {
            return servers;
        }
        let servers = Arc::new(Servers { postgres: TempPostgres::start(&[]), kafka: Kafka::start() });
        *running = Arc::downgrade(&servers);
        servers
    }
}

/// A database with the payment model.
pub struct Database {
    pub url: String,
    pub client: Client,
}

impl Database {
    pub async fn new(postgres: &TempPostgres) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        connect(&postgres.url("postgres"))
            .await
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        let url = postgres.url(&name);
        let report = sql_assets::apply(&url, &sql_assets::Options::default()).await.unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        let client = connect(&url).await;
        Database { url, client }
    }
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
