//! Who pays whom, and the bytes of the request. No allocation per request: callers reuse the buffers.
use super::options::LoadArgs;
use super::seed::{Seed, Tenant};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::io::Write as _;

/// Zipf (exponent > 0) or uniform ranks by inversion of the cumulative weights.
pub struct Ranks {
    cumulative: Vec<f64>,
}

impl Ranks {
    pub fn new(count: usize, exponent: f64) -> Ranks {
        let mut sum = 0.0;
        let cumulative = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        Ranks { cumulative }
    }

    pub fn pick(&self, random: &mut SmallRng) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(1.0);
        let point = random.random::<f64>() * total;
        self.cumulative.partition_point(|sum| *sum <= point).min(self.cumulative.len().saturating_sub(1))
    }
}

/// One payment of a request, kept for the acknowledgement.
#[derive(Clone, Default)]
pub struct Item {
    pub key: String,
    pub done: bool,
}

pub struct Workload<'a> {
    seed: &'a Seed,
    tenants: Ranks,
    accounts: Ranks,
    random: SmallRng,
    hot_percent: u8,
    description: String,
    run: String,
    next: u64,
}

impl<'a> Workload<'a> {
    pub fn new(seed: &'a Seed, args: &LoadArgs, random_seed: u64) -> Workload<'a> {
        Workload {
            seed,
            tenants: Ranks::new((args.tenants as usize).min(seed.tenants.len()), args.zipf),
            accounts: Ranks::new(args.accounts as usize, args.zipf),
            random: SmallRng::seed_from_u64(random_seed),
            hot_percent: args.hot.unwrap_or(0),
            description: "x".repeat(args.payload as usize),
            // Keys never repeat between runs, also when the random choices are seeded.
            run: format!("{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff),
            next: 0,
        }
    }

    /// Fills `items` and `request` with a new request; returns the tenant's index.
    pub fn build(
        &mut self,
        batch: usize,
        host: &str,
        items: &mut Vec<Item>,
        scratch: &mut Vec<u8>,
        request: &mut Vec<u8>,
    ) -> usize {
        let hot = self.hot_percent > 0 && self.random.random_range(0..100) < self.hot_percent;
        let tenant_index = if hot { 0 } else { self.tenants.pick(&mut self.random) };
        let tenant = &self.seed.tenants[tenant_index];
        items.resize(batch, Item::default());
        scratch.clear();
        if batch == 1 {
            self.new_key(&mut items[0]);
            self.payment(tenant, hot, &items[0].key, false, scratch);
            http_post(request, "/v1/payments", host, &tenant.api_key, Some(&items[0].key), scratch);
        } else {
            scratch.extend_from_slice(b"{\"payments\":[");
            for (index, item) in items.iter_mut().enumerate() {
                if index > 0 {
                    scratch.push(b',');
                }
                self.new_key(item);
                self.payment(tenant, hot, &item.key, true, scratch);
            }
            scratch.extend_from_slice(b"]}");
            http_post(request, "/v1/payments/batch", host, &tenant.api_key, None, scratch);
        }
        tenant_index
    }

    fn new_key(&mut self, item: &mut Item) {
        use std::fmt::Write as _;
        self.next += 1;
        item.done = false;
        item.key.clear();
        let _ = write!(item.key, "load-{}-{}", self.run, self.next);
    }

    /// The reference repeats the key, so that the checker can tell a payment posted twice under one key.
    fn payment(&mut self, tenant: &Tenant, hot: bool, key: &str, with_key: bool, body: &mut Vec<u8>) {
        let wallets = tenant.wallets.len();
        let debit = if hot { 0 } else { self.accounts.pick(&mut self.random) % wallets };
        // Any other account; the step keeps it different from the debit account.
        let credit = (debit + 1 + self.random.random_range(0..wallets - 1)) % wallets;
        let minor = self.random.random_range(1..=99u32);
        if with_key {
            let _ = write!(body, "{{\"idempotency_key\":\"{key}\",");
        } else {
            body.push(b'{');
        }
        let _ = write!(
            body,
            "\"debit_account_id\":\"{}\",\"credit_account_id\":\"{}\",\"amount\":\"",
            tenant.wallets[debit], tenant.wallets[credit]
        );
        let _ = match tenant.exponent {
            0 => write!(body, "{minor}"),
            2 => write!(body, "0.{minor:02}"),
            _ => write!(body, "0.{minor:0width$}", width = tenant.exponent as usize),
        };
        let _ = write!(body, "\",\"currency\":\"{}\",\"reference\":\"{key}\"", tenant.currency);
        if !self.description.is_empty() {
            let _ = write!(body, ",\"description\":\"{}\"", self.description);
        }
        body.push(b'}');
    }
}

pub fn http_post(
    request: &mut Vec<u8>,
    path: &str,
    host: &str,
    bearer: &str,
    key: Option<&str>,
    body: &[u8],
) {
    request.clear();
    let _ = write!(
        request,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {bearer}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    if let Some(key) = key {
        let _ = write!(request, "Idempotency-Key: {key}\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_prefers_the_first_ranks_and_uniform_does_not() {
        let mut random = SmallRng::seed_from_u64(3);
        let mut share = |exponent: f64| {
            let ranks = Ranks::new(100, exponent);
            (0..20_000).filter(|_| ranks.pick(&mut random) == 0).count() as f64 / 20_000.0
        };
        assert!((0.005..0.016).contains(&share(0.0)));
        // 1 / H(100) = 0.193.
        assert!((0.17..0.22).contains(&share(1.0)));
    }

    #[test]
    fn every_rank_is_reached() {
        let mut random = SmallRng::seed_from_u64(3);
        let ranks = Ranks::new(3, 0.0);
        let mut seen = [false; 3];
        (0..200).for_each(|_| seen[ranks.pick(&mut random)] = true);
        assert_eq!(seen, [true; 3]);
    }
}
