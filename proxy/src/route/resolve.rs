//! A plan and the values of one execution -> shards. Allocates only for a split INSERT and for refusals.

use std::sync::Arc;

use shard_config::{KeyHash, ShardId, ShardMap};
use smallvec::SmallVec;

use super::arrays;
use super::lex::Literal;
use super::plan::{Broadcast, CopyIn, How, KeyPlace, KeyRef, Plan, Refusal, Route, SplitInsert};
use super::values::{KeyReader, KeyValue, Params};

/// Where one execution of a statement goes.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// `key` is `None` when several keys of this shard are involved.
    One {
        shard: ShardId,
        key: Option<KeyHash>,
    },
    /// Any shard; within a transaction the one that is enlisted already.
    Any,
    Default,
    All(Broadcast),
    SplitInsert(SplitRows),
    CopyIn(Arc<CopyIn>),
    /// These shards, or all when `shards` is `None`.
    Scatter {
        how: How,
        shards: Option<SmallVec<[ShardId; 4]>>,
    },
    /// FETCH, MOVE or CLOSE of a cursor over several shards. The session knows of it; a text alone never says so.
    Cursor,
    /// currval() and lastval() of what the proxy drew: as above.
    Drawn,
    Session,
    Refuse(Refusal),
}

/// The rows of one INSERT and where each belongs; they are on at least two shards, or have values to be drawn.
#[derive(Debug, Clone)]
pub struct SplitRows {
    pub insert: Arc<SplitInsert>,
    /// One for each of `insert.rows`, in order.
    pub shards: Box<[ShardId]>,
    pub keys: Box<[Option<KeyHash>]>,
}

/// `text` is the statement's own text (`RoutedStatement::text` of the message), the one `literals` point into.
pub fn resolve<P: Params + ?Sized>(
    plan: &Plan,
    literals: &[Literal],
    text: &[u8],
    params: &P,
    map: &ShardMap,
) -> Resolved {
    let values = Values { literals, text, params, map };
    let result = match &plan.route {
        Route::Key(keys) => match (plan.straddle, values.single(keys)) {
            (Some(how), Err(refusal)) if is_straddle(&refusal) => values.spread(keys, how),
            (_, result) => result,
        },
        Route::Scatter(how) => Ok(Resolved::Scatter { how: *how, shards: None }),
        Route::SplitInsert(insert) => values.split(insert),
        Route::Any => Ok(Resolved::Any),
        Route::Default => Ok(Resolved::Default),
        Route::Session => Ok(Resolved::Session),
        Route::All(kind) => Ok(Resolved::All(*kind)),
        Route::CopyIn(copy) => Ok(Resolved::CopyIn(copy.clone())),
        Route::Refuse(refusal) => Ok(Resolved::Refuse(refusal.clone())),
    };
    result.unwrap_or_else(Resolved::Refuse)
}

/// Every key of an execution that is for some keys only; `false`: it is not, or a key cannot be read. Asked only while
/// something moves.
pub fn visit_keys<P: Params + ?Sized>(
    plan: &Plan,
    literals: &[Literal],
    text: &[u8],
    params: &P,
    map: &ShardMap,
    found: &mut dyn FnMut(KeyHash),
) -> bool {
    let values = Values { literals, text, params, map };
    let mut at = |value: KeyValue| {
        if let KeyValue::At(hash) = value {
            found(hash);
        }
        Ok(())
    };
    match &plan.route {
        Route::Key(keys) => keys.iter().all(|key| values.visit(key, &key.place, &mut at).is_ok()),
        Route::SplitInsert(insert) => {
            insert.rows.iter().all(|row| values.visit(&row.key, &row.key.place, &mut at).is_ok())
        }
        _ => false,
    }
}

struct Values<'a, P: ?Sized> {
    literals: &'a [Literal],
    text: &'a [u8],
    params: &'a P,
    map: &'a ShardMap,
}

/// The shard that all keys seen so far agree on.
#[derive(Default)]
struct Agreement {
    shard: Option<ShardId>,
    key: Option<KeyHash>,
    several_keys: bool,
}

impl Agreement {
    fn add(&mut self, value: KeyValue, map: &ShardMap, batch: bool) -> Result<(), Refusal> {
        let KeyValue::At(hash) = value else {
            return if batch { Err(null_key()) } else { Ok(()) };
        };
        if self.key == Some(hash) {
            return Ok(());
        }
        let shard = map.shard_of_hash(hash);
        match self.shard {
            None => {
                self.shard = Some(shard);
                self.key = Some(hash);
                Ok(())
            }
            Some(first) if first == shard => {
                self.several_keys = true;
                Ok(())
            }
            Some(_) => Err(straddles(map, batch)),
        }
    }

    /// `None`: no key at all, or only keys that match nothing.
    fn resolved(&self) -> Option<Resolved> {
        self.shard.map(|shard| Resolved::One { shard, key: self.key.filter(|_| !self.several_keys) })
    }
}

impl<P: Params + ?Sized> Values<'_, P> {
    fn single(&self, keys: &[KeyRef]) -> Result<Resolved, Refusal> {
        let mut agreement = Agreement::default();
        for key in keys {
            self.visit(key, &key.place, &mut |value| agreement.add(value, self.map, key.batch))?;
        }
        // Rows that no shard has, or a NULL key that the server will not store: the same answer everywhere, but
        // always from one place.
        Ok(agreement.resolved().unwrap_or(Resolved::Default))
    }

    /// Every shard that one of the keys is on.
    fn spread(&self, keys: &[KeyRef], how: How) -> Result<Resolved, Refusal> {
        let mut shards: SmallVec<[ShardId; 4]> = SmallVec::new();
        for key in keys {
            self.visit(key, &key.place, &mut |value| {
                if let KeyValue::At(hash) = value {
                    let shard = self.map.shard_of_hash(hash);
                    if !shards.contains(&shard) {
                        shards.push(shard);
                    }
                }
                Ok(())
            })?;
        }
        shards.sort_unstable();
        Ok(Resolved::Scatter { how, shards: Some(shards) })
    }

    fn split(&self, insert: &Arc<SplitInsert>) -> Result<Resolved, Refusal> {
        let mut agreement = Agreement::default();
        let mut shards = Vec::new();
        let mut keys = Vec::new();
        let mut agreed = true;
        for row in &insert.rows {
            let mut of_row = Agreement::default();
            self.visit(&row.key, &row.key.place, &mut |value| of_row.add(value, self.map, false))?;
            let Some(shard) = of_row.shard else {
                return Err(Refusal::new(
                    "23502",
                    "null value in the sharding key of a row of this INSERT violates not-null constraint",
                    "Every row needs its key.",
                ));
            };
            if let Some(hash) = of_row.key {
                agreed &= agreement.add(KeyValue::At(hash), self.map, false).is_ok();
            }
            shards.push(shard);
            keys.push(of_row.key);
        }
        if agreed
            && insert.draws.is_none()
            && let Some(one) = agreement.resolved()
        {
            return Ok(one);
        }
        Ok(Resolved::SplitInsert(SplitRows {
            insert: insert.clone(),
            shards: shards.into(),
            keys: keys.into(),
        }))
    }

    fn visit(
        &self,
        key: &KeyRef,
        place: &KeyPlace,
        found: &mut dyn FnMut(KeyValue) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let reader = KeyReader { key_type: key.key_type, utf8: self.params.client_encoding_is_utf8() };
        match place {
            KeyPlace::Literal(n) => {
                let literal = self.literal(*n)?;
                found(reader.literal(literal, self.text)?)
            }
            KeyPlace::Parameter(n) => found(reader.parameter(self.params.get(*n), self.params.type_oid(*n))?),
            KeyPlace::ParameterArray(n) => {
                arrays::parameter_array(reader, self.params.get(*n), key.batch, found)
            }
            KeyPlace::LiteralArray(n) => {
                let literal = self.literal(*n)?;
                let mut scratch = smallvec::SmallVec::new();
                let value = super::values::string_value(literal, literal.source(self.text), &mut scratch)
                    .ok_or_else(unknown_literal)?;
                arrays::text_array(reader, value, key.batch, found)
            }
            KeyPlace::OneOf(places) => places.iter().try_for_each(|place| self.visit(key, place, found)),
            KeyPlace::Null => found(KeyValue::Nowhere),
            KeyPlace::Symbol => Err(unknown_literal()),
        }
    }

    fn literal(&self, n: u16) -> Result<&Literal, Refusal> {
        self.literals.get(usize::from(n)).ok_or_else(unknown_literal)
    }
}

/// Are all values of this place constants that are this value?
pub(super) fn is_constant(place: &KeyPlace, literals: &[Literal], text: &[u8], value: &str) -> bool {
    match place {
        KeyPlace::Literal(n) => literals.get(usize::from(*n)).is_some_and(|literal| {
            let source = literal.source(text);
            let mut scratch = SmallVec::new();
            let found = match literal.kind {
                super::lex::LiteralKind::Integer | super::lex::LiteralKind::NegativeInteger => Some(source),
                _ => super::values::string_value(literal, source, &mut scratch),
            };
            found == Some(value.as_bytes())
        }),
        KeyPlace::OneOf(places) => places.iter().all(|place| is_constant(place, literals, text, value)),
        _ => false,
    }
}

const STRADDLES: &str = "the keys of this statement are on several shards";

fn is_straddle(refusal: &Refusal) -> bool {
    refusal.message == STRADDLES
}

fn straddles(map: &ShardMap, batch: bool) -> Refusal {
    if batch {
        return Refusal::new(
            "SP001",
            "the keys of this batch are on several shards",
            "Read SHOW shard.map again, split the batch by shard and send each part by itself.",
        )
        .detail(format!("epoch={}", map.epoch()));
    }
    Refusal::unsupported(STRADDLES, "Run it once for each key, or within one key's shard.")
        .detail(format!("epoch={}", map.epoch()))
}

fn null_key() -> Refusal {
    Refusal::new(
        "22004",
        "a key of this batch is NULL",
        "Every element of the key array of a registered function must be a key.",
    )
}

fn unknown_literal() -> Refusal {
    Refusal::unsupported("the key's constant could not be read", "Pass the key as a parameter.")
}
