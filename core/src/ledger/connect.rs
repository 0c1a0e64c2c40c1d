//! Opens connections to the database.

use std::str::FromStr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::config::Config;

/// A client and the task that moves its bytes. Dropping it closes the connection.
pub struct Link {
    pub client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The connection settings of `config`, under a name that pg_stat_activity shows.
pub fn settings(config: &Config, purpose: &str) -> Result<tokio_postgres::Config, tokio_postgres::Error> {
    let mut settings = tokio_postgres::Config::from_str(&config.database_url)?;
    let patience = Duration::from_millis(config.database_connect_timeout_ms);
    settings
        .application_name(format!("{}/{purpose}", config.instance))
        .connect_timeout(patience)
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(30))
        // A server that vanished without a word is noticed although we wait for an answer.
        .tcp_user_timeout(Duration::from_secs(10));
    Ok(settings)
}

/// Connects within the connection time-out; the driver's own covers only the TCP part, not the log-in.
pub async fn open(settings: &tokio_postgres::Config) -> Result<Link, OpenError> {
    let patience = settings.get_connect_timeout().copied().unwrap_or(Duration::from_secs(3));
    let (client, connection) = tokio::time::timeout(patience, settings.connect(NoTls)).await??;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "database connection ended");
        }
    });
    Ok(Link { client, driver })
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("connecting took too long")]
    TimedOut(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Database(#[from] tokio_postgres::Error),
}
