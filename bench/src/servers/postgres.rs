//! A small PostgreSQL with everything durable, for tests and comparisons.
use super::{Server, give_away, program, unprivileged_command};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};

pub const PASSWORD: &str = "postgres";

pub struct Postgres {
    pub server: Server,
    pub data: PathBuf,
}

impl Postgres {
    /// A new cluster; the superuser `postgres` logs in by SCRAM.
    pub fn start(directory: &Path, name: &str, port: u16, settings: &[(&str, &str)]) -> Result<Postgres> {
        let data = directory.join(name);
        let password = directory.join(format!("{name}.password"));
        std::fs::write(&password, PASSWORD)?;
        give_away(&password)?;
        let made = unprivileged_command(&program("initdb", "postgresql")?, directory)?
            .args([
                "--username=postgres",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .arg(format!("--pwfile={}", password.display()))
            .arg(format!("--pgdata={}", data.display()))
            .output()
            .context("cannot run initdb")?;
        if !made.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let mut command = unprivileged_command(&program("postgres", "postgresql")?, directory)?;
        command.arg("-D").arg(&data);
        let port_text = port.to_string();
        let base = [
            ("listen_addresses", "127.0.0.1"),
            ("port", port_text.as_str()),
            ("unix_socket_directories", ""),
            ("password_encryption", "scram-sha-256"),
            ("shared_buffers", "64MB"),
            ("max_connections", "300"),
        ];
        for (setting, value) in base.iter().chain(settings) {
            command.arg("-c").arg(format!("{setting}={value}"));
        }
        // SIGINT: fast shutdown, so that shared memory is given back.
        let server = Server::start(command, name, port, directory, Signal::SIGINT)?;
        Ok(Postgres { server, data })
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{}/{database}", self.server.port)
    }

    /// Connects as soon as the server has finished starting.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client> {
        let mut last = None;
        for _ in 0..200 {
            match crate::measure::wal::connect(&self.url(database)).await {
                Ok(client) => return Ok(client),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("not tried")))
    }
}
