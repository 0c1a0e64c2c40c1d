//! Batch sizes from the cores' /metrics.
use std::collections::BTreeMap;

pub const BATCH_METRIC: &str = "paycore_batch_transfers";

/// A Prometheus histogram: cumulative count by upper bound (as printed, "+Inf" last), and the sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper bound in thousandths, so that bounds order and add up without floats as keys.
    pub cumulative: BTreeMap<u64, u64>,
    pub sum: f64,
    pub count: u64,
}

/// Adds up every labelled series of `name`.
pub fn parse(text: &str, name: &str) -> Histogram {
    let mut histogram = Histogram::default();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let Some((series, value)) = rest.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        if series.starts_with("_bucket") {
            let bound =
                series.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(bound, _)| bound);
            let key = match bound {
                Some("+Inf") => u64::MAX,
                Some(bound) => match bound.parse::<f64>() {
                    Ok(bound) => (bound * 1000.0) as u64,
                    Err(_) => continue,
                },
                None => continue,
            };
            *histogram.cumulative.entry(key).or_default() += value as u64;
        } else if series.starts_with("_sum") {
            histogram.sum += value;
        } else if series.starts_with("_count") {
            histogram.count += value as u64;
        }
    }
    histogram
}

impl Histogram {
    pub fn add(&mut self, other: &Histogram) {
        for (bound, count) in &other.cumulative {
            *self.cumulative.entry(*bound).or_default() += count;
        }
        self.sum += other.sum;
        self.count += other.count;
    }

    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let difference =
            |bound: &u64, now: u64| now.saturating_sub(*earlier.cumulative.get(bound).unwrap_or(&0));
        Histogram {
            cumulative: self
                .cumulative
                .iter()
                .map(|(bound, now)| (*bound, difference(bound, *now)))
                .collect(),
            sum: self.sum - earlier.sum,
            count: self.count.saturating_sub(earlier.count),
        }
    }

    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// (label such as "<=8", batches in that bucket), empty ones left out.
    pub fn buckets(&self) -> Vec<(String, u64)> {
        let mut below = 0;
        let mut buckets = Vec::new();
        for (bound, cumulative) in &self.cumulative {
            let count = cumulative.saturating_sub(below);
            below = *cumulative;
            if count > 0 {
                let label =
                    if *bound == u64::MAX { "more".to_owned() } else { format!("<={}", bound / 1000) };
                buckets.push((label, count));
            }
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_and_buckets_are_not_cumulative() {
        let text = "# TYPE paycore_batch_transfers histogram\n\
            paycore_batch_transfers_bucket{shard=\"1\",le=\"1\"} 3\n\
            paycore_batch_transfers_bucket{shard=\"1\",le=\"8\"} 5\n\
            paycore_batch_transfers_bucket{shard=\"1\",le=\"+Inf\"} 6\n\
            paycore_batch_transfers_sum{shard=\"1\"} 40\n\
            paycore_batch_transfers_count{shard=\"1\"} 6\n\
            paycore_batch_transfers_bucket{shard=\"2\",le=\"1\"} 1\n\
            paycore_batch_transfers_bucket{shard=\"2\",le=\"8\"} 1\n\
            paycore_batch_transfers_bucket{shard=\"2\",le=\"+Inf\"} 1\n\
            paycore_batch_transfers_sum{shard=\"2\"} 1\n\
            paycore_batch_transfers_count{shard=\"2\"} 1\n\
            paycore_batch_transfers_other 9\n";
        let histogram = parse(text, BATCH_METRIC);
        assert_eq!(histogram.count, 7);
        assert_eq!(histogram.buckets(), vec![("<=1".into(), 4), ("<=8".into(), 2), ("more".into(), 1)]);
        assert_eq!(histogram.since(&histogram).buckets(), vec![]);
    }
}
