//! A small, right ledger on two shards and in a mock Kafka, to be corrupted by the tests.
use anyhow::{Context, Result};
use bench::check::{self, Options, report::CheckReport};
use bench::servers::{Directory, free_ports, postgres::Postgres, program, unprivileged_command};
use bench::stack::{Shard, Stack};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::Client;
use uuid::Uuid;

const PARTITIONS: i32 = 3;

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) tenant: Uuid,
    pub(crate) account: String,
    pub(crate) sequence: i64,
    pub(crate) id: Uuid,
    pub(crate) payment: Uuid,
    pub(crate) kind: String,
    pub(crate) specversion: &'static str,
    pub(crate) partition: i32,
    pub(crate) status: String,
    pub(crate) credit: Uuid,
    pub(crate) amount: String,
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) code: Option<String>,
}

impl Event {
    /// As `core` writes it.
    fn value(&self) -> serde_json::Value {
        let mut value = serde_json::json!({
            "event_id": self.id, "payment_id": self.payment, "tenant_id": self.tenant,
            "debit_account_id": self.account, "credit_account_id": self.credit, "amount": self.amount,
            "amount_minor": self.amount_minor, "currency": self.currency, "status": self.status,
            "sequence": self.sequence, "occurred_at": "2026-01-01T00:00:00.000000Z",
        });
        if let Some(code) = &self.code {
            value["code"] = code.as_str().into();
        }
        value
    }
}

pub(crate) struct Ledger {
    pub(crate) directory: Directory,
    pub(crate) postgres: Postgres,
    pub(crate) kafka: MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
    pub(crate) events: Vec<Event>,
    pub(crate) acks: String,
    admin: Client,
    copies: u32,
}

pub(crate) struct Standby(std::process::Child);

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A copy of the ledger that a test may corrupt.
pub(crate) struct Copy {
    pub(crate) stack: Stack,
    pub(crate) shards: [Client; 2],
    pub(crate) events: Vec<Event>,
    pub(crate) acks: String,
    /// As with `--async`: the one server has no standby.
    pub(crate) asynchronous: bool,
    topic: String,
}

fn migrations() -> Result<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql/migrations");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    Ok(files)
}

impl Ledger {
    pub(crate) async fn new() -> Result<Ledger> {
        let directory = Directory::new("check")?;
        let port = free_ports(1, None)?[0];
        let postgres = Postgres::start(directory.path(), "shards", port, &[])?;
        let admin = postgres.connect("postgres").await?;
        for shard in 1..=2 {
            admin.batch_execute(&format!("CREATE DATABASE good{shard}")).await?;
            let client = postgres.connect(&format!("good{shard}")).await?;
            for file in migrations()? {
                let text = std::fs::read_to_string(&file)?;
                client.batch_execute(&text).await.with_context(|| format!("{}", file.display()))?;
            }
            client
                .batch_execute(
                    "CREATE TABLE payments_rest PARTITION OF payments DEFAULT; \
                     CREATE TABLE entries_rest PARTITION OF entries DEFAULT",
                )
                .await?;
        }
        let kafka = MockCluster::new(1)?;
        let mut ledger =
            Ledger { directory, postgres, kafka, events: Vec::new(), acks: String::new(), admin, copies: 0 };
        for shard in 1..=2 {
            ledger.fill(shard).await?;
        }
        Ok(ledger)
    }

    /// Two tenants a shard: three wallets funded from a settlement account, payments, some of them declined.
    async fn fill(&mut self, shard: usize) -> Result<()> {
        let client = self.postgres.connect(&format!("good{shard}")).await?;
        for _ in 0..2 {
            let tenant = Uuid::now_v7();
            client.execute("INSERT INTO tenants (tenant_id, name) VALUES ($1, 'T')", &[&tenant]).await?;
            let accounts: Vec<Uuid> = (0..4).map(|_| Uuid::now_v7()).collect();
            for (index, account) in accounts.iter().enumerate() {
                let (kind, limit) = if index == 0 { ("settlement", None) } else { ("wallet", Some(0i64)) };
                client
                    .execute(
                        "INSERT INTO accounts (tenant_id, account_id, account_number, currency, type, min_balance_minor) \
                         VALUES ($1, $2, $3, 'USD', $4, $5)",
                        &[&tenant, account, &format!("A{index}"), &kind, &limit],
                    )
                    .await?;
            }
            let mut moves: Vec<(usize, usize, i64)> = vec![(0, 1, 1000), (0, 2, 1000), (0, 3, 1000)];
            moves.extend((0..12).map(|n| (1 + n % 3, 1 + (n + 1) % 3, 10 + n as i64)));
            moves.push((1, 2, 1_000_000)); // insufficient funds: declined
            self.post(&client, tenant, &accounts, &moves).await?;
        }
        client.execute("UPDATE outbox SET published_at = now()", &[]).await?;
        for row in client
            .query("SELECT tenant_id, account_id, event_seq, event_id, payment_id, event_type, status, credit_account_id, amount_minor, \
                    currency, code FROM outbox ORDER BY account_id, event_seq", &[])
            .await?
        {
            let account: Uuid = row.get(1);
            self.events.push(Event {
                tenant: row.get(0),
                account: account.to_string(),
                sequence: row.get(2),
                id: row.get(3),
                payment: row.get(4),
                kind: row.get(5),
                specversion: "1.0",
                partition: i32::from(account.as_bytes()[15]) % PARTITIONS,
                status: row.get(6),
                credit: row.get(7),
                amount: format!("{}.{:02}", row.get::<_, i64>(8) / 100, row.get::<_, i64>(8) % 100),
                amount_minor: row.get(8),
                currency: row.get(9),
                code: row.get(10),
            });
        }
        Ok(())
    }

    async fn post(
        &mut self,
        client: &Client,
        tenant: Uuid,
        accounts: &[Uuid],
        moves: &[(usize, usize, i64)],
    ) -> Result<()> {
        let keys: Vec<String> = (0..moves.len()).map(|n| format!("key-{n}")).collect();
        let ids: Vec<Uuid> = moves.iter().map(|_| Uuid::now_v7()).collect();
        let debit: Vec<Uuid> = moves.iter().map(|m| accounts[m.0]).collect();
        let credit: Vec<Uuid> = moves.iter().map(|m| accounts[m.1]).collect();
        let amounts: Vec<i64> = moves.iter().map(|m| m.2).collect();
        let hashes: Vec<Vec<u8>> = moves.iter().map(|_| vec![7; 16]).collect();
        let none: Vec<Option<String>> = vec![None; moves.len()];
        let rows = client
            .query(
                "SELECT ord, status FROM post_payments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                &[
                    &vec![tenant; moves.len()],
                    &ids,
                    &keys,
                    &hashes,
                    &debit,
                    &credit,
                    &amounts,
                    &vec!["USD"; moves.len()],
                    &none,
                    &keys,
                    &none,
                    &none,
                ],
            )
            .await?;
        for row in rows {
            let index = row.get::<_, i32>(0) as usize - 1;
            let status: String = row.get(1);
            self.acks.push_str(&format!("{tenant} {} {} {status}\n", keys[index], ids[index]));
        }
        Ok(())
    }

    /// Something that receives the WAL as `replica` and syncs it at once.
    pub(crate) fn standby(&self) -> Result<Standby> {
        let directory = self.directory.path();
        let wal = directory.join("received");
        std::fs::create_dir(&wal)?;
        bench::servers::give_away(&wal)?;
        let child = unprivileged_command(&program("pg_receivewal", "postgresql-client")?, directory)?
            .args(["--synchronous", "--no-password", "-D"])
            .arg(&wal)
            .arg("-d")
            .arg(format!("{}?application_name=replica", self.postgres.url("postgres")))
            .stdin(std::process::Stdio::null())
            .spawn()?;
        Ok(Standby(child))
    }

    pub(crate) async fn copy(&mut self) -> Result<Copy> {
        self.copies += 1;
        let number = self.copies;
        let databases = [format!("copy{number}a"), format!("copy{number}b")];
        for (shard, name) in databases.iter().enumerate() {
            let sql = format!("CREATE DATABASE {name} TEMPLATE good{}", shard + 1);
            // The template is busy until the backend that filled it has ended.
            for attempt in 0.. {
                match self.admin.batch_execute(&sql).await {
                    Ok(()) => break,
                    Err(error) if attempt > 50 => return Err(error.into()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
        let shards =
            [self.postgres.connect(&databases[0]).await?, self.postgres.connect(&databases[1]).await?];
        let stack = Stack {
            shards: databases
                .iter()
                .enumerate()
                .map(|(index, name)| Shard {
                    id: index as u16 + 1,
                    primary: self.postgres.url(name),
                    replica: None,
                })
                .collect(),
            kafka: Some(self.kafka.bootstrap_servers()),
            ..Stack::default()
        };
        let topic = format!("payments.{number}");
        Ok(Copy {
            stack,
            shards,
            events: self.events.clone(),
            acks: self.acks.clone(),
            asynchronous: true,
            topic,
        })
    }

    /// Publishes the copy's events, writes its acknowledgements, and runs the check.
    pub(crate) async fn check(&self, copy: Copy, with_kafka: bool) -> Result<CheckReport> {
        if with_kafka {
            self.publish(&copy)?;
        }
        let acks = self.directory.path().join(format!("{}.acks", copy.topic));
        std::fs::write(&acks, &copy.acks)?;
        let options = Options {
            drain_timeout: Duration::from_millis(300),
            ack_directory: Some(acks),
            acks_expected: 1,
            topic: copy.topic.clone(),
            kafka: with_kafka,
            asynchronous: copy.asynchronous,
            ..Options::default()
        };
        let report = check::check(&copy.stack, &options, false).await?;
        // The copies stay until the server goes: dropping one costs a checkpoint.
        Ok(report)
    }

    fn publish(&self, copy: &Copy) -> Result<()> {
        self.kafka.create_topic(&copy.topic, PARTITIONS, 1)?;
        let producer: ThreadedProducer<DefaultProducerContext> =
            ClientConfig::new().set("bootstrap.servers", self.kafka.bootstrap_servers()).create()?;
        for event in &copy.events {
            let (id, payment, tenant) =
                (event.id.to_string(), event.payment.to_string(), event.tenant.to_string());
            let sequence = event.sequence.to_string();
            let mut headers = OwnedHeaders::new();
            for (key, value) in [
                ("ce_specversion", event.specversion),
                ("ce_id", &id),
                ("ce_type", &event.kind),
                ("ce_source", "/test"),
                ("ce_time", "2026-01-01T00:00:00Z"),
                ("ce_subject", &payment),
                ("ce_tenantid", &tenant),
                ("ce_sequence", &sequence),
            ] {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let value = event.value().to_string();
            let record = BaseRecord::to(&copy.topic)
                .key(event.account.as_bytes())
                .payload(value.as_bytes())
                .partition(event.partition)
                .headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        producer.flush(Duration::from_secs(10))?;
        Ok(())
    }
}
