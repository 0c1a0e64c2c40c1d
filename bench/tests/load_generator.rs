//! The generator against a core of a few lines, to see that it measures and logs what it says.
#![allow(clippy::unwrap_used, reason = "test helpers")]
use bench::load::acks::AckLog;
use bench::load::options::{LoadArgs, Pace};
use bench::load::report::{LoadReport, StepReport};
use bench::load::run::Runner;
use bench::load::seed::{Seed, Tenant};
use bench::load::trace::{self, Request, Trace};
use bench::servers::Directory;
use bench::stack::{Shard, Stack};
use clap::Parser;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: LoadArgs,
}

/// What the little core does wrong.
#[derive(Clone, Copy)]
enum Fault {
    None,
    /// Answers nothing between these moments after its start.
    Stall(Duration, Duration),
    /// Stores every third payment and hangs up before it answers.
    HangUp,
    Overloaded,
}

struct Core {
    fault: Fault,
    start: Instant,
    stored: RefCell<HashMap<String, String>>,
    requests: Cell<u32>,
}

impl Core {
    /// One connection; None = hang up.
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut have = 0;
        loop {
            let request = loop {
                let text = std::str::from_utf8(&buffer[..have]).ok()?;
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length =
                        head.split("Content-Length: ").nth(1)?.split("\r\n").next()?.parse::<usize>().ok()?;
                    if body.len() == length {
                        break text.to_owned();
                    }
                }
                let count = stream.read(&mut buffer[have..]).await.ok().filter(|count| *count > 0)?;
                have += count;
            };
            have = 0;
            self.requests.set(self.requests.get() + 1);
            if let Fault::Stall(from, to) = self.fault {
                let now = self.start.elapsed();
                if now >= from && now < to {
                    tokio::time::sleep(to - now).await;
                }
            }
            let (status, replayed, body) = if matches!(self.fault, Fault::Overloaded) {
                (503, "", "{\"code\":\"overloaded\"}".to_owned())
            } else {
                let key = request.split("Idempotency-Key: ").nth(1)?.split("\r\n").next()?.to_owned();
                let known = self.stored.borrow().get(&key).cloned();
                let payment = known.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
                self.stored.borrow_mut().insert(key, payment.clone());
                if known.is_none()
                    && matches!(self.fault, Fault::HangUp)
                    && self.requests.get().is_multiple_of(3)
                {
                    return None;
                }
                let replayed = if known.is_some() { "Idempotent-Replayed: true\r\n" } else { "" };
                (201, replayed, format!("{{\"payment_id\":\"{payment}\",\"status\":\"succeeded\"}}"))
            };
            let answer =
                format!("HTTP/1.1 {status} X\r\n{replayed}Content-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.ok()?;
        }
    }
}

struct Outcome {
    report: StepReport,
    acks: String,
    stored: HashMap<String, String>,
    requests: Vec<Request>,
}

async fn load(fault: Fault, pace: Pace, options: &str) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let core =
        Rc::new(Core { fault, start: Instant::now(), stored: RefCell::default(), requests: Cell::new(0) });
    let serving = core.clone();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let core = serving.clone();
            tokio::task::spawn_local(async move { core.serve(stream).await });
        }
    });
    let directory = Directory::new("load").unwrap();
    let line = format!("load --json --tenants 2 --accounts 3 {options}");
    let args = Line::parse_from(line.split_whitespace()).args;
    let tenant = |_| Tenant {
        tenant_id: Uuid::now_v7().to_string(),
        api_key: "pk".into(),
        currency: "USD".into(),
        exponent: 2,
        settlement: Uuid::now_v7().to_string(),
        wallets: (0..3).map(|_| Uuid::now_v7().to_string()).collect(),
    };
    let seed = Seed {
        id: "test".into(),
        tenants: (0..2).map(tenant).collect(),
        directory: directory.path().join("acks"),
    };
    // No shard answers here: what cannot be measured is null.
    let shard = Shard { id: 1, primary: "postgresql://a:b@127.0.0.1:1/x".into(), replica: None };
    let stack = Stack { cores: vec![address.clone()], shards: vec![shard], ..Stack::default() };
    let acks = AckLog::create(&seed.directory).unwrap();
    let traced = directory.path().join("trace");
    let trace = Trace::create(&traced).unwrap();
    let runner = Runner::new(&args, &stack, vec![address], &seed, acks, Some(trace), Rc::default());
    let report = runner.run(pace).await.unwrap();
    runner.close().unwrap();
    let file = bench::load::acks::logs(&seed.directory).unwrap().remove(0);
    let stored = core.stored.borrow().clone();
    let requests = trace::read(&traced).unwrap();
    Outcome { report, acks: std::fs::read_to_string(file).unwrap(), stored, requests }
}

fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// Every stored payment is in the log with its id, and nothing else.
fn assert_acks(outcome: &Outcome) {
    let mut acknowledged = HashMap::new();
    for line in outcome.acks.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields.len(), fields[3]), (4, "succeeded"), "{line}");
        assert!(acknowledged.insert(fields[1].to_owned(), fields[2].to_owned()).is_none(), "twice: {line}");
    }
    assert_eq!(acknowledged, outcome.stored);
}

#[test]
fn holds_its_rate_and_logs_every_acknowledgement() {
    local(async {
        let before = now_us();
        let outcome =
            load(Fault::None, Pace::Rate(500.0), "--duration 2 --warmup 0.5 --arrivals uniform").await;
        let report = &outcome.report;
        assert_eq!((report.errors, report.declined, report.replayed), (0, 0, 0));
        assert!((950..=1050).contains(&report.ok), "{}", report.ok);
        assert!((475.0..525.0).contains(&report.rate_achieved), "{}", report.rate_achieved);
        assert!(report.held());
        assert_eq!(report.wal_bytes_per_payment, None);
        assert!(report.cpu_us_per_payment["load"].is_some_and(|us| us > 0.0));
        assert_acks(&outcome);
        // Of the warm-up there is nothing in the trace.
        assert_eq!(outcome.requests.len() as u64, report.ok);
        let measured = before + 500_000..now_us();
        assert!(outcome.requests.iter().all(|request| measured.contains(&request.begin_us)));
    });
}

/// A closed loop with one request in flight would see one slow answer; all requests due during the stall were slow.
#[test]
fn a_stall_is_seen_by_every_request_that_was_due() {
    local(async {
        let stall = Fault::Stall(Duration::from_millis(800), Duration::from_millis(1600));
        let options = "--duration 2 --warmup 0 --arrivals uniform --connections 2";
        let Outcome { report, requests, .. } = load(stall, Pace::Rate(200.0), options).await;
        assert_eq!(report.errors, 0);
        // 40 % of the requests were due in the stall, waiting up to 800 ms.
        assert!(report.p50_ms < 200.0, "{}", report.p50_ms);
        assert!(report.p95_ms > 500.0, "{}", report.p95_ms);
        assert!((390..=410).contains(&report.ok), "{}", report.ok);
        // Answered late, but in the window.
        assert!(report.held());
        // The trace says when each was due: one each 5 ms, also while both connections waited for their answers.
        let mut begins: Vec<i64> = requests.iter().map(|request| request.begin_us).collect();
        begins.sort_unstable();
        assert!(begins.windows(2).all(|pair| pair[1] - pair[0] <= 5_100));
        let longest = requests.iter().map(|request| request.latency_us).max().unwrap();
        assert!((longest as f64 / 1e3 - report.max_ms).abs() < 2.0, "{longest} {}", report.max_ms);
    });
}

#[test]
fn a_lost_answer_is_asked_again_with_the_same_key() {
    local(async {
        let outcome = load(Fault::HangUp, Pace::Clients(4), "--duration 0.5 --warmup 0 --retry-for 5").await;
        let report = &outcome.report;
        assert_eq!(report.errors, 0, "{:?}", report.errors_by_kind);
        assert!(report.retries > 0 && report.replayed > 0);
        assert_acks(&outcome);
    });
}

#[test]
fn refusals_are_errors_by_status_and_code() {
    local(async {
        let Outcome { report, requests, .. } =
            load(Fault::Overloaded, Pace::Rate(100.0), "--duration 1 --warmup 0").await;
        // Refusals are in no latency.
        assert_eq!((report.ok, requests.len()), (0, 0));
        assert!(report.errors > 50);
        assert_eq!(report.errors_by_kind.keys().collect::<Vec<_>>(), ["503 overloaded"]);
        assert!(!report.held());
    });
}

/// The keys of a single run are those of the run in the middle, and what the machine did besides is said.
#[test]
fn h36_a_report_says_how_many_runs_and_on_how_busy_a_machine() {
    local(async {
        let one = load(Fault::None, Pace::Clients(1), "--duration 0.2 --warmup 0").await.report;
        assert!(one.load_average_at_start.is_some());
        let alone = LoadReport::of_runs(vec![one.clone()], None);
        let json = serde_json::to_value(&alone).unwrap();
        assert_eq!((&json["runs"], json.get("spread"), json.get("steps")), (&1.into(), None, None));
        assert_eq!(json["load_average_at_start"], serde_json::to_value(one.load_average_at_start).unwrap());
        assert!(
            alone.human().contains("1 run") && alone.human().contains("load average"),
            "{}",
            alone.human()
        );

        let run = |rate: f64, p99: f64, core: f64| {
            let mut run = one.clone();
            (run.rate_achieved, run.p99_ms, run.p95_ms) = (rate, p99, p99 / 2.0);
            run.cpu_us_per_payment = [("core", Some(core)), ("kafka", None)].into();
            run
        };
        let runs = vec![run(300.0, 9.0, 1.0), run(100.0, 8.0, 2.0), run(200.0, 4.0, 6.0)];
        let report = LoadReport::of_runs(runs.clone(), None);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&json["runs"], &json["rate_achieved"], &json["p99_ms"]),
            (&3.into(), &200.0.into(), &4.0.into())
        );
        let spread =
            |median: f64, min: f64, max: f64| serde_json::json!({ "median": median, "min": min, "max": max });
        assert_eq!(json["spread"]["rate_achieved"], spread(200.0, 100.0, 300.0));
        assert_eq!(json["spread"]["p95_ms"], spread(4.0, 2.0, 4.5));
        assert_eq!(json["spread"]["p99_ms"], spread(8.0, 4.0, 9.0));
        assert_eq!(
            json["spread"]["cpu_us_per_payment"],
            serde_json::json!({ "core": spread(2.0, 1.0, 6.0) })
        );
        assert_eq!(json["steps"].as_array().unwrap().len(), 3);
        assert!(report.human().contains("3 runs") && report.human().contains("CPU us/payment, core"));

        // In an open loop the rate is given, and the latency says which run is in the middle.
        let open = runs.into_iter().map(|run| StepReport { rate_requested: Some(300.0), ..run }).collect();
        assert_eq!(LoadReport::of_runs(open, None).main.unwrap().p99_ms, 8.0);
    });
}
