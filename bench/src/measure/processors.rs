//! How busy the machine's processors are, all together.

/// Ticks since the start, of all processors: (idle or waiting for a disk, all).
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    /// `None` where there is no `/proc/stat`.
    pub fn now() -> Option<Ticks> {
        parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Per cent of the processors' time since `before`.
    pub fn busy_since(self, before: Ticks) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|all| *all > 0)?;
        let idle = self.idle.checked_sub(before.idle)?;
        Some(100.0 * (1.0 - idle as f64 / all as f64))
    }
}

/// The first line of `/proc/stat` (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
fn parse(stat: &str) -> Option<Ticks> {
    let mut fields = stat.lines().next()?.split_whitespace();
    (fields.next()? == "cpu").then_some(())?;
    let ticks: Vec<u64> = fields.take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
    Some(Ticks { idle: ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_waits_is_not_busy() {
        let before = parse("cpu  100 0 100 100 100 0 0 0 50 0\ncpu0 1 1").unwrap();
        let after = parse("cpu  200 50 125 150 125 0 25 0 99 0\n").unwrap();
        // 275 of which 75 were idle.
        assert!((after.busy_since(before).unwrap() - 100.0 * 200.0 / 275.0).abs() < 1e-9);
        assert_eq!(before.busy_since(before), None);
        assert!(parse("intr 1 2 3").is_none());
    }
}
