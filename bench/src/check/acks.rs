//! Every acknowledged payment is there, once, as acknowledged.
use super::joins::broken;
use super::placement::Homes;
use super::report::{CheckReport, Invariant};
use super::shards::Session;
use crate::load::acks::logs;
use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::pin::Pin;
use tokio_postgres::CopyInSink;
use uuid::Uuid;

const CHUNK: usize = 64 * 1024;

/// The key's row must name the payment while the key lives (seven days); the reference repeats the key, so a payment
/// posted twice under one key shows as two payments with one reference.
const MISSING: &str = "
SELECT CASE WHEN p.payment_id IS NULL THEN format('tenant %s key %s: acknowledged payment %s does not exist', a.tenant_id, a.key, a.payment_id)
            WHEN p.status <> a.status THEN format('tenant %s key %s: payment %s was acknowledged as %s and is %s', a.tenant_id, a.key, a.payment_id, a.status, p.status)
            ELSE format('tenant %s key %s: acknowledged as payment %s, the key names %s', a.tenant_id, a.key, a.payment_id, coalesce(k.payment_id::text, 'nothing')) END
  FROM (SELECT DISTINCT tenant_id, key, payment_id, status FROM bench_acks) a
  LEFT JOIN payments p ON p.tenant_id = a.tenant_id AND p.payment_id = a.payment_id
  LEFT JOIN idempotency_keys k ON k.tenant_id = a.tenant_id AND k.key = a.key
 WHERE p.payment_id IS NULL OR p.status <> a.status
    OR (k.payment_id IS DISTINCT FROM a.payment_id AND (k.key IS NOT NULL OR p.created_at > now() - interval '6 days'))";
const TWICE: &str = "
SELECT format('tenant %s key %s was acknowledged as %s different payments', tenant_id, key, count(DISTINCT payment_id))
  FROM bench_acks GROUP BY tenant_id, key HAVING count(DISTINCT payment_id) > 1
UNION ALL
SELECT format('tenant %s key %s: %s payments have this reference', p.tenant_id, p.reference, count(DISTINCT p.payment_id))
  FROM (SELECT DISTINCT tenant_id, key FROM bench_acks) a
  JOIN payments p ON p.tenant_id = a.tenant_id AND p.reference = a.key
 GROUP BY p.tenant_id, p.reference HAVING count(DISTINCT p.payment_id) > 1";

struct Target<'a> {
    session: &'a Session,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    buffer: BytesMut,
}

/// An error when the logs hold fewer acknowledgements than `expected`: a check without them would prove nothing.
pub async fn check(
    sessions: &[Session],
    homes: &Homes,
    path: &Path,
    expected: u64,
    report: &mut CheckReport,
) -> Result<()> {
    let mut present =
        Invariant::new("acknowledged_present", "acknowledgements whose payment exists as acknowledged");
    let mut once = Invariant::new("acknowledged_once", "acknowledgements whose key stands for one payment");
    let files = logs(path)?;
    let mut targets = Vec::with_capacity(sessions.len());
    for session in sessions {
        session
            .client
            .batch_execute("CREATE TEMP TABLE bench_acks (tenant_id uuid, key text, payment_id uuid, status text) ON COMMIT DROP")
            .await?;
        let sink = session.client.copy_in("COPY bench_acks FROM STDIN").await?;
        targets.push(Target { session, sink: Box::pin(sink), buffer: BytesMut::with_capacity(2 * CHUNK) });
    }
    for file in &files {
        let reader =
            BufReader::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?);
        let mut lines = reader.split(b'\n').peekable();
        while let Some(line) = lines.next() {
            let line = line?;
            // A generator killed while it wrote leaves half a line: that acknowledgement was never used.
            let last = lines.peek().is_none();
            let Some((tenant, row)) = parse(&line) else {
                if !last {
                    anyhow::bail!(
                        "{}: not a line of a log of acknowledgements: {}",
                        file.display(),
                        String::from_utf8_lossy(&line)
                    );
                }
                continue;
            };
            present.examined += 1;
            once.examined += 1;
            let Some(target) =
                homes.get(&tenant).and_then(|home| targets.iter_mut().find(|t| t.session.shard == *home))
            else {
                present.violation(|| format!("acknowledged to tenant {tenant}, which does not exist: {row}"));
                continue;
            };
            target.buffer.extend_from_slice(row.replace(' ', "\t").as_bytes());
            target.buffer.extend_from_slice(b"\n");
            if target.buffer.len() >= CHUNK {
                let chunk = target.buffer.split().freeze();
                target.sink.send(chunk).await?;
            }
        }
    }
    for mut target in targets {
        let rest = target.buffer.split().freeze();
        if !rest.is_empty() {
            target.sink.send(rest).await?;
        }
        target.sink.as_mut().finish().await?;
        target.session.client.batch_execute("ANALYZE bench_acks").await?;
        for (query, invariant) in [(MISSING, &mut present), (TWICE, &mut once)] {
            let found = broken(target.session, query).await?;
            invariant.violations += found.count.saturating_sub(found.examples.len() as u64);
            for example in found.examples {
                invariant.violation(|| example);
            }
        }
    }
    if present.examined < expected {
        anyhow::bail!(
            "{} acknowledgements in {} log(s) of {}, at least {expected} were expected",
            present.examined,
            files.len(),
            path.display()
        );
    }
    if present.examined == 0 {
        report.note(format!("no acknowledgements in {}: nothing is said about them", path.display()));
        return Ok(());
    }
    report.push(present);
    report.push(once);
    Ok(())
}

/// `tenant key payment status`; the keys of the generator contain no blanks or backslashes.
fn parse(line: &[u8]) -> Option<(Uuid, &str)> {
    let text = std::str::from_utf8(line).ok()?;
    let mut fields = text.split(' ');
    let tenant = Uuid::parse_str(fields.next()?).ok()?;
    let key = fields.next().filter(|key| !key.is_empty() && !key.contains('\\') && !key.contains('\t'))?;
    Uuid::parse_str(fields.next()?).ok()?;
    let status = fields.next()?;
    let known = matches!(
        status,
        "succeeded" | "declined" | "pending" | "processing" | "failed" | "canceled" | "expired"
    );
    (known && fields.next().is_none() && !key.is_empty()).then_some((tenant, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_not_an_acknowledgement() {
        let line =
            "00000000-0000-7000-8000-000000000001 load-1-2 00000000-0000-7000-8000-000000000002 succeeded";
        assert!(parse(line.as_bytes()).is_some());
        for end in [10, 40, 70, line.len() - 1] {
            assert!(parse(&line.as_bytes()[..end]).is_none(), "{end}");
        }
    }
}
