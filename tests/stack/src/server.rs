//! What every server has in common: it is started under a name, remembered, stopped, signalled.

use crate::process::{self, Process, log_tail};
use crate::state::State;
use crate::tools::Tools;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A stopping server is asked politely for this long, then told (SIGQUIT for PostgreSQL), then killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// As long as one that is inside an fsync() may take.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Stack {
    pub tools: Tools,
    state: Mutex<State>,
    /// Names started by this run: what a failed start takes down again.
    fresh: Mutex<Vec<String>>,
    quiet: bool,
    begun: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Postgres,
    Redis,
    Kafka,
    Proxy,
    Core,
}

pub(crate) fn kind(name: &str) -> Kind {
    match name {
        "redis" => Kind::Redis,
        "kafka" => Kind::Kafka,
        _ if name.starts_with("proxy") => Kind::Proxy,
        _ if name.starts_with("core") => Kind::Core,
        _ => Kind::Postgres,
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in one starting thread must not stop the others from being cleaned up.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Stack {
    pub(crate) fn new(tools: Tools, state: State, quiet: bool) -> Stack {
        Stack { tools, state: Mutex::new(state), fresh: Mutex::default(), quiet, begun: Instant::now() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        held(&self.state)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.state();
        change(&mut state);
        state.save()
    }

    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            out!("[{:5.1} s] {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    /// Starts a process under a name and writes it down at once, so that it can be found whatever happens next.
    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        let log = self.state().log(name);
        let (process, mut child) = process::spawn(command, &log)?;
        // Whoever outlives its child must take its exit status: PostgreSQL does not start again beside a zombie.
        std::thread::spawn(move || child.wait());
        held(&self.fresh).push(name.to_owned());
        self.change(|state| {
            state.processes.insert(name.to_owned(), process.clone());
        })?;
        Ok(process)
    }

    /// Waits until `ready` holds; a server that ends or takes too long is an error with the end of its log.
    pub(crate) fn wait_ready(
        &self,
        name: &str,
        from: u64,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let process = self.state().processes.get(name).cloned().context("not started")?;
        let log = self.state().log(name);
        let mut is_ready = false;
        process::wait_until(limit, || {
            is_ready = process.alive() && ready();
            is_ready || !process.alive()
        });
        if is_ready {
            return Ok(());
        }
        let what = if process.alive() {
            format!("was not ready after {} s", limit.as_secs())
        } else {
            "ended".into()
        };
        bail!("{name} {what}; the end of {}:\n{}", log.display(), log_tail(&log, from, 20));
    }

    /// Stops servers and forgets them, those given together at the same time.
    pub(crate) fn stop(&self, names: &[String]) -> Result<()> {
        let processes: Vec<(String, Process)> = names
            .iter()
            .filter_map(|name| Some((name.clone(), self.state().processes.get(name)?.clone())))
            .collect();
        for (name, process) in &processes {
            // Stopped processes (`stack pause`) do not hear anything else.
            process.signal_family(Signal::SIGCONT);
            process.signal(match kind(name) {
                // Fast shutdown: open transactions are rolled back, all WAL is sent to the standby.
                Kind::Postgres => Signal::SIGINT,
                _ => Signal::SIGTERM,
            });
        }
        for (name, process) in &processes {
            if !process.wait_dead(STOP_LIMIT) {
                self.say(&format!("{name} does not stop; killing it"));
                if kind(name) == Kind::Postgres {
                    process.signal(Signal::SIGQUIT);
                    process.wait_dead(Duration::from_secs(3));
                }
                process.kill_family(KILL_LIMIT).with_context(|| name.clone())?;
            }
        }
        self.change(|state| {
            for (name, _) in &processes {
                state.processes.remove(name);
            }
        })
    }

    /// Stops everything that runs, in the order that loses nothing and waits for nothing.
    pub(crate) fn stop_all(&self) -> Result<()> {
        let running: Vec<String> = self.state().processes.keys().cloned().collect();
        self.stop_in_order(&running)
    }

    fn stop_in_order(&self, names: &[String]) -> Result<()> {
        let tier = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
            names.iter().filter(|name| wanted(name)).cloned().collect()
        };
        self.stop(&tier(&|name| kind(name) == Kind::Core))?;
        self.stop(&tier(&|name| kind(name) == Kind::Proxy))?;
        // Primaries before standbys: a fast shutdown hands the last WAL over.
        let primary = |name: &str| kind(name) == Kind::Postgres && self.postgres_role(name) == "primary";
        let primaries = tier(&primary);
        let mut first = primaries.clone();
        first.extend(tier(&|name| matches!(kind(name), Kind::Redis | Kind::Kafka)));
        self.stop(&first)?;
        self.stop(&tier(&|name| kind(name) == Kind::Postgres && !primaries.iter().any(|p| p == name)))
    }

    /// Takes down what this run started, after a failure.
    pub(crate) fn undo(&self) {
        let fresh = std::mem::take(&mut *held(&self.fresh));
        if fresh.is_empty() {
            return;
        }
        self.say("stopping what was started");
        if let Err(error) = self.stop_in_order(&fresh) {
            eprintln!("error: {error:#}");
        }
    }

    /// Starts one server as its data directory says, if it is not running.
    pub(crate) fn start(&self, name: &str) -> Result<()> {
        if self.state().running(name).is_some() {
            self.say(&format!("{name} is running already"));
            return Ok(());
        }
        self.check_ports(&[name.to_owned()])?;
        match kind(name) {
            Kind::Postgres => self.start_postgres(name),
            Kind::Redis => self.start_redis(),
            Kind::Kafka => self.start_kafka(),
            Kind::Proxy => self.start_proxy(number(name)?),
            Kind::Core => self.start_core(number(name)?),
        }
    }

    pub(crate) fn check_ports(&self, names: &[String]) -> Result<()> {
        let mut taken = Vec::new();
        for name in names {
            for port in self.state().ports(name)? {
                if !process::port_free(port) {
                    taken.push(format!("  {port} for {name}: {}", process::port_holder(port)));
                }
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        bail!(
            "these ports are taken:\n{}\nstop what holds them, or choose others with --port-base",
            taken.join("\n")
        );
    }
}

/// `proxy2` -> 2.
pub(crate) fn number(name: &str) -> Result<u16> {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().with_context(|| format!("no server is called {name}"))
}
