//! CPU time of servers, found by the port they listen on.
//!
//! Found by port and not by a list of pids that the stack hands over: the figures then hold for whatever answers
//! there, also after a restart, and the measurement trusts nothing the measured side says.
use std::collections::{BTreeMap, HashMap};
use std::fs;

/// Clock ticks a second of /proc/<pid>/stat (`USER_HZ`, 100 on every Linux that Rust supports).
const TICK_US: u64 = 10_000;
const TCP_LISTEN: &str = "0A";

/// CPU time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub user_us: u64,
    pub system_us: u64,
}

impl Cpu {
    pub fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }

    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }

    pub fn plus(self, other: Cpu) -> Cpu {
        Cpu { user_us: self.user_us + other.user_us, system_us: self.system_us + other.system_us }
    }
}

#[derive(Clone, Copy, Debug)]
struct Process {
    parent: u32,
    /// Own time and that of children already waited for, so that a sum over a tree never falls when a backend exits.
    cpu: Cpu,
}

/// The fields after the command name, which is in parentheses and may itself contain spaces and parentheses.
fn parse_stat(text: &str) -> Option<Process> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        cpu: Cpu {
            user_us: (ticks(11)? + ticks(13)?) * TICK_US,
            system_us: (ticks(12)? + ticks(14)?) * TICK_US,
        },
    })
}

fn all_processes() -> HashMap<u32, Process> {
    let mut processes = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return processes };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(process) =
            fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parse_stat)
        {
            processes.insert(pid, process);
        }
    }
    processes
}

/// Inode of the listening socket of each wanted port.
fn listening_inodes(ports: &[u16]) -> HashMap<u64, u16> {
    let mut inodes = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(&state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if let (TCP_LISTEN, Some(port), Ok(inode)) = (state, port, inode.parse())
                && ports.contains(&port)
            {
                inodes.insert(inode, port);
            }
        }
    }
    inodes
}

/// The process listening on each port. Where a parent and its children share the socket, the parent.
pub fn listeners(ports: &[u16]) -> BTreeMap<u16, u32> {
    let inodes = listening_inodes(ports);
    let processes = all_processes();
    let mut holders: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    for &pid in processes.keys() {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode =
                target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(&port) = inode.and_then(|inode: u64| inodes.get(&inode)) {
                holders.entry(port).or_default().push(pid);
            }
        }
    }
    holders
        .into_iter()
        .filter_map(|(port, pids)| {
            let is_child =
                |pid: &u32| processes.get(pid).is_some_and(|p| pids.contains(&p.parent) && p.parent != *pid);
            pids.iter().filter(|pid| !is_child(pid)).min().map(|pid| (port, *pid))
        })
        .collect()
}

/// A moment's CPU time of each root and all its descendants.
pub fn trees(roots: &[u32]) -> HashMap<u32, Cpu> {
    let processes = all_processes();
    let mut sums: HashMap<u32, Cpu> = HashMap::new();
    for (&pid, process) in &processes {
        let mut current = pid;
        // A chain of parents ends at 0; the bound only guards against a table that changed while it was read.
        for _ in 0..64 {
            if roots.contains(&current) {
                let sum = sums.entry(current).or_default();
                *sum = sum.plus(process.cpu);
                break;
            }
            match processes.get(&current) {
                Some(p) if p.parent != 0 => current = p.parent,
                _ => break,
            }
        }
    }
    sums
}

/// One server to account for: `group` is what the report sums by, `name` what it lists.
#[derive(Clone, Debug)]
pub struct Component {
    pub group: &'static str,
    pub name: String,
    pub port: u16,
}

/// Every component's CPU at one moment; `None` for one that is not running here.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub pids: BTreeMap<u16, u32>,
    pub cpu: BTreeMap<u16, Cpu>,
    pub own: Cpu,
}

/// Reads all of /proc (milliseconds): call it off the thread that keeps time.
pub fn sample(components: &[Component]) -> Sample {
    let ports: Vec<u16> = components.iter().map(|component| component.port).collect();
    let pids = listeners(&ports);
    let own_pid = std::process::id();
    let mut roots: Vec<u32> = pids.values().copied().collect();
    roots.push(own_pid);
    let sums = trees(&roots);
    let cpu = pids.iter().filter_map(|(port, pid)| Some((*port, *sums.get(pid)?))).collect();
    Sample { pids, cpu, own: sums.get(&own_pid).copied().unwrap_or_default() }
}

/// CPU spent between two samples. A server that was restarted in between counts from its start.
pub fn between(before: &Sample, after: &Sample, port: u16) -> Option<Cpu> {
    let now = *after.cpu.get(&port)?;
    let same = before.pids.get(&port) == after.pids.get(&port);
    Some(match before.cpu.get(&port) {
        Some(&earlier) if same => now.since(earlier),
        _ => now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_contain_anything() {
        let mut fields = vec!["S".to_owned(), "42".to_owned()];
        fields.extend((2..11).map(|_| "0".to_owned()));
        fields.extend(["5", "6", "7", "8", "20"].map(str::to_owned));
        let process = parse_stat(&format!("99 (a) b (c)) {}", fields.join(" "))).unwrap();
        assert_eq!(process.parent, 42);
        assert_eq!(process.cpu, Cpu { user_us: 120_000, system_us: 140_000 });
    }

    #[test]
    fn finds_this_process_by_its_port_and_counts_its_work() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let component = [Component { group: "core", name: "self".into(), port }];
        let before = sample(&component);
        assert_eq!(before.pids.get(&port), Some(&std::process::id()));
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 150 {
            sum = sum.wrapping_mul(31).wrapping_add(start.elapsed().subsec_nanos().into());
        }
        let spent = between(&before, &sample(&component), port).unwrap();
        assert!(spent.total_us() >= 30_000, "{spent:?} {sum}");
    }
}
