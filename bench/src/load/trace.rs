//! A line a request, for whoever wants to know which requests were slow: `begin latency`, both in microseconds, the
//! begin since the UNIX epoch. It has the requests that the report's latencies are of, and counts from when each was
//! due, as they do.
//!
//! It is written while it is measured: two hours at 1,000 requests a second would be 100 MiB of memory, and are one
//! write of 64 KiB every three seconds.
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BUFFER: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it was due, since the UNIX epoch.
    pub begin_us: i64,
    pub latency_us: u64,
}

impl Request {
    pub fn latency_ms(&self) -> f64 {
        self.latency_us as f64 / 1000.0
    }
}

pub struct Trace {
    file: BufWriter<File>,
    /// One moment by both clocks.
    begun: (Instant, Duration),
}

impl Trace {
    pub fn create(path: &Path) -> Result<Trace> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let begun = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
        Ok(Trace { file: BufWriter::with_capacity(BUFFER, file), begun })
    }

    pub fn push(&mut self, intended: Instant, latency_us: u64) -> Result<()> {
        let (instant, since_epoch) = self.begun;
        let begin = since_epoch + intended.saturating_duration_since(instant);
        writeln!(self.file, "{} {latency_us}", begin.as_micros()).context("cannot write the trace")
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().context("cannot write the trace")
    }
}

pub fn read(path: &Path) -> Result<Vec<Request>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut requests = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let request = parse(&line).with_context(|| format!("{}: no request: {line:?}", path.display()))?;
        requests.push(request);
    }
    Ok(requests)
}

fn parse(line: &str) -> Option<Request> {
    let (begin, latency) = line.split_once(' ')?;
    Some(Request { begin_us: begin.parse().ok()?, latency_us: latency.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Directory;

    #[test]
    fn what_is_written_is_read() {
        let directory = Directory::new("trace").unwrap();
        let path = directory.path().join("trace");
        let mut trace = Trace::create(&path).unwrap();
        let begin = Instant::now() + Duration::from_millis(50);
        trace.push(begin, 7).unwrap();
        trace.push(begin + Duration::from_millis(3), 1_000_000).unwrap();
        trace.flush().unwrap();
        let requests = read(&path).unwrap();
        assert_eq!(requests.iter().map(|r| r.latency_us).collect::<Vec<_>>(), [7, 1_000_000]);
        let gap = requests[1].begin_us - requests[0].begin_us;
        assert!((2_999..=3_001).contains(&gap), "{gap}");
        for torn in ["1700000000000000", "1700000000000000 ", "x 7"] {
            std::fs::write(&path, format!("1700000000000000 7\n{torn}\n")).unwrap();
            assert!(read(&path).is_err(), "{torn}");
        }
    }
}
