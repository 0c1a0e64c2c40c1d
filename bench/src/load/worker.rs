//! One connection's life: take what is due, send, account for the answer.
use super::acks::AckLog;
use super::http::{Connection, HttpError, find};
use super::schedule::Schedule;
use super::seed::Seed;
use super::stats::Stats;
use super::trace::Trace;
use super::workload::{Item, Workload};
use anyhow::Result;
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// After the end, requests that were already due may still be sent for this long; later ones count as not sent.
const BACKLOG_GRACE: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// What the workers of one run share; one thread, so plain cells.
pub struct Shared<'a> {
    pub start: Instant,
    /// Earlier than planned when the run is interrupted.
    pub end: Cell<Instant>,
    /// `None` = closed loop.
    pub schedule: Option<RefCell<Schedule>>,
    pub workload: RefCell<Workload<'a>>,
    pub seed: &'a Seed,
    pub stats: RefCell<Stats>,
    pub acks: &'a RefCell<AckLog>,
    pub trace: Option<&'a RefCell<Trace>>,
    pub cores: &'a [String],
    pub batch: usize,
    pub timeout: Duration,
    pub retry_for: Duration,
}

impl Shared<'_> {
    /// Ends the run now.
    pub fn cut(&self) {
        let now = Instant::now();
        self.end.set(now.min(self.end.get()));
        self.stats.borrow_mut().cut(now);
        if let Some(schedule) = &self.schedule {
            schedule.borrow_mut().cut(now.saturating_duration_since(self.start));
        }
    }
}

/// How an item of an answer ended.
enum Outcome {
    Posted {
        payment: String,
        status: String,
        replayed: bool,
    },
    /// Worth another try with the same key: in flight, overloaded, or the server failed.
    Retry(String),
    Failed(String),
}

pub struct Worker<'a> {
    shared: &'a Shared<'a>,
    core: usize,
    connection: Option<Connection>,
    items: Vec<Item>,
    scratch: Vec<u8>,
    request: Vec<u8>,
    outcomes: Vec<Outcome>,
}

impl<'a> Worker<'a> {
    pub fn new(shared: &'a Shared<'a>, number: usize) -> Worker<'a> {
        Worker {
            shared,
            core: number % shared.cores.len(),
            connection: None,
            items: Vec::new(),
            scratch: Vec::new(),
            request: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    pub async fn run(mut self) -> Result<()> {
        while let Some(intended) = self.next_due().await {
            // What other connections were told goes to the file with it: one write for many answers under load.
            self.shared.acks.borrow_mut().flush()?;
            let host = &self.shared.cores[self.core];
            let tenant = self.shared.workload.borrow_mut().build(
                self.shared.batch,
                host,
                &mut self.items,
                &mut self.scratch,
                &mut self.request,
            );
            self.send(intended, tenant).await?;
        }
        Ok(())
    }

    async fn next_due(&self) -> Option<Instant> {
        let shared = self.shared;
        let Some(schedule) = &shared.schedule else {
            let now = Instant::now();
            return (now < shared.end.get()).then_some(now);
        };
        loop {
            let offset = schedule.borrow_mut().next()?;
            let due = shared.start + offset;
            let now = Instant::now();
            if now >= shared.end.get() + BACKLOG_GRACE {
                shared.stats.borrow_mut().failed(
                    due,
                    "not sent: all connections busy".into(),
                    shared.batch as u64,
                );
                continue;
            }
            if due > now {
                tokio::time::sleep_until(due.into()).await;
            }
            return Some(due);
        }
    }

    /// Sends until every item has an outcome that is not worth a retry, or the time for retries is over.
    async fn send(&mut self, intended: Instant, tenant: usize) -> Result<()> {
        let give_up = Instant::now() + self.shared.retry_for;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let pause = self.attempt(intended, tenant).await?;
            let retry = self.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Retry(_)));
            if retry && Instant::now() < give_up {
                self.shared.stats.borrow_mut().retries += 1;
                tokio::time::sleep(pause.unwrap_or(backoff).min(MAX_BACKOFF)).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
                continue;
            }
            let mut stats = self.shared.stats.borrow_mut();
            for outcome in self.outcomes.drain(..) {
                if let Outcome::Retry(kind) | Outcome::Failed(kind) = outcome {
                    stats.failed(intended, kind, 1);
                }
            }
            return Ok(());
        }
    }

    /// One exchange. Leaves one outcome per item still open in `outcomes`, and logs the acknowledged ones.
    async fn attempt(&mut self, intended: Instant, tenant: usize) -> Result<Option<Duration>> {
        self.outcomes.clear();
        let open = self.items.iter().filter(|item| !item.done).count();
        let reply = match exchange(self.shared, &mut self.connection, self.core, &self.request).await {
            Ok(reply) => reply,
            Err(error) => {
                self.connection = None;
                // Another core may be up.
                self.core = (self.core + 1) % self.shared.cores.len();
                let kind = error.kind();
                self.outcomes.extend((0..open).map(|_| Outcome::Retry(kind.clone())));
                return Ok(None);
            }
        };
        let now = Instant::now();
        let pause = reply.retry_after;
        let outcomes = if self.shared.batch == 1 {
            vec![single(reply.status, reply.replayed, reply.body)]
        } else {
            batch(reply.status, reply.body, self.items.len())
        };
        let mut stats = self.shared.stats.borrow_mut();
        let mut acks = self.shared.acks.borrow_mut();
        for (item, outcome) in self.items.iter_mut().zip(outcomes) {
            if item.done {
                continue;
            }
            match outcome {
                Outcome::Posted { payment, status, replayed } => {
                    acks.push(&self.shared.seed.tenants[tenant].tenant_id, &item.key, &payment, &status);
                    item.done = true;
                    stats.posted(intended, now, status == "succeeded", replayed);
                }
                other => self.outcomes.push(other),
            }
        }
        // Refusals are fast: among the latencies they would make an overloaded core look good.
        if self.outcomes.is_empty() {
            let reported = stats.answered(intended, now);
            if let (Some(latency_us), Some(trace)) = (reported, self.shared.trace) {
                trace.borrow_mut().push(intended, latency_us)?;
            }
        }
        if self.connection.as_ref().is_some_and(|connection| connection.closing) {
            self.connection = None;
        }
        Ok(pause)
    }
}

async fn exchange<'c>(
    shared: &Shared<'_>,
    connection: &'c mut Option<Connection>,
    core: usize,
    request: &[u8],
) -> Result<super::http::Reply<'c>, HttpError> {
    if connection.is_none() {
        let opened = tokio::time::timeout(shared.timeout, Connection::open(&shared.cores[core])).await;
        *connection = Some(opened.map_err(|_| HttpError::Timeout)??);
    }
    match connection {
        Some(connection) => connection.exchange(request, shared.timeout).await,
        None => Err(HttpError::Malformed("no connection")),
    }
}

fn retryable(status: u16) -> bool {
    matches!(status, 409 | 429 | 500 | 502 | 503 | 504)
}

/// The text after `"name":"` up to the closing quote: enough for ids and codes, which contain no escapes.
fn field<'b>(body: &'b [u8], name: &[u8]) -> Option<&'b str> {
    let start = find(body, name)? + name.len();
    let end = start + body.get(start..)?.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&body[start..end]).ok()
}

fn single(status: u16, replayed: bool, body: &[u8]) -> Outcome {
    let payment = field(body, b"\"payment_id\":\"");
    match (status, payment) {
        (200 | 201, Some(payment)) => match field(body, b"\"status\":\"") {
            Some(state) => {
                Outcome::Posted { payment: payment.to_owned(), status: state.to_owned(), replayed }
            }
            None => Outcome::Failed(format!("{status} without a status")),
        },
        (200 | 201, None) => Outcome::Failed(format!("{status} without a payment_id")),
        (402, Some(payment)) => {
            Outcome::Posted { payment: payment.to_owned(), status: "declined".to_owned(), replayed }
        }
        _ => problem(status, field(body, b"\"code\":\"")),
    }
}

fn problem(status: u16, code: Option<&str>) -> Outcome {
    let kind = format!("{status} {}", code.unwrap_or("(no code)"));
    if retryable(status) { Outcome::Retry(kind) } else { Outcome::Failed(kind) }
}

#[derive(Deserialize)]
struct BatchAnswer<'b> {
    #[serde(borrow)]
    results: Vec<BatchResult<'b>>,
}

#[derive(Deserialize)]
struct BatchResult<'b> {
    status: u16,
    #[serde(default)]
    replayed: bool,
    #[serde(borrow)]
    payment: Option<BatchPayment<'b>>,
    #[serde(borrow)]
    problem: Option<BatchProblem<'b>>,
}

#[derive(Deserialize)]
struct BatchPayment<'b> {
    payment_id: &'b str,
    status: &'b str,
}

#[derive(Deserialize)]
struct BatchProblem<'b> {
    payment_id: Option<&'b str>,
    code: Option<&'b str>,
}

fn batch(status: u16, body: &[u8], items: usize) -> Vec<Outcome> {
    let whole = |outcome: &dyn Fn() -> Outcome| (0..items).map(|_| outcome()).collect();
    if status != 200 {
        let code = field(body, b"\"code\":\"");
        return whole(&|| problem(status, code));
    }
    match serde_json::from_slice::<BatchAnswer<'_>>(body) {
        Ok(answer) if answer.results.len() == items => answer.results.iter().map(batch_item).collect(),
        Ok(_) => whole(&|| Outcome::Failed("200 with a different number of results".into())),
        Err(_) => whole(&|| Outcome::Failed("200 that is not the documented JSON".into())),
    }
}

fn batch_item(result: &BatchResult<'_>) -> Outcome {
    let declined = result.problem.as_ref().and_then(|problem| problem.payment_id);
    match (result.status, &result.payment, declined) {
        (200 | 201, Some(payment), _) => Outcome::Posted {
            payment: payment.payment_id.to_owned(),
            status: payment.status.to_owned(),
            replayed: result.replayed || result.status == 200,
        },
        (402, _, Some(payment)) => Outcome::Posted {
            payment: payment.to_owned(),
            status: "declined".to_owned(),
            replayed: result.replayed,
        },
        (status, _, _) => problem(status, result.problem.as_ref().and_then(|problem| problem.code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(outcome: &Outcome) -> String {
        match outcome {
            Outcome::Posted { payment, status, replayed } => format!("posted {payment} {status} {replayed}"),
            Outcome::Retry(kind) => format!("retry {kind}"),
            Outcome::Failed(kind) => format!("failed {kind}"),
        }
    }

    #[test]
    fn answers_of_the_single_endpoint() {
        let check = |status, body: &str, expected: &str| {
            assert_eq!(show(&single(status, false, body.as_bytes())), expected)
        };
        check(201, r#"{"payment_id":"p1","status":"succeeded"}"#, "posted p1 succeeded false");
        check(
            402,
            r#"{"status":402,"code":"insufficient_funds","payment_id":"p2"}"#,
            "posted p2 declined false",
        );
        check(402, r#"{"status":402,"code":"x"}"#, "failed 402 x");
        check(409, r#"{"code":"in_flight"}"#, "retry 409 in_flight");
        check(422, r#"{"code":"bad"}"#, "failed 422 bad");
        check(503, "overloaded", "retry 503 (no code)");
        check(201, "{}", "failed 201 without a payment_id");
    }

    #[test]
    fn answers_of_the_batch_endpoint() {
        let body = br#"{"results":[{"status":201,"payment":{"payment_id":"a","status":"succeeded","x":1}},
            {"status":402,"problem":{"payment_id":"b","code":"limit_exceeded"}},{"status":429,"problem":{"code":"busy"}}]}"#;
        let shown: Vec<String> = batch(200, body, 3).iter().map(show).collect();
        assert_eq!(shown, ["posted a succeeded false", "posted b declined false", "retry 429 busy"]);
        assert_eq!(show(&batch(200, body, 2)[1]), "failed 200 with a different number of results");
        assert_eq!(show(&batch(503, b"", 2)[1]), "retry 503 (no code)");
    }
}
