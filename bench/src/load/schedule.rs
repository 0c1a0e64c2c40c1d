//! When each request of an open loop is due. PURE: offsets from the start, no clock.
use super::options::Arrivals;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::time::Duration;

/// Yields due times lazily, so that a stalled server costs no memory here: what is due stays due.
pub struct Schedule {
    gap_s: f64,
    arrivals: Arrivals,
    next_s: f64,
    end_s: f64,
    random: SmallRng,
}

impl Schedule {
    pub fn new(requests_per_second: f64, arrivals: Arrivals, length: Duration, seed: u64) -> Schedule {
        Schedule {
            gap_s: 1.0 / requests_per_second,
            arrivals,
            next_s: 0.0,
            end_s: length.as_secs_f64(),
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// Nothing is due at `offset` from the start or later.
    pub fn cut(&mut self, offset: Duration) {
        self.end_s = self.end_s.min(offset.as_secs_f64());
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let gap = match self.arrivals {
            Arrivals::Uniform => self.gap_s,
            Arrivals::Poisson => -self.gap_s * (1.0 - self.random.random::<f64>()).ln(),
        };
        self.next_s += gap;
        (self.next_s < self.end_s).then(|| Duration::from_secs_f64(self.next_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_keep_the_rate() {
        for arrivals in [Arrivals::Poisson, Arrivals::Uniform] {
            let mut total = 0.0;
            for seed in 0..50 {
                let due: Vec<Duration> =
                    Schedule::new(2000.0, arrivals, Duration::from_secs(30), seed).collect();
                assert!(due.windows(2).all(|pair| pair[0] <= pair[1]));
                total += due.len() as f64;
            }
            // Four standard deviations of a Poisson count.
            assert!((total - 3_000_000.0).abs() < 4.0 * 3_000_000f64.sqrt(), "{arrivals:?}: {total}");
        }
    }

    /// A Poisson count varies as much as its mean; equal gaps do not vary.
    #[test]
    fn counts_vary_as_they_should() {
        let dispersion = |arrivals: Arrivals| {
            let count = |seed| Schedule::new(200.0, arrivals, Duration::from_secs(2), seed).count() as f64;
            let counts: Vec<f64> = (0..400).map(count).collect();
            let mean = counts.iter().sum::<f64>() / counts.len() as f64;
            counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64 / mean
        };
        let poisson = dispersion(Arrivals::Poisson);
        assert!((0.75..1.3).contains(&poisson), "{poisson}");
        assert!(dispersion(Arrivals::Uniform) < 0.01);
    }

    #[test]
    fn a_cut_schedule_ends_there() {
        let mut schedule = Schedule::new(100.0, Arrivals::Uniform, Duration::from_secs(10), 1);
        assert_eq!(schedule.by_ref().take(50).count(), 50);
        schedule.cut(Duration::from_millis(605));
        assert_eq!(schedule.count(), 10);
    }

    #[test]
    fn poisson_gaps_vary() {
        let due: Vec<f64> = Schedule::new(1000.0, Arrivals::Poisson, Duration::from_secs(10), 1)
            .map(|d| d.as_secs_f64())
            .collect();
        let long = due.windows(2).filter(|pair| pair[1] - pair[0] > 0.003).count() as f64 / due.len() as f64;
        // P(gap > 3 means) = e^-3 = 4.98 %.
        assert!((0.035..0.065).contains(&long), "{long}");
    }
}
