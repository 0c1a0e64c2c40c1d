//! Plans by normalised text: set-associative, bounded in entries and bytes.
//!
//! The normalised text is the text itself with the cut literals left out; it is never built. A hit is verified by
//! comparing the gaps between the cut literals byte for byte, so a hash collision costs time and never misroutes.

use std::sync::Arc;

use super::lex::{Literal, Literals};
use super::plan::Plan;

const WAYS: usize = 8;
/// Longer statements are analysed every time.
pub const MAX_TEXT: usize = 32 * 1024;
/// Of all texts kept by one worker.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How much of the text a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Only on the normalised text.
    Shape,
    /// On every byte.
    Exact,
    /// Not worth keeping (a multi-row INSERT of constants).
    Never,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    context: u64,
    used: u32,
    exact: bool,
    text: Box<[u8]>,
    literals: Literals,
    /// `None`: texts of this shape are kept one by one, look for the exact text.
    plan: Option<Arc<Plan>>,
}

#[derive(Debug)]
pub struct PlanCache {
    slots: Vec<Option<Box<Entry>>>,
    sets: usize,
    clock: u32,
    bytes: usize,
    pub hits: u64,
    pub misses: u64,
}

impl PlanCache {
    pub fn new(capacity: usize) -> Self {
        let sets = (capacity / WAYS).max(1).next_power_of_two();
        let mut slots = Vec::new();
        slots.resize_with(sets * WAYS, || None);
        Self { slots, sets, clock: 0, bytes: 0, hits: 0, misses: 0 }
    }

    pub fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.bytes = 0;
    }

    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By shape, and by exact text if this shape asks for it.
    #[inline]
    pub fn get(&mut self, context: u64, text: &[u8], literals: &[Literal]) -> Option<Arc<Plan>> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let shape = shape_hash(context, text, literals);
        let found = self.find(shape, |e| !e.exact && e.context == context && same_shape(e, text, literals));
        let plan = match found.map(|e| e.plan.clone()) {
            Some(Some(plan)) => Some(plan),
            Some(None) => self.get_exact(context, text).map(|(plan, _)| plan),
            None => None,
        };
        if plan.is_some() {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        plan
    }

    /// By the whole text: for Parse messages, whose texts repeat to the byte.
    #[inline]
    pub fn get_exact(&mut self, context: u64, text: &[u8]) -> Option<(Arc<Plan>, &Literals)> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let hash = exact_hash(context, text);
        let entry = self.find(hash, |e| e.exact && e.context == context && *e.text == *text)?;
        entry.plan.clone().map(|plan| (plan, &entry.literals))
    }

    pub fn put(
        &mut self,
        context: u64,
        text: &[u8],
        literals: &Literals,
        plan: &Arc<Plan>,
        sharing: Sharing,
    ) {
        if text.len() > MAX_TEXT || sharing == Sharing::Never {
            return;
        }
        let shape = shape_hash(context, text, literals);
        match sharing {
            Sharing::Shape => self.insert(shape, context, text, literals, Some(plan.clone()), false),
            _ => {
                self.insert(shape, context, text, literals, None, false);
                self.put_exact(context, text, literals, plan);
            }
        }
    }

    pub fn put_exact(&mut self, context: u64, text: &[u8], literals: &Literals, plan: &Arc<Plan>) {
        if text.len() <= MAX_TEXT {
            self.insert(exact_hash(context, text), context, text, literals, Some(plan.clone()), true);
        }
    }

    fn set(&self, hash: u64) -> std::ops::Range<usize> {
        // The top bits: the folded multiply mixes them best.
        let first = (hash >> 40) as usize % self.sets * WAYS;
        first..first + WAYS
    }

    #[inline]
    fn find(&mut self, hash: u64, same: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        let range = self.set(hash);
        self.clock = self.clock.wrapping_add(1);
        let clock = self.clock;
        let entry = self.slots.get_mut(range)?.iter_mut().flatten().find(|e| e.hash == hash && same(e))?;
        entry.used = clock;
        Some(entry)
    }

    fn insert(
        &mut self,
        hash: u64,
        context: u64,
        text: &[u8],
        literals: &Literals,
        plan: Option<Arc<Plan>>,
        exact: bool,
    ) {
        let entry = Entry {
            hash,
            context,
            used: self.clock,
            exact,
            text: text.into(),
            literals: literals.clone(),
            plan,
        };
        if self.bytes + text.len() > MAX_BYTES {
            self.clear();
        }
        self.bytes += text.len();
        let clock = self.clock;
        let range = self.set(hash);
        let Some(ways) = self.slots.get_mut(range) else { return };
        let same = ways.iter().position(|slot| {
            slot.as_ref().is_some_and(|e| {
                e.hash == hash
                    && e.context == context
                    && e.exact == exact
                    && if exact { *e.text == *text } else { same_shape(e, text, literals) }
            })
        });
        // Least recently used; an empty slot is older than any.
        let victim = same.or_else(|| {
            (0..ways.len()).max_by_key(|i| match ways.get(*i) {
                Some(Some(e)) => u64::from(clock.wrapping_sub(e.used)),
                _ => u64::MAX,
            })
        });
        if let Some(slot) = victim.and_then(|i| ways.get_mut(i)) {
            if let Some(old) = slot.take() {
                self.bytes = self.bytes.saturating_sub(old.text.len());
            }
            *slot = Some(Box::new(entry));
        }
    }
}

/// Equal but for the cut literals, whose kinds must agree too.
fn same_shape(entry: &Entry, text: &[u8], literals: &[Literal]) -> bool {
    if entry.literals.len() != literals.len() {
        return false;
    }
    let (mut theirs, mut ours) = (0, 0);
    for (a, b) in entry.literals.iter().zip(literals) {
        if a.kind != b.kind || a.cut != b.cut {
            return false;
        }
        if a.cut {
            if entry.text.get(theirs..a.start as usize) != text.get(ours..b.start as usize) {
                return false;
            }
            theirs = a.end();
            ours = b.end();
        }
    }
    entry.text.get(theirs..) == text.get(ours..)
}

fn shape_hash(context: u64, text: &[u8], literals: &[Literal]) -> u64 {
    let mut state = context;
    let mut from = 0;
    for literal in literals.iter().filter(|l| l.cut) {
        state = hash_bytes(state, text.get(from..literal.start as usize).unwrap_or_default());
        state = fold(state, 0x9e37_79b9_7f4a_7c15 ^ literal.kind as u64);
        from = literal.end();
    }
    hash_bytes(state, text.get(from..).unwrap_or_default())
}

fn exact_hash(context: u64, text: &[u8]) -> u64 {
    hash_bytes(context ^ 0xa5a5_5a5a_0f0f_f0f0, text)
}

/// Folded multiplication, as in wyhash: 8 bytes a step. Not keyed: hits are verified, sets are bounded.
#[inline]
fn hash_bytes(mut state: u64, bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        if let Ok(word) = chunk.try_into() {
            state = fold(state, u64::from_le_bytes(word));
        }
    }
    let mut tail = [0u8; 8];
    let rest = chunks.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    fold(state ^ bytes.len() as u64, u64::from_le_bytes(tail))
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x2d35_8dcc_aa6c_78a5) * u128::from(b ^ 0x8bb8_4b93_962e_acc9);
    (product as u64) ^ (product >> 64) as u64
}
