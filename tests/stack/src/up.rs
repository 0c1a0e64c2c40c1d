//! `stack up`, `down` and the single-server commands.

use crate::args::{Options, Profile};
use crate::build;
use crate::paths::{create_data_dir, data_dir, release};
use crate::server::{KILL_LIMIT, Kind, Stack, kind};
use crate::state::{State, lock};
use crate::status;
use crate::tools::{self, For};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set by SIGINT and SIGTERM. A second signal ends the process at once.
pub(crate) fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())?;
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(flag)
}

/// Starts everything that is not running yet. What this call started is stopped again when anything fails.
pub(crate) fn bring_up(options: &Options, quiet: bool) -> Result<Stack> {
    let builds = !options.only_infra && !options.no_build;
    // What was compiled before needs no more for a small change.
    let compiled = release("shard-proxy")?.exists() && release("payment-core")?.exists();
    let purpose = if builds && !compiled { For::Building } else { For::Servers };
    let tools = tools::ensure(purpose, options.install)?;
    if builds {
        build::binaries()?;
    }
    let dir = data_dir(options)?;
    create_data_dir(&dir)?;
    let _lock = lock(&dir)?;
    let mut state = match State::load(&dir)? {
        Some(state) => state,
        None => State::new(&dir, options.port_base)?,
    };
    let anything_runs = state.processes.values().any(|process| process.alive());
    if state.port_base != options.port_base && anything_runs {
        bail!(
            "a stack on ports from {} runs from {}: `cargo stack down` first",
            state.port_base,
            dir.display()
        );
    }
    state.port_base = options.port_base;
    state.processes.retain(|_, process| process.alive());
    if let Some(shards) = options.shards.filter(|shards| *shards != state.shards) {
        if dir.join("pg").join("shard1-primary").exists() {
            bail!("{} holds {} shards; --shards {shards} needs another --dir", dir.display(), state.shards);
        }
        state.shards = shards;
    }
    let before = state.profile;
    state.profile = options.profile.unwrap_or(before);
    state.proxies = options.proxies.unwrap_or(state.proxies).max(1);
    state.cores = options.cores.unwrap_or(state.cores).max(1);
    let surplus: Vec<String> =
        state.processes.keys().filter(|name| !state.names().contains(name)).cloned().collect();
    state.save()?;
    let stack = Stack::new(tools, state, quiet);
    stack.say(&format!("data in {}", dir.display()));
    stack.stop(&surplus)?;
    if let Err(error) = start_all(&stack, options) {
        stack.undo();
        return Err(error);
    }
    if stack.state().profile == Profile::FastUnsafe {
        stack.say("WARNING: profile fast-unsafe: fsync is off, a crash of the machine loses data");
    }
    Ok(stack)
}

fn start_all(stack: &Stack, options: &Options) -> Result<()> {
    let state = stack.state().clone();
    let ours = |name: &String| matches!(kind(name), Kind::Proxy | Kind::Core);
    let wanted: Vec<String> =
        state.names().into_iter().filter(|name| !options.only_infra || !ours(name)).collect();
    let missing: Vec<String> = wanted.iter().filter(|name| state.running(name).is_none()).cloned().collect();
    if missing.is_empty() {
        stack.say("everything runs already");
        return Ok(());
    }
    stack.check_ports(&missing)?;
    let is_missing = |name: &str| missing.iter().any(|other| other == name);
    // Everything that does not need another starts at the same time.
    std::thread::scope(|scope| {
        let mut starting = Vec::new();
        for shard in 1..=state.shards {
            starting.push((format!("shard{shard}"), scope.spawn(move || stack.start_shard(shard))));
        }
        starting.push(("oracle".to_owned(), scope.spawn(|| stack.start_oracle())));
        for name in ["redis", "kafka"].into_iter().filter(|name| is_missing(name)) {
            starting.push((name.to_owned(), scope.spawn(move || stack.start(name))));
        }
        let mut failures = Vec::new();
        for (name, thread) in starting {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("{name}: {error:#}")),
                Err(_) => failures.push(format!("{name}: the starting thread panicked")),
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
    })?;
    stack.say(&format!(
        "PostgreSQL ({} shards with a {} replica each, and the oracle), Redis and Kafka are ready",
        state.shards,
        if state.profile == Profile::Async { "asynchronous" } else { "synchronous" },
    ));
    if options.only_infra {
        return Ok(());
    }
    let (proxies, cores): (Vec<_>, Vec<_>) =
        missing.iter().filter(|name| ours(name)).partition(|n| kind(n) == Kind::Proxy);
    for name in &proxies {
        stack.start(name)?;
    }
    stack.migrate()?;
    stack.say("proxies are ready, the schema is up to date on every shard and on the oracle");
    for name in &cores {
        stack.start(name)?;
    }
    stack.say("cores are ready");
    Ok(())
}

pub(crate) fn up(options: &Options) -> Result<bool> {
    let interrupted = if options.detach { None } else { Some(interrupt_flag()?) };
    let stack = bring_up(options, false)?;
    status::summary(&stack);
    let Some(interrupted) = interrupted else { return Ok(true) };
    out!("\nCtrl-C stops everything; `cargo stack up --detach` would leave it running");
    watch(&stack, &interrupted, None)?;
    out!("stopping");
    take_down(&stack)?;
    Ok(true)
}

/// Waits until interrupted, until `limit`, or until another command stopped the stack. Says so when a server ends.
fn watch(stack: &Stack, interrupted: &AtomicBool, limit: Option<Instant>) -> Result<()> {
    let dir = stack.state().dir.clone();
    let mut dead: Vec<String> = Vec::new();
    while !interrupted.load(Ordering::Relaxed) && limit.is_none_or(|limit| Instant::now() < limit) {
        std::thread::sleep(Duration::from_millis(200));
        let Some(state) = State::load(&dir)? else { return Ok(()) };
        if state.processes.is_empty() {
            out!("the stack was stopped");
            return Ok(());
        }
        let now: Vec<String> = state
            .processes
            .iter()
            .filter(|(_, process)| !process.alive())
            .map(|(name, _)| name.clone())
            .collect();
        for name in now.iter().filter(|name| !dead.contains(name)) {
            out!("{name} ended; `cargo stack logs {name}` shows why, `cargo stack start {name}` starts it");
        }
        dead = now;
        *stack.state() = state;
    }
    Ok(())
}

/// Stops all, including what other commands started meanwhile.
pub(crate) fn take_down(stack: &Stack) -> Result<()> {
    let dir = stack.state().dir.clone();
    let _lock = lock(&dir)?;
    if let Some(state) = State::load(&dir)? {
        *stack.state() = state;
    }
    stack.stop_all()
}

pub(crate) fn down(options: &Options) -> Result<bool> {
    let dir = data_dir(options)?;
    let Some(_) = State::load(&dir)? else {
        out!("no stack in {}", dir.display());
        return Ok(true);
    };
    let stack = open(options)?;
    take_down(&stack)?;
    if options.wipe {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        out!("stopped; {} removed", dir.display());
    } else {
        out!("stopped; the data stays in {} (`cargo stack down --wipe` removes it)", dir.display());
    }
    Ok(true)
}

/// A stack that was started before.
pub(crate) fn open(options: &Options) -> Result<Stack> {
    let dir = data_dir(options)?;
    let state = State::load(&dir)?.with_context(|| {
        format!(
            "no stack in {}: `cargo stack up --detach` starts one (STACK_DIR and --dir name another place)",
            dir.display()
        )
    })?;
    Ok(Stack::new(tools::ensure(For::Servers, false)?, state, false))
}

/// Commands on single servers.
pub(crate) fn one(options: &Options, verb: &str) -> Result<bool> {
    let stack = open(options)?;
    let Some(target) = options.words.first() else {
        bail!("{verb} what? for instance shard1-primary, proxy1, kafka")
    };
    let dir = stack.state().dir.clone();
    let _lock = lock(&dir)?;
    if let Some(state) = State::load(&dir)? {
        *stack.state() = state;
    }
    if matches!(verb, "promote" | "rejoin") {
        let shard: u16 =
            target.strip_prefix("shard").unwrap_or(target).parse().ok().context("expected shardN")?;
        if !(1..=stack.state().shards).contains(&shard) {
            bail!("there is no shard {shard}");
        }
        if verb == "promote" {
            stack.promote(shard)?
        } else {
            stack.rejoin(shard)?
        }
        return Ok(true);
    }
    stack.state().port(target)?;
    if verb == "start" {
        stack.start(target)?;
        stack.say(&format!("{target} is ready"));
        return Ok(true);
    }
    let Some(process) = stack.state().running(target).cloned() else { bail!("{target} is not running") };
    match verb {
        // The whole family at once, as when a machine dies. It stays in the state as dead until it is started again.
        "kill" if options.hard => {
            process.kill_family(KILL_LIMIT).with_context(|| target.clone())?;
            process.wait_reaped(Duration::from_secs(2));
        }
        "kill" => stack.stop(std::slice::from_ref(target))?,
        "pause" => process.signal_family(Signal::SIGSTOP),
        "cont" => process.signal_family(Signal::SIGCONT),
        _ => bail!("unknown command {verb}"),
    }
    stack.say(&format!("{verb} {target} (pid {})", process.pid));
    Ok(true)
}
