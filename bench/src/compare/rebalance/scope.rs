//! What moves, as plans and records of moves have it: ranges of buckets, or single tenants by their hash. PURE.
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// As documented.
const BUCKETS: i64 = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    ranges: Vec<(i64, i64)>,
    hashes: Vec<i64>,
}

impl Scope {
    pub fn buckets((first, last): (u16, u16)) -> Scope {
        Scope { ranges: vec![(first.into(), last.into())], hashes: Vec::new() }
    }

    pub fn from_json(value: &Value) -> Result<Scope> {
        // What there is none of is left out.
        let list = |name: &str| value[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let range = |pair: &Value| Some((pair[0].as_i64()?, pair[1].as_i64()?));
        let ranges: Option<Vec<_>> = list("ranges").iter().map(range).collect();
        let hashes: Option<Vec<_>> = list("hashes").iter().map(Value::as_i64).collect();
        let (ranges, hashes) = ranges.zip(hashes).with_context(|| format!("a scope has numbers: {value}"))?;
        ensure!(!ranges.is_empty() || !hashes.is_empty(), "a scope has ranges or hashes: {value}");
        Ok(Scope { ranges, hashes })
    }

    /// Of every step of a saved plan.
    pub fn of_plan(plan: &Value) -> Result<Vec<Scope>> {
        let steps = plan["steps"].as_array().context("a plan has steps")?;
        steps.iter().map(|step| Scope::from_json(&step["scope"])).collect()
    }

    /// The hash of its (first) tenant, if it has no buckets.
    pub fn only_tenant(&self) -> Option<i64> {
        self.hashes.first().copied().filter(|_| self.ranges.is_empty())
    }

    /// Whether rows of the tenant with this hash are in it.
    pub fn has(&self, hash: i64) -> bool {
        // Two's complement, as `&` in SQL: of negative hashes, too.
        let bucket = hash & (BUCKETS - 1);
        self.hashes.contains(&hash)
            || self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_says_what_moves() {
        let plan = json!({ "format": 1, "epoch": 3, "steps": [
            { "source": 1, "target": 3, "scope": { "ranges": [[0, 7], [4095, 4095]] } },
            { "source": 1, "target": 4, "scope": { "hashes": [-9] } },
        ]});
        let scopes = Scope::of_plan(&plan).unwrap();
        let who = |hash: i64| scopes.iter().map(|scope| scope.has(hash)).collect::<Vec<_>>();
        assert_eq!(who(7), [true, false]);
        assert_eq!(who(4096 + 8), [false, false]);
        // -1 & 4095 is the last bucket; -9 is in bucket 4087 and moves as a tenant.
        assert_eq!((who(-1), who(-9)), (vec![true, false], vec![false, true]));
        assert_eq!(scopes.iter().map(Scope::only_tenant).collect::<Vec<_>>(), [None, Some(-9)]);
        for bad in
            [json!({}), json!({"steps": [{"scope": {}}]}), json!({"steps": [{"scope": {"ranges": [[1]]}}]})]
        {
            assert!(Scope::of_plan(&bad).is_err(), "{bad}");
        }
    }
}
