//! The generator's own log of acknowledged payments: what the core promised, kept where the core cannot reach it.
//!
//! One line an acknowledgement: `tenant_id idempotency_key payment_id status`. Lines of answers that arrived together
//! are written together, always before any of their connections sends its next request and before they are counted.
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

pub struct AckLog {
    file: File,
    buffer: Vec<u8>,
}

pub const EXTENSION: &str = "acks";

impl AckLog {
    /// A new file in `directory`; earlier runs' logs stay and are checked too.
    pub fn create(directory: &Path) -> Result<AckLog> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        let path = directory.join(format!("{stamp}-{}.{EXTENSION}", std::process::id()));
        let file = File::options()
            .append(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(AckLog { file, buffer: Vec::with_capacity(64 * 1024) })
    }

    pub fn push(&mut self, tenant: &str, key: &str, payment: &str, status: &str) {
        let _ = writeln!(self.buffer, "{tenant} {key} {payment} {status}");
    }

    pub fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all(&self.buffer).context("cannot write the log of acknowledgements")?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// The logs in a directory, oldest first; a path to one file is that file.
pub fn logs(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == EXTENSION) {
                files.push(file);
            }
        }
    }
    files.sort();
    Ok(files)
}
