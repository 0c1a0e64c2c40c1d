//! The operator's tool, in processes that can be struck.

use crate::stack::Stack;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::timeout;

pub struct Shardctl {
    program: PathBuf,
    url: String,
    config: PathBuf,
    pub plan: PathBuf,
    pub faults: PathBuf,
}

/// One process of it.
pub struct Driver {
    child: Child,
    pub words: String,
}

/// How it ended, with its last words.
#[derive(Clone, Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub text: String,
}

impl Shardctl {
    /// `config`: the servers as the tool is to reach them.
    pub fn new(stack: &Stack, config: PathBuf) -> Result<Shardctl> {
        let program = std::env::current_exe()?.with_file_name("shardctl");
        if !program.exists() {
            bail!("{} is not built: cargo build --release --workspace", program.display());
        }
        let directory = stack.dir()?.join("chaos");
        let faults = directory.join("mover-faults");
        std::fs::create_dir_all(&faults)?;
        let url = stack.proxies()?.last().context("no proxy")?.clone();
        Ok(Shardctl { program, url, config, plan: directory.join("plan.json"), faults })
    }

    pub fn start(&self, words: &[&str]) -> Result<Driver> {
        let child = Command::new(&self.program)
            .args(["--url", &self.url, "--config"])
            .arg(&self.config)
            .args(words)
            .env("SHARDCTL_FAULT_DIR", &self.faults)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        Ok(Driver { child, words: words.join(" ") })
    }

    pub async fn run(&self, words: &[&str], limit: Duration) -> Result<()> {
        let mut driver = self.start(words)?;
        match driver.ended(limit).await? {
            Some(Ended { code: Some(0), .. }) => Ok(()),
            Some(ended) => bail!("shardctl {}: status {:?}: {}", words.join(" "), ended.code, ended.text),
            None => bail!("shardctl {} did not end within {} s", words.join(" "), limit.as_secs()),
        }
    }

    /// Asks the mover to stop at a place; what was asked before is forgotten.
    pub fn ask(&self, place: &str) -> Result<()> {
        for entry in std::fs::read_dir(&self.faults)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(std::fs::write(self.faults.join(place), "")?)
    }

    /// The number of the move that stands there.
    pub fn stands(&self, place: &str) -> Option<i64> {
        std::fs::read_to_string(self.faults.join(format!("{place}.reached"))).ok()?.parse().ok()
    }

    /// Lets it go on.
    pub fn release(&self, place: &str) -> Result<()> {
        std::fs::remove_file(self.faults.join(format!("{place}.reached"))).context("the stopped mover")
    }
}

impl Driver {
    pub fn running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end; `None` when it does not come. Its output is short: no more than a pipe holds.
    pub async fn ended(&mut self, limit: Duration) -> Result<Option<Ended>> {
        let (mut stdout, mut stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let output = async {
            let read = async |pipe: Option<&mut (dyn tokio::io::AsyncRead + Unpin)>| {
                let mut text = String::new();
                if let Some(pipe) = pipe {
                    tokio::io::AsyncReadExt::read_to_string(pipe, &mut text).await?;
                }
                Ok::<_, std::io::Error>(text)
            };
            let out = read(stdout.as_mut().map(|pipe| pipe as _));
            let err = read(stderr.as_mut().map(|pipe| pipe as _));
            let (status, out, err) = tokio::join!(self.child.wait(), out, err);
            let (out, err) = (out?, err?);
            let lines = err.lines().chain(out.lines()).filter(|line| !line.trim().is_empty());
            let last: Vec<&str> = lines.rev().take(3).collect();
            Ok::<_, std::io::Error>(Ended {
                code: status?.code(),
                text: last.into_iter().rev().collect::<Vec<_>>().join(" | "),
            })
        };
        Ok(timeout(limit, output).await.ok().transpose()?)
    }

    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("shardctl")
    }

    /// STOP or CONT.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().context("shardctl has ended")?;
        let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().await?;
        if !sent.success() {
            bail!("kill -{name} {pid}: {sent}");
        }
        Ok(())
    }
}
