//! Places in a move at which tests stop its runner, to end it or a server just there; and figures that no test can bring about.
//!
//! Off unless SHARDCTL_FAULT_DIR names a directory. Whoever puts an empty file with a place's name there (the phase, a dash,
//! the place within it, or the phase alone) stops the runner that gets so far: the file is gone, and `NAME.reached` holds the
//! number of the move. The runner goes on when that file is removed, or after a minute. The same protocol of files as the
//! proxy's SHARD_PROXY_FAULT_DIR. A file `free-N` there holds the bytes that are free on the disks of shard N.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::job::Job;

const VARIABLE: &str = "SHARDCTL_FAULT_DIR";
/// Nobody waits longer for a test that has forgotten it.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(2);

/// What a test says instead of a server: the number in the file of this name, for as long as it is there.
pub fn figure(name: &str) -> Option<i64> {
    let directory = std::env::var_os(VARIABLE).filter(|value| !value.is_empty())?;
    std::fs::read_to_string(Path::new(&directory).join(name)).ok()?.trim().parse().ok()
}

/// Stops here if a test asks for it: the thread, and with it every timer, so that nothing is given up meanwhile.
pub fn reach(job: &Job, place: &str) {
    // In production this is all that there is.
    let Some(directory) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return };
    let name = match place {
        "" => job.phase.name().to_owned(),
        place => format!("{}-{place}", job.phase.name()),
    };
    if let Err(error) = stop(&PathBuf::from(directory), &name, job.id) {
        eprintln!("{VARIABLE}: {name}: {error}");
    }
}

fn stop(directory: &Path, name: &str, id: i64) -> std::io::Result<()> {
    let taken = directory.join(format!("{name}.taken"));
    // The rename gives it to one runner, and to none when nobody has asked.
    if std::fs::rename(directory.join(name), &taken).is_err() {
        return Ok(());
    }
    std::fs::write(&taken, id.to_string())?;
    let reached = directory.join(format!("{name}.reached"));
    std::fs::rename(&taken, &reached)?;
    let begun = Instant::now();
    while reached.exists() && begun.elapsed() < LIMIT {
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_stops_where_it_was_asked_to() {
        let directory = std::env::temp_dir().join(format!("shardctl-fault-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        stop(&directory, "fencing-shut", 7).unwrap(); // Nobody has asked.
        std::fs::write(directory.join("fencing-shut"), "").unwrap();
        let reached = directory.join("fencing-shut.reached");
        let there = directory.clone();
        let runner = std::thread::spawn(move || stop(&there, "fencing-shut", 7));
        while !reached.exists() {
            std::thread::sleep(POLL);
        }
        assert!(!runner.is_finished());
        assert_eq!(std::fs::read_to_string(&reached).unwrap(), "7");
        stop(&directory, "fencing-shut", 8).unwrap(); // Another one goes on.
        std::fs::remove_file(&reached).unwrap();
        runner.join().unwrap().unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
