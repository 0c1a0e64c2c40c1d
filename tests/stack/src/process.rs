//! Processes of other programs: starting them apart from the terminal, recognising them again, signalling them.
//!
//! A pid alone names a process only until it ends, so a process is remembered with its start time and the boot it
//! belongs to, and nothing is signalled unless all three still match.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that was started by this program, now or in an earlier run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: i32,
    /// Field 22 of /proc/<pid>/stat: clock ticks after boot.
    pub started: u64,
    pub boot: String,
}

/// For a family to stand still; a process that is waiting for its disk obeys nothing until that answers.
const STANDSTILL_LIMIT: Duration = Duration::from_secs(5);

struct Stat {
    state: char,
    parent: i32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and brackets; everything after the last bracket is in fixed fields.
    let mut fields = text.get(text.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, started })
}

/// Dead, but nobody took its exit status: in a container often nobody does.
pub(crate) fn is_zombie(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| stat.state == 'Z')
}

pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl Process {
    pub(crate) fn of_pid(pid: i32) -> Option<Process> {
        stat(pid).map(|stat| Process { pid, started: stat.started, boot: boot_id() })
    }

    fn stat(&self) -> Option<Stat> {
        stat(self.pid).filter(|stat| stat.started == self.started && self.boot == boot_id())
    }

    /// A zombie is dead: in a container nobody may reap it.
    pub(crate) fn alive(&self) -> bool {
        self.stat().is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    }

    pub(crate) fn paused(&self) -> bool {
        self.stat().is_some_and(|stat| stat.state == 'T')
    }

    /// This process and everything below it, children last.
    pub(crate) fn family(&self) -> Vec<Process> {
        let everyone: Vec<(i32, Stat)> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, stat(pid)?)))
            .collect();
        let boot = boot_id();
        let mut family = vec![self.clone()];
        let mut next = 0;
        while next < family.len() {
            let parent = family[next].pid;
            let children = everyone.iter().filter(|(_, stat)| stat.parent == parent);
            family.extend(children.map(|(pid, stat)| Process {
                pid: *pid,
                started: stat.started,
                boot: boot.clone(),
            }));
            next += 1;
        }
        family
    }

    /// Those of a program that work in a directory, as the processes of a PostgreSQL server do in its data directory.
    pub(crate) fn working_in(directory: &Path, program: &str) -> Result<Vec<Process>> {
        let directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
        let pids = fs::read_dir("/proc").context("/proc")?.flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // Those of other users cannot be read, nor signalled.
        let here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
        let runs = |pid: &i32| {
            let program_file = fs::read_link(format!("/proc/{pid}/exe"));
            program_file.is_ok_and(|path| path.file_name().is_some_and(|name| name == program))
        };
        Ok(pids.filter(here).filter(runs).filter_map(Process::of_pid).collect())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.alive() {
            // A process that ended in between is what most signals wanted anyway.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Kills the process and all below it and waits for the end of each: one that is inside an fsync() ends after it.
    pub(crate) fn kill_family(&self, limit: Duration) -> Result<()> {
        let family = self.stop_family();
        family.iter().for_each(|member| member.signal(Signal::SIGKILL));
        let alive = || family.iter().filter(|member| member.alive());
        if wait_until(limit, || alive().next().is_none()) {
            return Ok(());
        }
        let pids: Vec<String> = alive().map(|member| member.pid.to_string()).collect();
        anyhow::bail!("pid {}: alive {} s after SIGKILL", pids.join(", "), limit.as_secs())
    }

    pub(crate) fn signal_family(&self, signal: Signal) {
        let family = if signal == Signal::SIGSTOP { self.stop_family() } else { self.family() };
        family.iter().for_each(|member| member.signal(signal));
    }

    /// Stops the process and all below it until nobody is left who could start another: a child that is born while its
    /// parent is dying would outlive it, and a backend of PostgreSQL whose siblings are dead waits for their locks for ever.
    fn stop_family(&self) -> Vec<Process> {
        let deadline = Instant::now() + STANDSTILL_LIMIT;
        loop {
            let family = self.family();
            let moving = |member: &&Process| member.alive() && !member.paused();
            if !family.iter().any(|member| moving(&member)) || Instant::now() >= deadline {
                return family;
            }
            for member in family.iter().filter(moving) {
                member.signal(Signal::SIGSTOP);
            }
            // Sent is not yet obeyed: whoever is inside fork() finishes it first.
            wait_until(Duration::from_millis(200), || !family.iter().any(|member| moving(&member)));
        }
    }

    pub(crate) fn wait_dead(&self, limit: Duration) -> bool {
        wait_until(limit, || !self.alive())
    }

    /// Also no zombie any more, if somebody reaps it: PostgreSQL does not start beside one.
    pub(crate) fn wait_reaped(&self, limit: Duration) {
        wait_until(limit, || self.stat().is_none());
    }
}

/// Polls a cheap condition; the interval is far below every duration that matters here.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// Starts a server: own process group (a Ctrl-C at the terminal is ours to handle), no stdin, output appended to its log.
pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<(Process, Child)> {
    let out =
        OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let program = command.get_program().to_owned();
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("pid")?;
    let process = Process::of_pid(pid).with_context(|| format!("{} ended at once", program.display()))?;
    Ok((process, child))
}

/// Runs a short program to its end; its output becomes the error message when it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", program.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!(
            "{} failed ({}):\n{}{}",
            program.display(),
            output.status,
            tail(&stdout, 15),
            tail(&stderr, 15)
        );
    }
    Ok(stdout)
}

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let mut out = all[all.len().saturating_sub(lines)..].join("\n");
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

/// The end of a log file; reads at most the last 256 KiB.
pub(crate) fn log_tail(path: &Path, from: u64, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let Ok(mut file) = fs::File::open(path) else { return String::new() };
    let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
    let start = from.min(size).max(size.saturating_sub(256 * 1024));
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err() || file.read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    tail(&String::from_utf8_lossy(&bytes), lines)
}

/// Who listens on a TCP port, for a message to a human.
pub(crate) fn port_holder(port: u16) -> String {
    let mut inode = None;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listening = fields.get(3) == Some(&"0A");
            let local = fields.get(1).and_then(|address| address.rsplit_once(':'));
            if listening && local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port)) {
                inode = fields.get(9).map(|inode| format!("socket:[{inode}]"));
            }
        }
    }
    let Some(inode) = inode else { return "no listening process found; perhaps it just ended".into() };
    let pids = fs::read_dir("/proc").into_iter().flatten();
    for pid in pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        for file in files.filter_map(Result::ok) {
            if fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == inode.as_str()) {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                return format!("pid {pid}: {}", line.chars().take(100).collect::<String>().trim());
            }
        }
    }
    "a process of another user".into()
}

pub(crate) fn port_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_by_its_start_time_and_not_by_its_pid_alone() {
        let me = Process::of_pid(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.alive() && !me.paused());
        assert!(!Process { started: me.started + 1, ..me.clone() }.alive());
        assert!(!Process { boot: "another boot".into(), ..me }.alive());
    }

    #[test]
    fn a_family_is_killed_whole_while_it_grows() {
        let own_pid = i32::try_from(std::process::id()).unwrap();
        let inherited = |pid: i32, mark: &str| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        for round in 0..20 {
            let (name, value) = ("STACK_TEST_FAMILY", format!("{own_pid}-{round}"));
            let log = std::env::temp_dir().join(format!("stack-family-{value}.log"));
            let script = "n=0; while [ $n -lt 400 ]; do sleep 20 & n=$((n+1)); done; wait";
            let (process, mut child) =
                spawn(Command::new("sh").args(["-c", script]).env(name, &value), &log).unwrap();
            assert!(wait_until(Duration::from_secs(10), || process.family().len() > 20), "no children");

            process.kill_family(Duration::from_secs(10)).unwrap();

            child.wait().unwrap();
            let mark = format!("{name}={value}");
            let living = || {
                let pids = fs::read_dir("/proc").unwrap().flatten();
                let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
                pids.filter(|pid| inherited(*pid, &mark)).filter_map(Process::of_pid).collect::<Vec<_>>()
            };
            let gone = wait_until(Duration::from_secs(10), || !living().iter().any(Process::alive));
            let left = living();
            left.iter().for_each(|process| process.signal(Signal::SIGKILL));
            fs::remove_file(&log).unwrap();
            assert!(gone, "round {round}: {} outlived their parent", left.len());
        }
    }

    #[test]
    fn a_program_is_found_by_the_directory_that_it_works_in() {
        let directory = std::env::temp_dir().join(format!("stack-working-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let log = directory.join("log");
        let (process, mut child) =
            spawn(Command::new("sleep").arg("20").current_dir(&directory), &log).unwrap();
        let found = |program: &str| Process::working_in(&directory, program).unwrap();
        let program = fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap();
        let program = program.file_name().unwrap().to_str().unwrap();
        let (seen, others) = (found(program), found("postgres"));
        process.kill_family(Duration::from_secs(10)).unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!((seen, others), (vec![process], vec![]));
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!port_free(port));
        assert!(port_holder(port).contains(&format!("pid {}", std::process::id())), "{}", port_holder(port));
    }
}
