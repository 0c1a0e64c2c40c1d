//! The running stack: addresses from the environment, and the `stack` program to kill, start and promote servers.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

const REMEDY: &str = "run it as `cargo chaos`, beside a running stack (`cargo stack up --detach`)";

#[derive(Clone, Debug)]
pub struct Stack {
    binary: PathBuf,
    vars: BTreeMap<String, String>,
}

impl Stack {
    /// # Errors
    /// When the environment of `cargo stack env` is not set.
    pub fn from_env() -> Result<Stack> {
        let binary =
            std::env::var_os("STACK_BIN").with_context(|| format!("STACK_BIN is not set: {REMEDY}"))?;
        let stack = Stack { binary: binary.into(), vars: std::env::vars().collect() };
        stack.var("SHARD1_PRIMARY_URL")?;
        Ok(stack)
    }

    pub fn var(&self, name: &str) -> Result<&str> {
        self.vars.get(name).map(String::as_str).with_context(|| format!("{name} is not set: {REMEDY}"))
    }

    pub fn dir(&self) -> Result<PathBuf> {
        Ok(self.var("STACK_DIR")?.into())
    }

    pub fn vars(&self) -> impl Iterator<Item = (&String, &String)> {
        self.vars.iter()
    }

    /// Runs `stack <words>` to its end.
    pub async fn command(&self, words: &[&str]) -> Result<String> {
        self.command_with(words, &[]).await
    }

    /// With these variables, which a server that it starts has, too.
    pub async fn command_with(&self, words: &[&str], variables: &[(&str, &str)]) -> Result<String> {
        let output = Command::new(&self.binary)
            .args(words)
            .env("STACK_DIR", self.dir()?)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| self.binary.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // `status` exits with 1 when something is down, which here is the point.
        if !output.status.success() && words[0] != "status" {
            bail!("stack {}: {}{}", words.join(" "), text, String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    /// Reads the addresses again: a promotion moves a shard's primary.
    pub async fn refresh(&mut self) -> Result<()> {
        let text = self.command(&["env"]).await?;
        for line in text.lines() {
            if let Some((name, value)) = line.split_once('=') {
                self.vars.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    pub async fn status(&self) -> Result<Value> {
        let text = self.command(&["status", "--json"]).await?;
        serde_json::from_str(&text).context("stack status --json")
    }

    /// Names of servers that should run and do not.
    pub async fn not_running(&self) -> Result<Vec<String>> {
        let status = self.status().await?;
        let servers = status["servers"].as_array().context("servers")?;
        let down = servers.iter().filter(|server| server["state"] != "running");
        Ok(down.filter_map(|server| server["name"].as_str().map(str::to_owned)).collect())
    }

    pub fn shards(&self) -> u16 {
        (1..)
            .take_while(|n| self.vars.contains_key(&format!("SHARD{n}_PRIMARY_URL")))
            .count()
            .try_into()
            .unwrap_or(0)
    }

    pub fn cores(&self) -> Result<Vec<String>> {
        Ok(self
            .var("CORE_URLS")?
            .split(',')
            .map(|url| url.trim_start_matches("http://").to_owned())
            .collect())
    }

    /// URLs of the proxies; the first is proxy1's.
    pub fn proxies(&self) -> Result<Vec<String>> {
        Ok(self.var("PROXY_URLS")?.split(',').map(str::to_owned).collect())
    }

    /// The process of a server that runs.
    pub async fn pid(&self, name: &str) -> Result<i64> {
        let status = self.status().await?;
        let servers = status["servers"].as_array().context("servers")?;
        let found = servers.iter().find(|server| server["name"] == name);
        found.and_then(|server| server["pid"].as_i64()).with_context(|| format!("{name} is not running"))
    }

    /// A shard's server by its name, e.g. `shard1-primary`; `None` by role, as the environment has it.
    pub async fn shard(&self, shard: u16) -> Result<Client> {
        connect(self.var(&format!("SHARD{shard}_PRIMARY_URL"))?).await
    }

    /// The name of the server that is the primary of a shard now.
    pub async fn primary_name(&self, shard: u16) -> Result<String> {
        let url = self.var(&format!("SHARD{shard}_PRIMARY_URL"))?.to_owned();
        let port =
            url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()).context("a URL with a port")?;
        let status = self.status().await?;
        let servers = status["servers"].as_array().context("servers")?;
        let found = servers.iter().find(|server| server["port"].to_string() == port);
        found.and_then(|server| server["name"].as_str()).map(str::to_owned).context("the primary's name")
    }
}

pub async fn connect(url: &str) -> Result<Client> {
    let mut config: tokio_postgres::Config = url.parse().context("a connection URL")?;
    config.connect_timeout(std::time::Duration::from_secs(5)).application_name("chaos");
    let (client, connection) =
        config.connect(NoTls).await.with_context(|| format!("cannot connect to {url}"))?;
    tokio::spawn(async move {
        // A statement that was waiting reports the loss.
        let _ = connection.await;
    });
    Ok(client)
}
