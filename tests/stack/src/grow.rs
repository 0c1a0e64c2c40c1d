//! `stack add-shard`: one more shard beside those that serve, as a DBA would add it. It gets the schema, the rows that
//! every shard has, and a place in the proxies' configuration; it owns no bucket until some are moved to it.

use crate::args::Options;
use crate::postgres::DATABASE;
use crate::process::{run, wait_until};
use crate::server::Stack;
use crate::state::{State, lock};
use crate::up::open;
use anyhow::{Context, Result, bail};
use std::fs;
use std::time::Duration;

/// Tables whose rows belong to no tenant and are not the proxy's own.
const SHARED_TABLES: &str = "
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND NOT c.relispartition AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'shard_catalog')
   AND n.nspname NOT LIKE 'pg\\_%'
   AND NOT EXISTS (SELECT FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)
 ORDER BY 1";

const REPLAY_LIMIT: Duration = Duration::from_secs(60);

/// 1.25 GiB of WAL, which the next checkpoint keeps to be written over: so many files as the distance between the two.
const WAL_AHEAD: &str = "
DO $$
BEGIN
    FOR n IN 1..80 LOOP
        PERFORM pg_logical_emit_message(false, 'ahead', '');
        PERFORM pg_switch_wal();
    END LOOP;
END
$$";

pub(crate) fn add_shard(options: &Options) -> Result<bool> {
    let stack = open(options)?;
    let dir = stack.state().dir.clone();
    let _lock = lock(&dir)?;
    if let Some(state) = State::load(&dir)? {
        *stack.state() = state;
    }
    let before = stack.state().clone();
    if before.shards >= 19 {
        bail!("there are {} shards already, as many as there are ports for", before.shards);
    }
    // The highest one is not the default shard (unless it is the only one): what is there without a tenant is on all.
    let model = before.shards;
    if before.running(&before.primary_of(model)).is_none() {
        bail!("{} is not running", before.primary_of(model));
    }
    let shard = before.shards + 1;
    stack.check_ports(&[format!("shard{shard}-primary"), format!("shard{shard}-replica")])?;
    stack.change(|state| state.shards = shard)?;
    if let Err(error) = make(&stack, model, shard) {
        stack.undo();
        stack.change(|state| state.shards = model)?;
        return Err(error.context("the shard was not added"));
    }
    stack.say(&format!("shard{shard} runs and has the schema"));
    for n in 1..=before.proxies {
        let told = tell(&stack, &before, n);
        if n > 1 || told.is_ok() {
            told.with_context(|| format!("shard{shard} was added, and proxy{n} does not know it yet"))?;
            stack.say(&format!("proxy{n} knows shard{shard}"));
            continue;
        }
        // By the old file, lest a reload that is tried again adds it after all.
        stack.change(|state| state.shards = model)?;
        stack.configure_proxy(n)?;
        if may_know(&stack, &before, n, shard) {
            stack.change(|state| state.shards = shard)?;
            stack.configure_proxy(n)?;
            return told
                .with_context(|| format!("proxy{n} may know shard{shard} all the same, so it stays: see SHOW SHARDS on its console"))
                .map(|()| true);
        }
        // Nobody knows it, so it can go again.
        stack.undo();
        return told.context("the shard was not added").map(|()| true);
    }
    Ok(true)
}

/// The proxy takes its new configuration over while its clients go on. One that does not run reads it when it starts.
fn tell(stack: &Stack, before: &State, n: u16) -> Result<()> {
    let name = format!("proxy{n}");
    stack.configure_proxy(n)?;
    if before.running(&name).is_none() {
        return Ok(());
    }
    stack.psql(before.port(&name)?, "admin", "RELOAD").map(drop)
}

/// After a RELOAD that was not answered, or refused: has the proxy taken the shard up, or does it not say?
fn may_know(stack: &Stack, before: &State, n: u16, shard: u16) -> bool {
    let name = format!("proxy{n}");
    if before.running(&name).is_none() {
        return false;
    }
    let asked = before.port(&name).and_then(|port| {
        // One reload waits for the one before it, so what that does is done then. This one fails if the shard is known; what is
        // known is asked in any case.
        let _ = stack.psql(port, "admin", "RELOAD");
        stack.psql(port, "admin", "SHOW SHARDS")
    });
    let number = shard.to_string();
    match asked {
        Ok(shown) => shown.lines().any(|line| line.split('|').next() == Some(number.as_str())),
        Err(error) => {
            stack.say(&format!("{name} does not say which shards it knows: {error:#}"));
            true
        }
    }
}

fn make(stack: &Stack, model: u16, shard: u16) -> Result<()> {
    stack.start_shard(shard)?;
    let state = stack.state().clone();
    let (source, target) = (state.port(&state.primary_of(model))?, state.port(&state.primary_of(shard))?);
    let dump = state.dir.join("pg").join(format!("shard{shard}.dump"));
    let list = dump.with_extension("list");
    let copied = copy(stack, source, target, &dump, &list);
    for file in [&dump, &list] {
        if file.exists() {
            fs::remove_file(file).with_context(|| file.display().to_string())?;
        }
    }
    copied?;
    // A server that has been in service writes over WAL files of its own; a new one fills each with zeros first, while
    // commits wait for it.
    stack.psql(target, DATABASE, WAL_AHEAD)?;
    stack.psql(target, DATABASE, "CHECKPOINT")?;
    // A standby has a checkpoint of its own only when it has replayed its primary's.
    let standby = state.port(&format!("shard{shard}-replica"))?;
    let at = stack.psql(target, DATABASE, "SELECT pg_current_wal_flush_lsn()")?;
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'");
    if !wait_until(REPLAY_LIMIT, || stack.psql(standby, DATABASE, &replayed).is_ok_and(|yes| yes == "t")) {
        bail!("shard{shard}-replica has not replayed {at} after {REPLAY_LIMIT:?}");
    }
    stack.psql(standby, DATABASE, "CHECKPOINT").map(drop)
}

fn copy(
    stack: &Stack,
    source: u16,
    target: u16,
    dump: &std::path::Path,
    list: &std::path::Path,
) -> Result<()> {
    let command = |program: &str, port: u16| {
        let mut command = stack.program(program);
        command.env("PGPASSWORD", "postgres").args(["-h", "127.0.0.1", "-U", "postgres"]);
        command.args(["-p", &port.to_string(), "-d", DATABASE]);
        command
    };
    run(command("pg_dump", source).args(["-Fc", "--schema-only", "-f"]).arg(dump))?;
    // The proxy makes its event triggers itself, and others' schema changes must not fire them here.
    let contents = run(stack.program("pg_restore").arg("-l").arg(dump))?;
    let kept: Vec<&str> = contents
        .lines()
        .filter(|line| !line.contains(" EVENT TRIGGER ") && !line.contains(" SCHEMA - public "))
        .filter(|line| !line.contains(" PUBLICATION ") && !line.contains(" SUBSCRIPTION "))
        .collect();
    stack.write(list, &format!("{}\n", kept.join("\n")))?;
    run(command("pg_restore", target)
        .args(["--exit-on-error", "--single-transaction", "-L"])
        .arg(list)
        .arg(dump))?;
    let tables = stack.psql(source, DATABASE, SHARED_TABLES)?;
    if tables.is_empty() {
        return Ok(());
    }
    let mut data = command("pg_dump", source);
    data.args(["-Fc", "--data-only", "-f"]).arg(dump);
    for table in tables.lines() {
        data.arg("-t").arg(table);
    }
    run(&mut data)?;
    run(command("pg_restore", target)
        .args(["--exit-on-error", "--single-transaction", "--disable-triggers"])
        .arg(dump))?;
    Ok(())
}
