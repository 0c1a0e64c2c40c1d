//! COPY into a sharded table, and a raw connection for what no driver sends.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::proxy::{World, code, keys};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_is_dealt_out_by_key() {
    let world = World::start("multi-copy").await;
    let client = world.proxy.client().await;
    let all: Vec<i64> = (1..=4).flat_map(|shard| keys(shard, 500)).collect();

    let text: String = all.iter().map(|k| format!("{k}\t1\ta\\tb\n")).collect();
    assert_eq!(copy(&client, "COPY t FROM STDIN", &text).await.unwrap(), 2000);
    assert_eq!(world.counts().await, [500; 4]);
    let note = client.query_one("SELECT note FROM t WHERE k = $1", &[&all[0]]).await.unwrap();
    assert_eq!(note.get::<_, String>(0), "a\tb");

    let csv: String = all.iter().map(|k| format!("2,{k},\"line\none\"\n")).collect();
    let sql = "COPY t (id, k, note) FROM STDIN (FORMAT csv, HEADER)";
    assert_eq!(copy(&client, sql, &format!("id,k,note\n{csv}")).await.unwrap(), 2000);
    assert_eq!(world.counts().await, [1000; 4]);

    h20_a_bad_row_of_a_copy_leaves_no_row_and_names_the_clients_line(&world, &client, &all).await;
    copy_is_a_part_of_a_block(&world, &client, &all).await;
    reference_rows_reach_every_shard(&world, &client).await;
}

async fn copy(client: &tokio_postgres::Client, sql: &str, data: &str) -> Result<u64, tokio_postgres::Error> {
    use futures_util::SinkExt;
    let sink = client.copy_in::<_, Bytes>(sql).await?;
    let mut sink = std::pin::pin!(sink);
    for chunk in data.as_bytes().chunks(1000) {
        sink.send(Bytes::copy_from_slice(chunk)).await?;
    }
    sink.finish().await
}

async fn h20_a_bad_row_of_a_copy_leaves_no_row_and_names_the_clients_line(
    world: &World,
    client: &tokio_postgres::Client,
    all: &[i64],
) {
    let mut lines: Vec<String> = all.iter().map(|k| format!("{k}\t3\tx\n")).collect();
    lines[1234] = format!("{}\tnot a number\tx\n", all[1234]);
    let error = copy(client, "COPY t FROM STDIN", &lines.concat()).await.unwrap_err();
    let context = error.as_db_error().and_then(|e| e.where_()).unwrap_or_default().to_owned();
    assert_eq!((code(&error).as_str(), context.contains("line 1235,")), ("22P02", true), "{error:?}");
    assert_eq!(world.counts().await, [1000; 4]);

    lines[1234] = "\\N\t3\tx\n".to_owned();
    let error = copy(client, "COPY t FROM STDIN", &lines.concat()).await.unwrap_err();
    assert_eq!(code(&error), "23502");
    assert!(format!("{error:?}").contains("line 1235"), "{error:?}");
    assert_eq!(world.counts().await, [1000; 4]);
    world.settled().await;
}

async fn copy_is_a_part_of_a_block(world: &World, client: &tokio_postgres::Client, all: &[i64]) {
    let text: String = all.iter().map(|k| format!("{k}\t4\tx\n")).collect();
    client.batch_execute("BEGIN").await.unwrap();
    copy(client, "COPY t FROM STDIN", &text).await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(world.counts().await, [1000; 4]);
    client.execute("INSERT INTO t VALUES ($1, 4, 'after')", &[&all[0]]).await.unwrap();
}

async fn reference_rows_reach_every_shard(world: &World, client: &tokio_postgres::Client) {
    let rows: String = (0..3000).map(|n| format!("C{n}\t{n}\n")).collect();
    assert_eq!(copy(client, "COPY rates FROM STDIN", &rows).await.unwrap(), 3000, "counted once");
    let digest = "SELECT ('x' || substr(md5(string_agg(code || rate, ',' ORDER BY code)), 1, 15))::bit(60)::int8 FROM rates";
    let digests = world.each(digest).await;
    assert!(digests.iter().all(|one| *one == digests[0]), "{digests:?}");
    let csv = "code,rate\n\"D\n1\",1\n";
    assert_eq!(
        copy(client, "COPY rates (code, rate) FROM STDIN (FORMAT csv, HEADER)", csv).await.unwrap(),
        1
    );
    assert_eq!(world.each("SELECT count(*) FROM rates").await, [3001; 4]);

    // One shard has a row that the others do not have: none takes any.
    let third = world.cluster.primaries[2].client("postgres").await;
    third.batch_execute("INSERT INTO rates VALUES ('E2', 1)").await.unwrap();
    let error = copy(client, "COPY rates FROM STDIN", "E1\t1\nE2\t6000\nE3\t1\n").await.unwrap_err();
    assert_eq!(code(&error), "23505");
    assert!(format!("{error:?}").contains("line 2"), "{error:?}");
    third.batch_execute("DELETE FROM rates WHERE code = 'E2'").await.unwrap();
    assert_eq!(world.each("SELECT count(*) FROM rates").await, [3001; 4]);

    // Within a block it is a part of it.
    client.batch_execute("BEGIN").await.unwrap();
    copy(client, "COPY rates FROM STDIN", "F1\t1\n").await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(world.each("SELECT count(*) FROM rates").await, [3001; 4]);
    world.settled().await;
}

/// A connection that speaks the protocol by hand, logged in through tokio-postgres' own SCRAM.
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    pub async fn connect(port: u16) -> Self {
        use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
        use postgres_protocol::message::frontend;
        let mut raw = Self { stream: TcpStream::connect(("127.0.0.1", port)).await.unwrap() };
        let mut out = bytes::BytesMut::new();
        frontend::startup_message([("user", "app"), ("database", "payments")], &mut out).unwrap();
        raw.stream.write_all(&out).await.unwrap();
        raw.message().await;
        let mut scram = ScramSha256::new(b"app", ChannelBinding::unsupported());
        out.clear();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).unwrap();
        raw.stream.write_all(&out).await.unwrap();
        let server_first = raw.message().await;
        scram.update(&server_first.1[4..]).unwrap();
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).unwrap();
        raw.stream.write_all(&out).await.unwrap();
        raw.until_ready().await;
        raw
    }

    async fn message(&mut self) -> (u8, Vec<u8>) {
        let tag = self.stream.read_u8().await.unwrap();
        let length = self.stream.read_i32().await.unwrap();
        let mut body = vec![0; length as usize - 4];
        self.stream.read_exact(&mut body).await.unwrap();
        (tag, body)
    }

    /// SQLSTATE of the first error before ReadyForQuery.
    async fn until_ready(&mut self) -> Option<String> {
        let mut error = None;
        loop {
            let (tag, body) = self.message().await;
            match tag {
                b'Z' => {
                    assert_eq!(body, b"I", "outside of any transaction");
                    return error;
                }
                b'E' => {
                    let fields = String::from_utf8_lossy(&body).into_owned();
                    let code = fields.split('\0').find_map(|f| f.strip_prefix('C')).map(str::to_owned);
                    error = error.or(code);
                }
                _ => {}
            }
        }
    }

    /// Table and type OIDs of each RowDescription that answers one Query.
    pub async fn columns(&mut self, sql: &str) -> Vec<(u32, u32)> {
        let number = |fields: &[u8], at: usize| u32::from_be_bytes(fields[at..at + 4].try_into().unwrap());
        self.fields(sql).await.iter().map(|(_, fields)| (number(fields, 0), number(fields, 6))).collect()
    }

    /// The same, with all that is said of each column: its name, then table, attribute, type, length, modifier and format.
    pub async fn fields(&mut self, sql: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut out = bytes::BytesMut::new();
        postgres_protocol::message::frontend::query(sql, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        let mut columns = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            match tag {
                b'Z' => return columns,
                b'E' => panic!("{}", String::from_utf8_lossy(&body)),
                b'T' => {
                    let mut rest = &body[2..];
                    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
                        columns.push((rest[..end].to_vec(), rest[end + 1..end + 19].to_vec()));
                        rest = &rest[end + 19..];
                    }
                }
                _ => {}
            }
        }
    }

    /// One Query: its tags (`C...`) and errors (`E...`), then the status (`Z...`).
    pub async fn query(&mut self, sql: &str) -> Vec<String> {
        let mut out = bytes::BytesMut::new();
        postgres_protocol::message::frontend::query(sql, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        self.answers(1).await
    }

    /// Sends these messages and reads nothing.
    pub async fn start(&mut self, messages: &[u8]) {
        self.stream.write_all(messages).await.unwrap();
    }

    /// Sends one Query and reads nothing.
    pub async fn ask(&mut self, sql: &str) {
        let mut out = bytes::BytesMut::new();
        postgres_protocol::message::frontend::query(sql, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }

    pub async fn sync(&mut self) -> Vec<String> {
        self.stream.write_all(b"S\0\0\0\x04").await.unwrap();
        self.answers(1).await
    }

    /// Up to ReadyForQuery, or to this many CommandCompletes without one.
    pub async fn answers(&mut self, count: usize) -> Vec<String> {
        let mut answers: Vec<String> = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            let text = String::from_utf8_lossy(&body).into_owned();
            let code = || text.split('\0').find_map(|f| f.strip_prefix('C')).unwrap_or_default();
            match tag {
                b'Z' => {
                    answers.push(format!("Z{text}"));
                    return answers;
                }
                b'E' => answers.push(format!("E{}", code())),
                b'C' => {
                    answers.push(format!("C{}", text.trim_end_matches('\0')));
                    if count > 1 && answers.len() == count {
                        return answers;
                    }
                }
                _ => {}
            }
        }
    }

    /// Everything that answers one Query but reports of settings: as `exchange`, with warnings, and rows as they are.
    pub async fn said(&mut self, sql: &str) -> Vec<String> {
        self.ask(sql).await;
        let mut said = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            let text = String::from_utf8_lossy(&body).into_owned();
            let fields = || text.split('\0').filter(|f| f.starts_with(['C', 'M'])).collect::<String>();
            match tag {
                b'S' => {}
                b'E' | b'N' => said.push(format!("{}{}", char::from(tag), fields())),
                b'T' => said.push("T".to_owned()),
                _ => said.push(format!("{}{text}", char::from(tag))),
            }
            if tag == b'Z' {
                return said;
            }
        }
    }

    /// Sends these messages, of which one is a Sync: every answer's type, with the text of tags and the code of errors.
    pub async fn exchange(&mut self, messages: &[u8]) -> Vec<String> {
        self.stream.write_all(messages).await.unwrap();
        let mut answers = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            let text = String::from_utf8_lossy(&body).into_owned();
            let detail = match tag {
                b'C' | b'Z' => text.trim_end_matches('\0').to_owned(),
                b'E' => text.split('\0').find_map(|f| f.strip_prefix('C')).unwrap_or_default().to_owned(),
                _ => String::new(),
            };
            if tag != b'S' && tag != b'N' {
                answers.push(format!("{}{detail}", char::from(tag)));
            }
            if tag == b'Z' {
                return answers;
            }
        }
    }

    /// Parse, then Bind and Execute for every row, then one Sync: what pgjdbc sends for a batch.
    pub async fn batch(&mut self, sql: &str, rows: &[(i64, i32)]) -> Option<String> {
        self.send(sql, rows, true).await;
        self.until_ready().await
    }

    /// The same, with Flush in place of the Sync unless `sync`.
    pub async fn send(&mut self, sql: &str, rows: &[(i64, i32)], sync: bool) {
        use postgres_protocol::message::frontend;
        let mut out = bytes::BytesMut::new();
        frontend::parse("", sql, [20, 23], &mut out).unwrap();
        for (key, id) in rows {
            let values = [key.to_string(), id.to_string()];
            let put = |value: &String, out: &mut bytes::BytesMut| {
                out.extend_from_slice(value.as_bytes());
                Ok(postgres_protocol::IsNull::No)
            };
            assert!(frontend::bind("", "", [0, 0], values.iter(), put, [0], &mut out).is_ok());
            frontend::execute("", 0, &mut out).unwrap();
        }
        if sync {
            frontend::sync(&mut out);
        } else {
            out.extend_from_slice(b"H\0\0\0\x04");
        }
        self.stream.write_all(&out).await.unwrap();
    }
}
