//! The doors of the running system, from outside: psql through the proxy, and HTTP requests that nobody should send.
//! They need the stack: `cargo verify` runs them (`cargo test -p e2e-tests -- --ignored` with `cargo stack env` set).

use e2e_tests::http::{Connection, Reply, Request};
use e2e_tests::load::{Seed, seed};
use e2e_tests::stack::{Stack, connect};
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NEEDS: &str = "the stack must run, and its environment be set";

fn stack() -> Stack {
    Stack::from_env().expect(NEEDS)
}

/// Output and errors of psql through the first proxy.
fn psql(arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let stack = stack();
    let mut child = Command::new("psql")
        .arg(stack.var("PROXY_URL").unwrap())
        .args(["-X", "-A"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "needs the stack: cargo verify"]
fn psql_describes_tables() {
    let tables = psql(&["-c", "\\dt"], "");
    assert!(tables.contains("accounts") && tables.contains("payments"), "{tables}");
    let accounts = psql(&["-c", "\\d accounts"], "");
    assert!(accounts.contains("posted_minor|bigint") && accounts.contains("accounts_pkey"), "{accounts}");
    let all = psql(&["-c", "\\d"], "");
    assert!(all.contains("outbox"), "{all}");
}

#[test]
#[ignore = "needs the stack: cargo verify"]
fn an_error_keeps_the_servers_own_fields() {
    let told = psql(
        &[
            "-v",
            "VERBOSITY=verbose",
            "-c",
            "SELECT nothing_here FROM accounts WHERE tenant_id = '00000000-0000-0000-0000-000000000000'",
        ],
        "",
    );
    assert!(told.contains("42703") && told.contains("LINE 1:") && told.contains("LOCATION:"), "{told}");
    let told = psql(
        &["-v", "VERBOSITY=verbose", "-c", "INSERT INTO currencies (code, exponent) VALUES ('USD', 2)"],
        "",
    );
    assert!(
        told.contains("23505") && told.contains("CONSTRAINT NAME:") && told.contains("DETAIL:"),
        "{told}"
    );
}

#[tokio::test]
#[ignore = "needs the stack: cargo verify"]
async fn a_copy_is_split_by_tenant() {
    let stack = stack();
    let made = psql(
        &[
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            "DROP TABLE IF EXISTS e2e_copy",
            "-c",
            "CREATE TABLE e2e_copy (tenant_id uuid, n int)",
        ],
        "",
    );
    assert!(made.contains("CREATE TABLE"), "{made}");
    let mut rows = String::new();
    for n in 0..500 {
        writeln!(
            rows,
            "{}\t{n}",
            uuid::Uuid::from_u128(0x9e37_79b9_7f4a_7c15_u128.wrapping_mul(n + 1) << 17)
        )
        .unwrap();
    }
    let copied = psql(&["-c", "\\copy e2e_copy from stdin"], &rows);
    assert!(copied.contains("COPY 500"), "{copied}");
    let mut counts = Vec::new();
    for shard in 1..=stack.shards() {
        // Postgres's own hash says which quarter of the buckets a row is in.
        let sql = "SELECT count(*), count(*) FILTER (WHERE ((uuid_hash_extended(tenant_id, 8816678312871386365) & 4095) * $1 / 4096)::int = $2) FROM e2e_copy";
        let row = stack
            .shard(shard)
            .await
            .unwrap()
            .query_one(sql, &[&i64::from(stack.shards()), &(i32::from(shard) - 1)])
            .await
            .unwrap();
        let (all, at_home): (i64, i64) = (row.get(0), row.get(1));
        assert_eq!(all, at_home, "shard {shard} holds rows of other shards");
        counts.push(all);
    }
    assert_eq!(counts.iter().sum::<i64>(), 500, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    psql(&["-c", "DROP TABLE e2e_copy"], "");
}

async fn ask(stack: &Stack, token: &str, key: Option<&str>, body: &str) -> Reply {
    let mut core = Connection::new(&stack.cores().unwrap()[0]);
    let request = Request { method: "POST", path: "/v1/payments", token, key, body };
    core.send(&request)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", body.chars().take(200).collect::<String>()))
}

fn payment(from: &str, to: &str, amount: &str, currency: &str) -> String {
    serde_json::json!({"debit_account_id": from, "credit_account_id": to, "amount": amount, "currency": currency})
        .to_string()
}

#[tokio::test]
#[ignore = "needs the stack: cargo verify"]
async fn requests_that_nobody_should_send_get_their_answer() {
    let stack = stack();
    let Seed { tenants } = seed(&stack).await.unwrap();
    let (mine, other) = (&tenants[0][0], &tenants[1][0]);
    let (a, b) = (&mine.accounts[1], &mine.accounts[2]);
    let large = payment(a, b, &"9".repeat(4 << 20), "USD");
    let cases: Vec<(&str, &str, &str, String)> = vec![
        ("malformed body", &mine.token, "k1", "{\"debit_account_id\": ".into()),
        ("not an object", &mine.token, "k2", "[1, 2]".into()),
        ("unknown currency", &mine.token, "k3", payment(a, b, "1.00", "XQZ")),
        ("other currency than the accounts'", &mine.token, "k4", payment(a, b, "1.00", "EUR")),
        ("negative amount", &mine.token, "k5", payment(a, b, "-1.00", "USD")),
        ("zero", &mine.token, "k6", payment(a, b, "0.00", "USD")),
        ("over-precise amount", &mine.token, "k7", payment(a, b, "1.001", "USD")),
        ("no number", &mine.token, "k8", payment(a, b, "1e2", "USD")),
        ("beyond every account", &mine.token, "k9", payment(a, b, "99999999999999999999999.00", "USD")),
        ("another tenant's account", &mine.token, "k10", payment(a, &other.accounts[1], "1.00", "USD")),
        (
            "another tenant's accounts",
            &mine.token,
            "k11",
            payment(&other.accounts[1], &other.accounts[2], "1.00", "USD"),
        ),
        ("to itself", &mine.token, "k12", payment(a, a, "1.00", "USD")),
        ("no such account", &mine.token, "k13", payment(a, &uuid::Uuid::nil().to_string(), "1.00", "USD")),
        ("no uuid", &mine.token, "k14", payment(a, "x", "1.00", "USD")),
        ("nobody's token", "pk_00000000000000000000000000000000_x", "k15", payment(a, b, "1.00", "USD")),
        ("no token", "", "k16", payment(a, b, "1.00", "USD")),
        ("4 MB of digits", &mine.token, "k17", large),
    ];
    for (what, token, key, body) in &cases {
        let key = format!("{key}-{}", uuid::Uuid::new_v4());
        let reply = ask(&stack, token, Some(&key), body).await;
        assert!((400..500).contains(&reply.status), "{what}: {} {}", reply.status, reply.body);
        assert!(reply.content_type.starts_with("application/problem+json"), "{what}: {}", reply.content_type);
        assert!(reply.body["code"].is_string(), "{what}: {}", reply.body);
    }
    let without_key = ask(&stack, &mine.token, None, &payment(a, b, "1.00", "USD")).await;
    assert!((400..500).contains(&without_key.status), "no Idempotency-Key: {}", without_key.status);
    let good =
        ask(&stack, &mine.token, Some(&uuid::Uuid::new_v4().to_string()), &payment(a, b, "1.00", "USD"))
            .await;
    assert_eq!(good.status, 201, "{}", good.body);
}

#[tokio::test]
#[ignore = "needs the stack: cargo verify"]
async fn the_same_key_is_the_same_payment_and_another_body_is_refused() {
    let stack = stack();
    let Seed { tenants } = seed(&stack).await.unwrap();
    let tenant = &tenants[0][0];
    let (a, b) = (&tenant.accounts[1], &tenant.accounts[2]);
    let key = uuid::Uuid::new_v4().to_string();
    let body = payment(a, b, "2.00", "USD");
    let first = ask(&stack, &tenant.token, Some(&key), &body).await;
    let again = ask(&stack, &tenant.token, Some(&key), &body).await;
    assert_eq!((first.status, again.status, first.replayed, again.replayed), (201, 201, false, true));
    assert_eq!(first.body["payment_id"], again.body["payment_id"]);
    let other = ask(&stack, &tenant.token, Some(&key), &payment(a, b, "3.00", "USD")).await;
    assert_eq!((other.status, other.body["code"].as_str()), (422, Some("idempotency_key_reused")));
}

/// Clients that connect and do nothing, and one that asks for much and never reads, cost nobody else anything.
#[tokio::test]
#[ignore = "needs the stack: cargo verify"]
async fn idle_and_unreading_clients_disturb_nobody() {
    let stack = stack();
    let url = stack.var("PROXY_URL").unwrap().to_owned();
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(connect(&url).await.unwrap());
    }
    let core = stack.cores().unwrap()[0].clone();
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(&core).await.unwrap());
    }
    // Half a request, and answers that pile up unread.
    let mut greedy = TcpStream::connect(&core).await.unwrap();
    for _ in 0..2000 {
        let asked = tokio::time::timeout(
            std::time::Duration::from_millis(200),
            greedy.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"),
        );
        if !matches!(asked.await, Ok(Ok(()))) {
            break;
        }
    }
    let Seed { tenants } = seed(&stack).await.unwrap();
    let tenant = &tenants[0][0];
    let body = payment(&tenant.accounts[1], &tenant.accounts[2], "1.00", "USD");
    let reply = ask(&stack, &tenant.token, Some(&uuid::Uuid::new_v4().to_string()), &body).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    for client in &idle {
        assert!(!client.is_closed());
    }
    let one = idle[0].query_one("SELECT 1", &[]).await.unwrap();
    assert_eq!(one.get::<_, i32>(0), 1);
    drop(silent);
}

/// Garbage at the proxy's door ends that connection and nothing else.
#[tokio::test]
#[ignore = "needs the stack: cargo verify"]
async fn garbage_at_the_proxys_door_ends_one_connection() {
    let stack = stack();
    let url = stack.var("PROXY_URL").unwrap().to_owned();
    let address = url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let bystander = connect(&url).await.unwrap();
    let greetings: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[0xff; 64],
        &[0, 0, 0, 8, 0, 9, 0, 0],
        &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0, b'u'],
    ];
    for greeting in greetings {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(greeting).await.unwrap();
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(std::time::Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{greeting:?}: the connection stays open");
    }
    assert_eq!(bystander.query_one("SELECT 2", &[]).await.unwrap().get::<_, i32>(0), 2);
}
