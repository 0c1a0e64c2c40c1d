//! What the tests stand on: one PostgreSQL for all of them, an instance of the core for each, and a wire between the two
//! that can be cut.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use clap::Parser;
use payment_core::app::App;
use payment_core::config::Config;
use serde_json::{Value, json};
use sql_assets::{Options, apply};
use testpg::TempPostgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

pub const ADMIN: &str = "admin-token-of-the-tests";

/// The tests that run at one time share a server; the last one stops it.
pub async fn postgres() -> Arc<TempPostgres> {
    static SHARED: tokio::sync::Mutex<Weak<TempPostgres>> = tokio::sync::Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(running) = shared.upgrade() {
        return running;
    }
    let server = Arc::new(new_postgres("off").await);
    *shared = Arc::downgrade(&server);
    server
}

/// A server of one's own, with the schema.
pub async fn new_postgres(synchronous_commit: &str) -> TempPostgres {
    let commit = format!("synchronous_commit = {synchronous_commit}");
    let server = TempPostgres::start(&["max_connections = 400", &commit]);
    let options = Options { months_ahead: 1, retain_months: None };
    apply(&server.url("postgres"), &options).await.expect("the migrations apply");
    // Values that only a trigger refuses, as poison for batches (H38), and postings that behave as behind a proxy: those
    // of tenants on several shards are refused, and those of a shard that is gone.
    connect(&server.url("postgres"))
        .await
        .batch_execute(
            "CREATE TABLE placed (tenant_id uuid PRIMARY KEY, shard int NOT NULL); \
             CREATE TABLE gone (tenant_id uuid PRIMARY KEY, sqlstate text NOT NULL); \
             ALTER FUNCTION post_payments RENAME TO post_payments_locally; \
             CREATE FUNCTION post_payments(uuid[], uuid[], text[], bytea[], uuid[], uuid[], bigint[], text[], text[], \
                 text[], text[], text[]) \
             RETURNS TABLE (ord int, outcome text, payment_id uuid, created_at timestamptz, status text, code text, \
                 debit_posted bigint, debit_version bigint, credit_posted bigint, credit_version bigint) \
             LANGUAGE plpgsql AS $$ DECLARE s text; BEGIN \
               IF (SELECT count(DISTINCT p.shard) FROM placed p WHERE p.tenant_id = ANY ($1)) > 1 THEN \
                 RAISE EXCEPTION 'several shards' USING ERRCODE = 'SP001', DETAIL = 'epoch=2'; END IF; \
               SELECT g.sqlstate INTO s FROM gone g WHERE g.tenant_id = ANY ($1) LIMIT 1; \
               IF s IS NOT NULL THEN RAISE EXCEPTION 'gone' USING ERRCODE = s; END IF; \
               RETURN QUERY SELECT * FROM post_payments_locally($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12); \
             END $$; \
             CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.reference = 'poison' THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER refuse_poison BEFORE INSERT ON payments FOR EACH ROW EXECUTE FUNCTION refuse_poison()",
        )
        .await
        .expect("the trigger is made");
    server
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}

/// A running instance with a tenant of its own.
pub struct Bed {
    pub postgres: Arc<TempPostgres>,
    pub app: Arc<App>,
    pub address: SocketAddr,
    pub key: String,
    pub tenant: String,
    pub wire: Wire,
    stop: watch::Sender<bool>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl Bed {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With further command-line settings.
    pub async fn with(settings: &[&str]) -> Self {
        Self::with_map(settings, &[]).await
    }

    /// Behind a proxy, as far as the core can see: the map is made up by the wire.
    pub async fn with_map(settings: &[&str], ranges: &[(u16, u16, u16)]) -> Self {
        Self::on(postgres().await, settings, ranges).await
    }

    /// On a given server.
    pub async fn on(postgres: Arc<TempPostgres>, settings: &[&str], ranges: &[(u16, u16, u16)]) -> Self {
        let wire = Wire::to(postgres.port()).await;
        wire.set_map(1, ranges);
        let url = format!("postgresql://postgres@127.0.0.1:{}/postgres", wire.port);
        let mut arguments = vec!["payment-core", "--listen", "127.0.0.1:0", "--database-url", &url];
        arguments.extend(["--admin-token", ADMIN, "--database-pool-size", "8", "--lanes-without-map", "1"]);
        arguments.extend(settings);
        let config = Config::parse_from(arguments);
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = App::start(config).await.expect("the core starts");
        let (stop, stopped) = watch::channel(false);
        let serving = Mutex::new(Some(tokio::spawn(app.clone().serve(listener, stopped))));
        let mut bed =
            Self { postgres, app, address, key: String::new(), tenant: String::new(), wire, stop, serving };
        (bed.tenant, bed.key) = bed.new_tenant("Bed").await;
        bed
    }

    /// (tenant id, API key)
    pub async fn new_tenant(&self, name: &str) -> (String, String) {
        let body = json!({ "name": name, "currency": "USD" });
        let reply = self.as_key(ADMIN, "POST", "/v1/tenants", &[], &body.to_string()).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        (reply.text("tenant_id"), reply.text("api_key"))
    }

    /// With the bed's own key.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        self.as_key(&self.key, method, path, headers, body).await
    }

    pub async fn as_key(
        &self,
        key: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        call(self.address, key, method, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], "").await
    }

    pub async fn account(&self, key: &str, number: &str, kind: &str) -> String {
        let body = json!({ "account_number": number, "currency": "USD", "type": kind });
        let reply = self.as_key(key, "POST", "/v1/accounts", &[], &body.to_string()).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.text("account_id")
    }

    /// A settlement account and an empty wallet.
    pub async fn accounts(&self) -> (String, String) {
        let suffix = unique();
        let key = &self.key;
        (
            self.account(key, &format!("S{suffix}"), "settlement").await,
            self.account(key, &format!("W{suffix}"), "wallet").await,
        )
    }

    pub async fn pay(&self, key: &str, body: &Value) -> Reply {
        self.call("POST", "/v1/payments", &[("idempotency-key", key)], &body.to_string()).await
    }

    /// The account's row, locked until the guard goes: a payment of it is in flight until then.
    pub async fn lock(&self, account: &str) -> Client {
        let client = self.sql().await;
        client
            .batch_execute(&format!("BEGIN; SELECT FROM accounts WHERE account_id = '{account}' FOR UPDATE"))
            .await
            .unwrap();
        client
    }

    /// A connection of the test's own, not over the wire.
    pub async fn sql(&self) -> Client {
        connect(&self.postgres.url("postgres")).await
    }

    /// Number of rows of this bed's tenant.
    pub async fn count(&self, table: &str, condition: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table} WHERE tenant_id = '{}' AND {condition}", self.tenant);
        self.sql().await.query_one(&sql, &[]).await.unwrap().get(0)
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.as_key("", "GET", "/metrics", &[], "").await.body;
        let line = text.lines().find(|l| l.split([' ', '{']).next() == Some(name));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// Until a statement of the core waits for a row lock.
    pub async fn until_blocked(&self, sessions: i64) {
        let sql = self.sql().await;
        for _ in 0..500 {
            let waiting: i64 = sql
                .query_one(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = $1",
                    &[&format!("{}/lane", self.app.config.instance)],
                )
                .await
                .unwrap()
                .get(0);
            if waiting >= sessions {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no payment became blocked");
    }

    pub fn stop(&self) -> JoinHandle<()> {
        self.stop.send_replace(true);
        self.serving.lock().unwrap().take().expect("stopped once")
    }
}

pub fn unique() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub fn payment(debit: &str, credit: &str, amount: &str) -> Value {
    json!({ "debit_account_id": debit, "credit_account_id": credit, "amount": amount, "currency": "USD" })
}

/// One answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn text(&self, member: &str) -> String {
        self.json()[member].as_str().unwrap_or_else(|| panic!("{member}: {self:?}")).to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Status and code of a problem, whose form is checked.
    pub fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert!(self.header("x-request-id").is_some());
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "{member}: {self:?}");
        }
        assert!(problem["retryable"].is_boolean());
        (self.status, self.text("code"))
    }
}

/// One request on a connection of its own.
pub async fn call(
    address: SocketAddr,
    key: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: core\r\nconnection: close\r\n");
    if !key.is_empty() {
        head.push_str(&format!("authorization: Bearer {key}\r\n"));
    }
    if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
        head.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    raw(address, format!("{head}{body}").as_bytes()).await
}

/// Bytes in, one answer out.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).await.expect("the core accepts");
    // The core may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer))
        .await
        .expect("an answer");
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Reply { status, headers, body: body.to_owned() }
}

/// A TCP relay to PostgreSQL that can lose answers and refuse connections.
pub struct Wire {
    pub port: u16,
    state: Arc<WireState>,
}

#[derive(Default)]
struct WireState {
    /// How many answers to postings are to be lost, each with its connection.
    lose_answers: AtomicU32,
    /// Lose the connection as soon as a posting was sent.
    lose_requests: AtomicU32,
    down: AtomicBool,
    /// What SHOW shard.map answers: (from, to, shard, epoch). Empty: whatever PostgreSQL says.
    map: Mutex<Vec<(u16, u16, u16, u64)>>,
}

impl Wire {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(WireState::default());
        let wire = Self { port: listener.local_addr().unwrap().port(), state: state.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if state.down.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                    tokio::spawn(relay(client, server, state.clone()));
                }
            }
        });
        wire
    }

    /// The next `n` postings reach the server, and their answers are lost.
    pub fn lose_answers(&self, n: u32) {
        self.state.lose_answers.store(n, Ordering::SeqCst);
    }

    /// The next `n` postings reach the server, and the connection is cut before it answers.
    pub fn cut_after_sending(&self, n: u32) {
        self.state.lose_requests.store(n, Ordering::SeqCst);
    }

    /// From now on the database seems to have this map: inclusive bucket ranges with their shards.
    pub fn set_map(&self, epoch: u64, ranges: &[(u16, u16, u16)]) {
        *self.state.map.lock().unwrap() =
            ranges.iter().map(|(from, to, shard)| (*from, *to, *shard, epoch)).collect();
    }

    pub fn lost_all(&self) -> bool {
        self.state.lose_answers.load(Ordering::SeqCst) == 0
            && self.state.lose_requests.load(Ordering::SeqCst) == 0
    }

    /// Every connection ends and none begins, or they do again.
    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
    }
}

fn use_one(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

/// Moves bytes both ways. A connection that prepared the posting statement is a lane's; what it sends after that is a
/// posting.
async fn relay(mut client: TcpStream, mut server: TcpStream, state: Arc<WireState>) {
    let (mut from_client, mut from_server) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let (mut lane, mut posting) = (false, false);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let n = read.unwrap_or(0);
                if from_client[..n].windows(14).any(|w| w == b"SHOW shard.map") {
                    let answer = shard_map(&state.map.lock().unwrap());
                    if !answer.is_empty() {
                        if client.write_all(&answer).await.is_err() {
                            return;
                        }
                        continue;
                    }
                }
                if n == 0 || server.write_all(&from_client[..n]).await.is_err() {
                    return;
                }
                let prepares = from_client[..n].windows(13).any(|w| w == b"post_payments");
                // Bind begins with 'B'; the statement was prepared by an earlier message.
                posting = lane && !prepares && from_client[0] == b'B';
                lane |= prepares;
                if posting && use_one(&state.lose_requests) {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let n = read.unwrap_or(0);
                if n == 0 || (posting && use_one(&state.lose_answers)) {
                    return;
                }
                posting = false;
                if client.write_all(&from_server[..n]).await.is_err() {
                    return;
                }
            }
            _ = tick.tick() => {
                if state.down.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    }
}

/// The answer of a proxy to SHOW shard.map, in protocol messages.
fn shard_map(map: &[(u16, u16, u16, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    if map.is_empty() {
        return out;
    }
    let mut message = |kind: u8, body: &[u8]| {
        out.push(kind);
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend(body);
    };
    let mut description = 4u16.to_be_bytes().to_vec();
    for name in ["bucket_from", "bucket_to", "shard", "epoch"] {
        description.extend(name.as_bytes());
        // Terminator, table, column, type text, its length -1, no modifier, text format.
        description.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]);
    }
    message(b'T', &description);
    for (from, to, shard, epoch) in map {
        let mut row = 4u16.to_be_bytes().to_vec();
        for value in [u64::from(*from), u64::from(*to), u64::from(*shard), *epoch] {
            let text = value.to_string();
            row.extend((text.len() as u32).to_be_bytes());
            row.extend(text.as_bytes());
        }
        message(b'D', &row);
    }
    message(b'C', b"SHOW\0");
    message(b'Z', b"I");
    out
}
