//! `cargo demo`: from nothing to flowing payments, showing what happens and where to look.

use crate::args::Options;
use crate::http::{Client, Reply};
use crate::server::Stack;
use crate::tools::{self, For};
use crate::up::{self, interrupt_flag};
use crate::{build, services, status};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const TENANTS: usize = 12;
const WALLETS: usize = 25;
const SENDERS: u64 = 8;
const RATE_DEFAULT: u32 = 200;
const SHOW_EVERY: Duration = Duration::from_secs(2);
const SHOPS: [&str; 6] = ["groceries", "coffee", "train ticket", "books", "rent share", "concert"];

struct Tenant {
    name: String,
    key: String,
    accounts: Vec<String>,
}

#[derive(Default)]
struct Seen {
    ok: AtomicU64,
    declined: AtomicU64,
    failed: AtomicU64,
    /// Latencies since the last line, in microseconds; emptied every two seconds, so small.
    latencies: Mutex<Vec<u32>>,
    last_error: Mutex<String>,
}

pub(crate) fn demo(options: &Options) -> Result<bool> {
    let interrupted = interrupt_flag()?;
    tools::ensure(For::Everything, true)?;
    if !options.no_build {
        build::binaries()?;
    }
    let options = Options { no_build: true, ..options.clone() };
    let stack = up::bring_up(&options, false)?;
    let shown = if interrupted.load(Relaxed) { Ok(()) } else { show(&stack, &options, &interrupted) };
    if options.keep {
        out!("the stack keeps running: `cargo stack status`, `cargo stack down`");
    } else {
        out!("stopping");
        up::take_down(&stack)?;
    }
    shown.map(|()| true)
}

fn show(stack: &Stack, options: &Options, interrupted: &AtomicBool) -> Result<()> {
    status::summary(stack);
    let tenants = seed(stack)?;
    let rate = options.rate.unwrap_or(RATE_DEFAULT).max(1);
    let port = stack.state().port("core1")?;
    stack.say(&format!(
        "{} tenants with {WALLETS} wallets each; sending {rate} payments/s to :{port}",
        tenants.len()
    ));
    out!(
        "           try meanwhile, in another terminal: cargo stack kill shard1-primary -9; cargo stack start shard1-primary\n"
    );
    let seen = Seen::default();
    let stop = AtomicBool::new(false);
    let run =
        format!("demo-{:x}", std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis());
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (tenants, seen, stop, run) = (&tenants, &seen, &stop, &run);
            scope.spawn(move || send(port, tenants, seen, stop, run, sender, rate));
        }
        let outcome = report(stack, &tenants, &seen, options, interrupted);
        stop.store(true, Relaxed);
        outcome
    })
}

/// Tenants of an earlier demonstration on the same data are used again.
fn seed(stack: &Stack) -> Result<Vec<Tenant>> {
    let (file, port, admin) = {
        let state = stack.state();
        (state.dir.join("demo.json"), state.port("core1")?, state.admin_token.clone())
    };
    if let Ok(text) = std::fs::read_to_string(&file) {
        let value: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let read = |tenant: &Value| -> Option<Tenant> {
            let accounts =
                tenant["accounts"].as_array()?.iter().filter_map(|id| Some(id.as_str()?.to_owned()));
            Some(Tenant {
                name: tenant["name"].as_str()?.to_owned(),
                key: tenant["key"].as_str()?.to_owned(),
                accounts: accounts.collect(),
            })
        };
        let tenants: Vec<Tenant> = value.as_array().into_iter().flatten().filter_map(read).collect();
        if tenants.len() == TENANTS {
            return Ok(tenants);
        }
    }
    stack.say("seeding tenants, accounts and their first money");
    let mut client = Client::new(port);
    let mut tenants = Vec::new();
    for n in 0..TENANTS {
        let name = format!("demo tenant {}", n + 1);
        let made =
            expect(client.send("POST", "/v1/tenants", &admin, None, Some(&json!({"name": name}))), 201)?;
        let key = made["api_key"].as_str().context("the new tenant has no api_key")?.to_owned();
        let mut wanted = vec![json!({"account_number": "treasury", "currency": "USD", "type": "settlement"})];
        wanted.extend((1..=WALLETS).map(
            |w| json!({"account_number": format!("wallet-{w:03}"), "currency": "USD", "type": "wallet"}),
        ));
        let mut accounts = Vec::new();
        for account in &wanted {
            let made = expect(client.send("POST", "/v1/accounts", &key, None, Some(account)), 201)?;
            accounts
                .push(made["account_id"].as_str().context("the new account has no account_id")?.to_owned());
        }
        let payments: Vec<Value> = (1..=WALLETS)
            .map(|w| {
                json!({"idempotency_key": format!("first-money-{w}"), "debit_account_id": accounts[0],
                       "credit_account_id": accounts[w], "amount": "100000.00", "currency": "USD"})
            })
            .collect();
        let sent =
            client.send("POST", "/v1/payments/batch", &key, None, Some(&json!({"payments": payments})));
        let results = expect(sent, 200)?;
        let paid =
            results["results"].as_array().into_iter().flatten().filter(|one| one["status"] == 201).count();
        if paid != WALLETS {
            bail!("only {paid} of {WALLETS} wallets of {name} got their first money: {results}");
        }
        tenants.push(Tenant { name, key, accounts });
    }
    let list: Vec<Value> =
        tenants.iter().map(|t| json!({"name": t.name, "key": t.key, "accounts": t.accounts})).collect();
    std::fs::write(&file, Value::from(list).to_string()).with_context(|| file.display().to_string())?;
    Ok(tenants)
}

fn expect(reply: std::io::Result<Reply>, status: u16) -> Result<Value> {
    let reply = reply.context("the core does not answer")?;
    if reply.status != status {
        bail!("the core answered {} where {status} was expected: {}", reply.status, reply.body);
    }
    Ok(reply.body)
}

/// One sender: a payment at each of its times. A payment whose outcome is unknown is sent again under the same key
/// until it is known, as a careful client does.
fn send(port: u16, tenants: &[Tenant], seen: &Seen, stop: &AtomicBool, run: &str, sender: u64, rate: u32) {
    let mut client = Client::new(port);
    let mut random = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(sender + 1);
    let mut below = |limit: usize| -> usize {
        // xorshift64: a demonstration needs variety, not quality.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % limit as u64).unwrap_or(0)
    };
    let gap = Duration::from_secs_f64(SENDERS as f64 / f64::from(rate));
    let mut due = Instant::now() + gap.mul_f64(sender as f64 / SENDERS as f64);
    let mut number = 0u64;
    while !stop.load(Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let tenant = &tenants[below(tenants.len())];
        let (from, to) = (1 + below(WALLETS), 1 + below(WALLETS - 1));
        let to = if to >= from { to + 1 } else { to };
        number += 1;
        let key = format!("{run}-{sender}-{number}");
        let amount = format!("{}.{:02}", 1 + below(80), below(100));
        let payment = json!({
            "debit_account_id": tenant.accounts[from], "credit_account_id": tenant.accounts[to],
            "amount": amount, "currency": "USD", "description": SHOPS[below(SHOPS.len())],
        });
        while !stop.load(Relaxed) {
            let reply = client.send("POST", "/v1/payments", &tenant.key, Some(&key), Some(&payment));
            let (problem, wait) = match reply {
                Ok(reply) if reply.status == 201 || reply.status == 402 => {
                    // From the time it was due: a stall is seen by every payment that it delayed.
                    let micros = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
                    if let Ok(mut latencies) = seen.latencies.lock() {
                        latencies.push(micros);
                    }
                    if reply.status == 201 { &seen.ok } else { &seen.declined }.fetch_add(1, Relaxed);
                    break;
                }
                Ok(reply) => (format!("{} {}", reply.status, reply.body["code"]), reply.retry_after),
                Err(error) => (error.to_string(), None),
            };
            seen.failed.fetch_add(1, Relaxed);
            if let Ok(mut last) = seen.last_error.lock() {
                *last = problem;
            }
            std::thread::sleep(wait.unwrap_or(Duration::from_millis(250)).min(Duration::from_secs(2)));
        }
        due += gap;
        // After a stall, go on from now instead of sending everything that was missed at once.
        due = due.max(Instant::now() - Duration::from_millis(500));
    }
}

fn report(
    stack: &Stack,
    tenants: &[Tenant],
    seen: &Seen,
    options: &Options,
    interrupted: &AtomicBool,
) -> Result<()> {
    let begun = Instant::now();
    let end = options.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let (mut before, mut failed_before, mut lines) = (0, 0, 0u32);
    let mut last = begun;
    let port = stack.state().port("core1")?;
    while !interrupted.load(Relaxed) && end.is_none_or(|end| Instant::now() < end) {
        std::thread::sleep(Duration::from_millis(100));
        if last.elapsed() < SHOW_EVERY {
            continue;
        }
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        let total = seen.ok.load(Relaxed) + seen.declined.load(Relaxed);
        let failed = seen.failed.load(Relaxed);
        let mut latencies =
            seen.latencies.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default();
        latencies.sort_unstable();
        let at = |share: f64| -> f64 {
            let index = ((latencies.len() as f64) * share) as usize;
            latencies
                .get(index.min(latencies.len().saturating_sub(1)))
                .map_or(0.0, |us| f64::from(*us) / 1000.0)
        };
        let events = Events::read(port);
        out!(
            "{:5.0} s  {total:7} payments  {:6.0}/s  p50 {:5.1} ms  p99 {:6.1} ms  events in Kafka {}, {} on their way{}",
            begun.elapsed().as_secs_f64(),
            (total - before) as f64 / seconds,
            at(0.50),
            at(0.99),
            events.published,
            events.pending,
            if failed > failed_before {
                let what = seen.last_error.lock().map(|text| text.clone()).unwrap_or_default();
                format!("  {} retried ({what})", failed - failed_before)
            } else {
                String::new()
            },
        );
        (before, failed_before) = (total, failed);
        lines += 1;
        if lines % 5 == 1 {
            show_some(stack, tenants, port, lines as usize);
        }
    }
    let total = seen.ok.load(Relaxed) + seen.declined.load(Relaxed);
    out!(
        "\n{total} payments in {:.0} s: {} succeeded, {} declined, {} attempts retried under the same key",
        begun.elapsed().as_secs_f64(),
        seen.ok.load(Relaxed),
        seen.declined.load(Relaxed),
        seen.failed.load(Relaxed)
    );
    if total == 0 {
        bail!("no payment went through; `cargo stack logs core1` may say why")
    }
    Ok(())
}

/// The latest payments of one tenant, from the core, and how the payments lie on the shards, from the shards.
fn show_some(stack: &Stack, tenants: &[Tenant], port: u16, turn: usize) {
    let tenant = &tenants[turn % tenants.len()];
    if let Ok(reply) = Client::new(port).send("GET", "/v1/payments?limit=2", &tenant.key, None, None) {
        let list = ["payments", "data", "items"].iter().find_map(|field| reply.body[*field].as_array());
        for payment in list.into_iter().flatten() {
            let text = |field: &str| payment[field].as_str().unwrap_or("").to_owned();
            out!(
                "         {}: {:>8} {} {:<10} {} {}",
                tenant.name,
                text("amount"),
                text("currency"),
                text("status"),
                text("description"),
                text("payment_id")
            );
        }
    }
    let state = stack.state().clone();
    let mut counts = BTreeMap::new();
    for shard in 1..=state.shards {
        let Ok(port) = state.port(&state.primary_of(shard)) else { continue };
        // The planner's estimate would be stale and a full count slow: the counter of inserted rows is neither.
        let sql =
            "SELECT coalesce(sum(n_tup_ins), 0) FROM pg_stat_user_tables WHERE relname LIKE 'payments%'";
        let count = stack.psql(port, crate::postgres::DATABASE, sql).unwrap_or_else(|_| "down".into());
        counts.insert(format!("shard{shard}"), count);
    }
    let counts: Vec<String> = counts.iter().map(|(shard, count)| format!("{shard} {count}")).collect();
    out!("         payments on {}", counts.join(", "));
}

struct Events {
    published: u64,
    pending: u64,
}

impl Events {
    /// From the core's own metrics.
    fn read(port: u16) -> Events {
        let text = services::get(port, "/metrics", None).map(|(_, body)| body).unwrap_or_default();
        let sum = |name: &str| -> u64 {
            let lines = text
                .lines()
                .filter(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        Events {
            published: sum("paycore_outbox_published_total"),
            pending: sum("paycore_outbox_pending_events"),
        }
    }
}
