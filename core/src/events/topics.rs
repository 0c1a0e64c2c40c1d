//! Makes the topics, and checks those that exist.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{COMMAND_DLQ_TOPIC, COMMAND_TOPIC, PARTITIONS, PAYMENT_TOPIC};

/// The topics of the core.
pub const ALL: [&str; 3] = [PAYMENT_TOPIC, COMMAND_TOPIC, COMMAND_DLQ_TOPIC];

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error("topic {topic} was not made: {code}")]
    NotMade { topic: String, code: RDKafkaErrorCode },
    #[error("topic {topic} has {found} partitions and must have {PARTITIONS}: keys would be placed anew")]
    Partitions { topic: String, found: usize },
}

/// Makes what is missing, with the broker's default replication, and checks the partition counts. Nothing is produced or
/// consumed before this succeeded: a broker that makes topics by itself would make them with its own count.
pub async fn ensure(brokers: &str, topics: &[&str]) -> Result<(), TopicError> {
    ensure_kept(brokers, topics, None).await
}

/// The same for topics whose messages are kept for `retention`, as the broker's clock counts; `None`: as the broker is set.
/// Topics that exist stay as they are.
pub async fn ensure_kept(
    brokers: &str,
    topics: &[&str],
    retention: Option<Duration>,
) -> Result<(), TopicError> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("client.id", "payment-core-admin")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
        .create()?;
    let retention_ms = retention.map(|retention| retention.as_millis().to_string());
    let wanted: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|name| {
            let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(-1));
            match &retention_ms {
                // A producer's own time could keep a message for ever, or make it old at once.
                Some(ms) => topic.set("retention.ms", ms).set("message.timestamp.type", "LogAppendTime"),
                None => topic,
            }
        })
        .collect();
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    for made in admin.create_topics(&wanted, &options).await? {
        match made {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(TopicError::NotMade { topic, code }),
        }
    }
    let names: Vec<String> = topics.iter().map(|name| (*name).to_owned()).collect();
    // The metadata call blocks.
    let checked = tokio::task::spawn_blocking(move || {
        for topic in names {
            let mut found = 0;
            // A topic just made takes a moment to have its leaders.
            for _ in 0..50 {
                let metadata = admin.inner().fetch_metadata(Some(&topic), TIMEOUT)?;
                found = metadata.topics().first().map_or(0, |t| t.partitions().len());
                if found > 0 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            if found != PARTITIONS as usize {
                return Err(TopicError::Partitions { topic, found });
            }
        }
        Ok(())
    });
    // The task is neither cancelled nor does it panic.
    checked.await.unwrap_or(Ok(()))
}

/// Tries until it succeeds. Logs the first failure of each kind loudly, because a wrong count waits for an operator.
pub async fn ensure_patiently(brokers: &str, topics: &[&str], retention: Option<Duration>) {
    let mut said = String::new();
    let mut pause = Duration::from_millis(200);
    while let Err(error) = ensure_kept(brokers, topics, retention).await {
        let text = error.to_string();
        if text != said {
            tracing::warn!(error = text, "topics are not ready");
            said = text;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}
