//! The program itself: what it says, and the status that it ends with.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shardctl::exit;
use shardctl::mover::machine::{Phase, Wish};

use crate::bed::{BUCKETS, Bed};

pub struct Tool {
    pub directory: PathBuf,
}

/// How a command ended: its status, and all that it said.
pub struct Said {
    pub status: u8,
    pub text: String,
}

impl Said {
    #[track_caller]
    pub fn check(&self, status: u8, text: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert!(self.text.contains(text), "not \"{text}\" but: {}", self.text);
    }
}

impl Tool {
    pub fn new(bed: &Bed) -> Self {
        let directory = std::env::temp_dir().join(format!(
            "shardctl-commands-{}-{}",
            std::process::id(),
            bed.pg[0].port()
        ));
        std::fs::create_dir_all(&directory).unwrap();
        // A file has to name an application's user; nobody logs in here.
        let mut text = format!(
            "[proxy]\ndatabase = \"postgres\"\n[key]\nbuckets = {BUCKETS}\n[control]\nuser = \"postgres\"\npassword = \"x\"\n\
             [[user]]\nname = \"app\"\npassword = \"x\"\n"
        );
        for (n, one) in bed.pg.iter().enumerate() {
            text += &format!("[[shard]]\nid = {}\nprimary = \"127.0.0.1:{}\"\n", n + 1, one.port());
        }
        std::fs::write(directory.join("proxy.toml"), text).unwrap();
        Self { directory }
    }

    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardctl"));
        command.arg("--config").arg(self.directory.join("proxy.toml")).args(words.split(' '));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, words: &str) -> Said {
        ended(self.command(words).spawn().unwrap())
    }

    pub fn start(&self, words: &str) -> Child {
        self.command(words).spawn().unwrap()
    }

    /// Starts it, and ends it when it has said `wanted`; how long that took.
    pub fn until_it_says(&self, words: &str, wanted: &str) -> Duration {
        let begun = Instant::now();
        let mut child = self.start(words);
        let mut all = String::new();
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            all += &(line.unwrap() + "\n");
            if all.contains(wanted) || begun.elapsed() > Duration::from_secs(30) {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all.contains(wanted), "{words} does not say \"{wanted}\" but: {all}");
        begun.elapsed()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub fn ended(child: Child) -> Said {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    Said { status: output.status.code().unwrap().try_into().unwrap(), text: text.into_owned() }
}

async fn last_move_in(bed: &Bed, phase: Phase) -> i64 {
    bed.control
        .value("SELECT max(id) FROM shard_catalog.move WHERE phase = $1", &[&phase.name()])
        .await
        .unwrap()
}

async fn last_move(bed: &Bed, phase: Phase) -> i64 {
    let begun = Instant::now();
    loop {
        let sql = "SELECT id FROM shard_catalog.move ORDER BY id DESC LIMIT 1";
        if let Some(row) = bed.control.first(sql, &[]).await.unwrap() {
            let id = row.get(0);
            if bed.load(id).await.phase == phase {
                return id;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no move came to {phase:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_usage_and_refusals_have_a_status_of_their_own() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    for (words, text) in [
        ("plan move --buckets abc --to 3", "write FROM-TO"),
        ("plan move --buckets 4096 --to 3", "buckets 4096 to 4096 are not a range"),
        ("plan move --buckets 20-10 --to 3", "buckets 20 to 10 are not a range"),
        ("plan move --buckets 1-2 --to 77", "there is no shard 77 in the configuration"),
        ("plan drain 77", "there is no shard 77 in the configuration"),
        ("plan isolate nonsense --to 3", "\"nonsense\" is not a uuid"),
        ("plan rebalance --weight foo", "write SHARD=WEIGHT"),
        ("throttle 1 --parallel 0", "a number from 1 on"),
    ] {
        tool.run(words).check(exit::USAGE, text);
    }
    let plan = tool.file("one.json");
    tool.run(&format!("plan move --buckets 0-7 --to 3 --save {plan}"))
        .check(0, &format!("then shardctl apply {plan}\n"));

    // A copy whose shardctl is killed.
    let mut child = tool.start(&format!("apply {plan} --auto --bytes-per-second 10"));
    let id = last_move(&bed, Phase::Copying).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    let alone = format!("no shardctl runs it: shardctl resume {id}");
    while !tool.run("moves").text.contains(&alone) {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody says that the move is alone");
    }
    assert!(tool.run("moves --json").text.contains(&alone));
    tool.until_it_says(&format!("watch {id}"), &alone);

    // Limits that are not named stay.
    let throttle = format!("throttle {id}");
    tool.run(&throttle).check(0, "bytes_per_second 10\n");
    tool.run(&format!("{throttle} --parallel 3")).check(0, "bytes_per_second 10, parallel 3\n");
    tool.run(&format!("{throttle} --bytes-per-second none --latency-ms 900"))
        .check(0, ": latency_ms 900, parallel 3\n");
    let sql = async |text: &str| {
        let text = text.replace("ID", &id.to_string());
        bed.control.value::<String>(&format!("SELECT shard_catalog.{text}"), &[]).await
    };
    for (text, wanted) in [
        ("throttle(ID, bytes_per_second => 10)", "throttle: {\"bytes_per_second\": 10}"),
        ("throttle(ID)", "throttle: {\"parallel\": 3, \"latency_ms\": 900, \"bytes_per_second\": 10}"),
        ("unthrottle(ID, 'parallel', 'latency_ms')", "no limit any more: parallel, latency_ms"),
        ("throttle(ID)", "throttle: {\"bytes_per_second\": 10}"),
    ] {
        let said = sql(text).await.unwrap();
        assert!(said.ends_with(wanted), "{text}: {said}");
    }
    for text in ["throttle(ID, latency_ms => 0)", "unthrottle(ID, 'paralel')"] {
        let error = format!("{:#}", sql(text).await.unwrap_err());
        assert!(error.contains("22023"), "{text}: {error}");
    }

    tool.run(&format!("rollback {id}")).check(exit::REFUSED, "nothing has flipped yet: use abort");
    // It goes on as it was told to, by --auto.
    sql("unthrottle(ID)").await.unwrap();
    tool.run(&format!("resume {id}")).check(0, "shard 3 owns buckets 0-7");
    tool.run(&format!("abort {id}")).check(exit::REFUSED, "use rollback");
    tool.run(&format!("cutover {id}")).check(exit::REFUSED, "has flipped already");
    tool.run(&format!("pause {id}")).check(0, "begins nothing new");
    tool.run(&format!("finish {id}")).check(0, "the pause ends with it");
    tool.run(&format!("finish {id}")).check(0, "is over: done");
    for verb in ["abort", "rollback", "cutover", "pause", "resume"] {
        tool.run(&format!("{verb} {id}")).check(exit::REFUSED, "is over: done: shard 3 owns buckets 0-7");
    }
    tool.run(&format!("{throttle} --parallel 3")).check(exit::REFUSED, "is over");

    // Of two who begin the same, one makes it, and the other one hears that it has not.
    tool.run(&format!("plan move --buckets 8-15 --to 3 --save {plan}")).check(0, "Next");
    let both = [(); 2].map(|()| tool.start(&format!("apply {plan}"))).map(ended);
    assert_eq!(both.iter().filter(|said| said.status == 0).count(), 1, "{} {}", both[0].text, both[1].text);
    let loser = both.iter().find(|said| said.status != 0).unwrap();
    assert!(
        loser.text.contains("has buckets 8-15 under way") || loser.text.contains("not what was asked for"),
        "{}",
        loser.text
    );
    tool.run(&format!("abort {}", last_move_in(&bed, Phase::Ready).await)).check(0, "aborted");
    bed.check_rows(0).await;
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_does_not_come_about_ends_the_plan() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let plan = tool.file("two.json");
    let next = format!("then shardctl apply {plan} --auto");
    tool.run(&format!("plan drain 1 --max-buckets 16 --save {plan}")).check(0, &next);
    tool.run(&format!("apply {plan}")).check(exit::USAGE, "the plan has 2 steps: add --auto");

    let child = tool.start(&format!("apply {plan} --auto --bytes-per-second 10"));
    let id = last_move(&bed, Phase::Copying).await;
    bed.ask(id, Wish::Abort).await;
    let said = ended(child);
    said.check(exit::FAILED, "not what was asked for: abort was asked for");
    said.check(
        exit::FAILED,
        &format!("steps not begun: 1\ngo on: the map is as it was: shardctl apply {plan} --auto\n"),
    );
    assert_eq!(last_move(&bed, Phase::Aborted).await, id, "another move was begun");

    // Ctrl-C says how to go on; whoever looks on hears that another operator wanted something else.
    let child = tool.start(&format!("apply {plan} --auto --bytes-per-second 10"));
    let id = last_move(&bed, Phase::Copying).await;
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let said = ended(child);
    said.check(exit::DETACHED, &format!("go on: shardctl resume {id} --auto"));
    said.check(exit::DETACHED, &format!("go on: when move {id} is over: plan again"));
    let both = [(); 2].map(|()| tool.start(&format!("resume {id}")));
    tokio::time::sleep(Duration::from_millis(500)).await;
    tool.run(&format!("abort {id}")).check(0, "aborted: everything is as before");
    for child in both {
        ended(child).check(exit::FAILED, "not what was asked for: abort was asked for");
    }
    bed.check_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_is_named_with_the_way_out() {
    let bed = Bed::start(3).await;
    let tool = Tool::new(&bed);
    let plan = tool.file("one.json");
    for (buckets, id) in [("32-39", 1), ("0-7", 2)] {
        tool.run(&format!("plan move --buckets {buckets} --to 3 --save {plan}")).check(0, "Next");
        let auto = if id == 1 { " --auto" } else { "" };
        tool.run(&format!("apply {plan}{auto}")).check(0, &format!("move {id} "));
    }
    bed.pg[2].crash();
    let took = tool.until_it_says("abort 2", "or for long: shardctl abort 2 --target-lost");
    assert!(took < Duration::from_secs(10), "{took:?}");
    tool.run("abort 2 --target-lost").check(0, "keeps nothing on the other shard");
    bed.pg[2].resume();
    tool.run("resume 2").check(0, "aborted: everything is as before");
    bed.pg[1].crash();
    let said = tool.run("finish 1");
    said.check(exit::FAILED, "shard 2 does not answer");
    said.check(exit::FAILED, "or for long: shardctl finish 1 --source-lost");
    bed.pg[1].resume();
    tool.run("finish 1").check(0, "done: shard 3 owns buckets 32-39");
    bed.check_rows(0).await;
    bed.check_clean().await;
}
