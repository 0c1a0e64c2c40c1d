//! Statements that the session answers itself.

use super::settings::Value;
use super::transaction::{Transaction, set_modes};
use super::{ReadSetting, Session};
use crate::error::ProxyError;
use crate::route::plan::{ConfigValue, Effect, How, SavepointVerb};
use crate::route::{Resolved, RoutedStatement};
use crate::wire::build::{self, INT4, INT8, TEXT};

/// A value of a row of ours.
enum Cell {
    Int4(i32),
    Int8(i64),
    Text(String),
}

/// Which protocol a local answer is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    Simple,
    Extended { binary: bool },
}

pub(super) fn in_progress(out: &mut Vec<u8>) {
    build::warning(out, "25001", "there is already a transaction in progress");
}

pub(super) fn begin_tag(text: &[u8]) -> &'static str {
    let starts = text.get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"start"));
    if starts { "START TRANSACTION" } else { "BEGIN" }
}

type Table = (Vec<(&'static str, u32)>, Vec<Vec<Cell>>, String);

impl Session {
    /// The replies to a statement that needs no server (without ReadyForQuery); `None`: a server must run it.
    pub(super) fn local(
        &mut self,
        statement: &RoutedStatement,
        text: &[u8],
        by: By,
    ) -> Result<Option<Vec<u8>>, ProxyError> {
        let enlisted = self.servers.iter().any(|s| s.enlisted);
        let before = self.settings.clone();
        let sql = || String::from_utf8_lossy(text).into_owned();
        let mut out = Vec::new();
        match &statement.plan.effect {
            Effect::Begin { read_only } if !enlisted || self.says_nothing_to_several(&sql()) => {
                if self.transaction.is_some() {
                    in_progress(&mut out);
                    self.begun_again(&sql(), *read_only)?;
                } else {
                    let read_only = *read_only == Some(true);
                    self.transaction =
                        Some(Box::new(Transaction::new(&sql(), read_only, self.settings.clone())));
                }
                build::command_complete(&mut out, begin_tag(text));
            }
            Effect::Commit { chain } | Effect::Rollback { chain } if !enlisted => {
                let rollback = matches!(statement.plan.effect, Effect::Rollback { .. });
                match self.transaction.take() {
                    None if *chain => {
                        let verb = if rollback { "ROLLBACK" } else { "COMMIT" };
                        return Err(ProxyError::new(
                            "25P01",
                            format!("{verb} AND CHAIN can only be used in transaction blocks"),
                        ));
                    }
                    None => {
                        build::warning(&mut out, "25P01", "there is no transaction in progress");
                        build::command_complete(&mut out, if rollback { "ROLLBACK" } else { "COMMIT" });
                    }
                    Some(transaction) => {
                        if let Some(shard) = transaction.untold.filter(|_| !rollback) {
                            self.transaction = Some(transaction);
                            self.end_transaction(false);
                            return Err(ProxyError::participant_lost(shard));
                        }
                        let committed = !rollback && !transaction.failed;
                        let next = chain.then(|| transaction.next(committed));
                        self.transaction = Some(transaction);
                        self.end_transaction(committed);
                        if let Some(mut next) = next {
                            next.settings_before = self.settings.clone();
                            self.transaction = Some(Box::new(next));
                        }
                        build::command_complete(&mut out, if committed { "COMMIT" } else { "ROLLBACK" });
                    }
                }
            }
            Effect::Savepoint(verb, name) if !enlisted && self.transaction.is_some() => {
                self.local_savepoint(*verb, name, &sql())?;
                let tag = match verb {
                    SavepointVerb::Savepoint => "SAVEPOINT",
                    SavepointVerb::Release => "RELEASE",
                    SavepointVerb::RollbackTo => "ROLLBACK",
                };
                build::command_complete(&mut out, tag);
            }
            effect @ Effect::SetConfig { .. } => return self.local_config(effect, by),
            Effect::Set { name, value, .. } if crate::route::is_own_setting(name) => {
                self.set_proxy(name, value.as_deref().map(|v| Value::Sql(v.to_owned())).as_ref())?;
                build::command_complete(&mut out, if value.is_some() { "SET" } else { reset_tag(text) });
            }
            Effect::Set { name, value: None, local: false }
                if !enlisted
                    && (self.settings.get(name).is_some() || self.startup_settings.get(name).is_some()) =>
            {
                self.hold_setting(name, None, false, &sql())?;
                self.change_setting(name, None)?;
                build::command_complete(&mut out, reset_tag(text));
                self.report_restored(&before, &mut out);
            }
            Effect::Set { name, value, local } if !enlisted && self.transaction.is_some() => {
                let value = value.clone().map(Value::Sql);
                self.hold_setting(name, value.as_ref(), *local, &sql())?;
                if *local {
                    let value = value.clone().or_else(|| self.startup_settings.get(name).cloned());
                    self.change_local(name, value)?;
                } else {
                    self.change_setting(name, value.clone())?;
                }
                build::command_complete(&mut out, if value.is_some() { "SET" } else { reset_tag(text) });
            }
            Effect::ResetAll if !enlisted => {
                if self.transaction.is_some() {
                    // The server's RESET ALL forgets what the session began with.
                    let none = self.space.settings.borrow().none();
                    self.hold(&format!(
                        "RESET ALL;{}",
                        super::settings::replay(&none, &self.startup_settings)
                    ))?;
                }
                self.reset_all()?;
                build::command_complete(&mut out, "RESET");
                self.report_restored(&before, &mut out);
            }
            Effect::SetTransaction { read_only } if !enlisted && self.transaction.is_some() => {
                self.hold(&sql())?;
                if let (Some(transaction), Some(read_only)) = (&mut self.transaction, read_only) {
                    transaction.read_only = *read_only;
                }
                build::command_complete(&mut out, "SET");
            }
            Effect::ShowProxy(_) | Effect::ExplainRoute(_) => {
                let (columns, rows, tag) = self.table(&statement.plan.effect)?;
                // The simple protocol describes every result; the extended one only when asked.
                if matches!(by, By::Simple) {
                    describe(&mut out, &columns, false);
                }
                let binary = matches!(by, By::Extended { binary: true });
                for row in &rows {
                    data_row(&mut out, row, binary);
                }
                build::command_complete(&mut out, &tag);
            }
            Effect::Discard(what) => {
                if !self.discard(what)? {
                    return Ok(None);
                }
                build::command_complete(&mut out, &format!("DISCARD {}", what.to_ascii_uppercase()));
                self.report_restored(&before, &mut out);
            }
            Effect::Deallocate(name) => {
                self.deallocate(name.as_deref())?;
                build::command_complete(
                    &mut out,
                    if name.is_some() { "DEALLOCATE" } else { "DEALLOCATE ALL" },
                );
            }
            _ => return Ok(None),
        }
        Ok(Some(out))
    }

    /// A BEGIN without modes, within a block that several servers take part in: they need not hear it.
    fn says_nothing_to_several(&self, text: &str) -> bool {
        let has_modes = || set_modes(text, self.routing().standard_conforming_strings).is_some();
        self.transaction.is_some() && self.has_several() && !has_modes()
    }

    /// BEGIN within a block sets the block's modes, for servers that join later, too.
    pub(super) fn begun_again(&mut self, text: &str, read_only: Option<bool>) -> Result<(), ProxyError> {
        let set = set_modes(text, self.routing().standard_conforming_strings);
        set.map_or(Ok(()), |set| self.hold(&set))?;
        if let (Some(transaction), Some(read_only)) = (&mut self.transaction, read_only) {
            transaction.read_only = read_only;
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, sql: &str) -> Result<(), ProxyError> {
        let held = self.transaction.as_mut().is_none_or(|transaction| transaction.hold(sql));
        if held { Ok(()) } else { Err(too_much_held()) }
    }

    pub(super) fn local_savepoint(
        &mut self,
        verb: SavepointVerb,
        name: &str,
        sql: &str,
    ) -> Result<(), ProxyError> {
        let settings = (self.settings.clone(), self.local_settings.clone());
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let missing = || ProxyError::new("3B001", format!("savepoint \"{name}\" does not exist"));
        match verb {
            SavepointVerb::Savepoint if !transaction.savepoint(name, sql, settings) => Err(too_much_held()),
            SavepointVerb::Release => {
                let released = transaction.release(name, sql);
                self.running.released_to(transaction.depth());
                if released { Ok(()) } else { Err(missing()) }
            }
            SavepointVerb::RollbackTo => {
                (self.settings, self.local_settings) = transaction.rollback_to(name).ok_or_else(missing)?;
                self.running.rolled_back_to(transaction.depth());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// `shard.target` and `shard.read`, which no server ever hears of.
    pub(super) fn set_proxy(&mut self, name: &str, value: Option<&Value>) -> Result<(), ProxyError> {
        let value = value.map(Value::plain).unwrap_or_default();
        let invalid = |hint: &str| {
            ProxyError::new("22023", format!("invalid value for parameter \"{name}\": \"{value}\""))
                .hint(hint)
        };
        match name {
            "shard.target" if value.is_empty() || value.eq_ignore_ascii_case("default") => self.target = None,
            "shard.target" => {
                let number = value.parse::<u16>().ok();
                let state = self.worker.state();
                let position = number.and_then(|n| state.position(shard_config::ShardId(n)));
                let position = position.filter(|at| state.shards.get(*at).is_some_and(|s| s.is_member()));
                drop(state);
                self.target =
                    Some(position.ok_or_else(|| invalid("Give the number of a shard, or '' for none."))?);
            }
            "shard.read" => {
                self.read = match value.to_ascii_lowercase().as_str() {
                    "primary" => ReadSetting::Primary,
                    "replica" => ReadSetting::Replica,
                    "" | "default" => ReadSetting::Policy,
                    _ => {
                        return Err(invalid(
                            "Give 'primary' or 'replica', or '' for what the proxy is configured to.",
                        ));
                    }
                };
            }
            _ => {
                return Err(ProxyError::new(
                    "42704",
                    format!("unrecognized configuration parameter \"{name}\""),
                )
                .hint("The proxy's own are shard.key, shard.target and shard.read."));
            }
        }
        Ok(())
    }

    fn discard(&mut self, what: &str) -> Result<bool, ProxyError> {
        if !what.eq_ignore_ascii_case("all") {
            if what.eq_ignore_ascii_case("sequences") {
                self.current = super::current::Current::default();
            }
            // Sequences, temporary objects and plans live in a server only for a pinned session.
            return Ok(self.pinned.is_none());
        }
        if self.transaction.is_some() || self.servers.iter().any(|s| s.enlisted) {
            return Err(ProxyError::new("25001", "DISCARD ALL cannot run inside a transaction block"));
        }
        self.extended = None;
        self.current = super::current::Current::default();
        self.settings = self.startup_settings.clone();
        self.local_settings = None;
        self.target = None;
        self.read = ReadSetting::Policy;
        self.unpin();
        Ok(true)
    }

    /// The server that the session was pinned to holds its temporary tables and locks: it is closed, not pooled.
    fn unpin(&mut self) {
        if self.pinned.take().is_some() {
            if let Some(server) = self.servers.first_mut() {
                server.dirty = true;
            }
            self.has_temp = false;
            self.info.pinned.set(None);
            self.end_transaction(true);
        }
    }

    fn deallocate(&mut self, name: Option<&str>) -> Result<(), ProxyError> {
        let extended = self.extended.get_or_insert_default();
        match name {
            None => extended.statements.clear(),
            Some(name) => {
                if extended.statements.remove(name.as_bytes()).is_none() {
                    return Err(ProxyError::new(
                        "26000",
                        format!("prepared statement \"{name}\" does not exist"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn table(&self, effect: &Effect) -> Result<Table, ProxyError> {
        let state = self.worker.state();
        match effect {
            Effect::ShowProxy(what) => match what.trim().trim_start_matches("shard.") {
                "map" => {
                    let epoch = state.map.epoch() as i64;
                    let row = |(from, to, shard): (u16, u16, shard_config::ShardId)| {
                        vec![
                            Cell::Int4(from.into()),
                            Cell::Int4(to.into()),
                            Cell::Int4(shard.0.into()),
                            Cell::Int8(epoch),
                            Cell::Text(overrides(&state.map, from..=to)),
                        ]
                    };
                    let columns = vec![
                        ("bucket_from", INT4),
                        ("bucket_to", INT4),
                        ("shard", INT4),
                        ("epoch", INT8),
                        ("overrides", TEXT),
                    ];
                    Ok((columns, state.map.ranges().into_iter().map(row).collect(), "SHOW".to_owned()))
                }
                "epoch" => Ok((
                    vec![("epoch", INT8)],
                    vec![vec![Cell::Int8(state.map.epoch() as i64)]],
                    "SHOW".to_owned(),
                )),
                "target" => {
                    let target = self.target.and_then(|at| state.shards.get(at)).map(|s| s.id.0.to_string());
                    Ok((
                        vec![("shard.target", TEXT)],
                        vec![vec![Cell::Text(target.unwrap_or_default())]],
                        "SHOW".to_owned(),
                    ))
                }
                "key" => {
                    let key = self.routing().key.as_deref().unwrap_or_default().to_owned();
                    Ok((vec![("shard.key", TEXT)], vec![vec![Cell::Text(key)]], "SHOW".to_owned()))
                }
                "read" => {
                    let read = match self.read {
                        ReadSetting::Policy => "",
                        ReadSetting::Primary => "primary",
                        ReadSetting::Replica => "replica",
                    };
                    Ok((
                        vec![("shard.read", TEXT)],
                        vec![vec![Cell::Text(read.to_owned())]],
                        "SHOW".to_owned(),
                    ))
                }
                other => Err(ProxyError::new(
                    "42704",
                    format!("unrecognized configuration parameter \"shard.{other}\""),
                )
                .hint("SHOW shard.map, shard.epoch, shard.key, shard.target or shard.read.")),
            },
            Effect::SetConfig { value: ConfigValue::Text(value), .. } => {
                let row = vec![Cell::Text(value.clone())];
                Ok((vec![("set_config", TEXT)], vec![row], "SELECT".to_owned()))
            }
            Effect::ExplainRoute(sql) => {
                drop(state);
                Ok((vec![("ROUTE", TEXT)], self.explain(sql), "EXPLAIN".to_owned()))
            }
            _ => Err(ProxyError::internal("no table for this statement")),
        }
    }

    fn explain(&self, sql: &str) -> Vec<Vec<Cell>> {
        use super::dispatch::Destination;
        let sql = match self.restricted(sql.as_bytes()) {
            Ok(Some(text)) => String::from_utf8_lossy(&text).into_owned(),
            Ok(None) => sql.to_owned(),
            Err(error) => return vec![vec![Cell::Text(format!("refused: {error}"))]],
        };
        let routed = self.with_router(|router, context, _| router.simple(context, sql.as_bytes()));
        let mut lines = Vec::new();
        for statement in &routed.statements {
            lines.extend(statement.plan.evidence.iter().cloned());
            let params =
                crate::route::NoParams { client_encoding_is_utf8: self.routing().client_encoding_is_utf8 };
            let state = self.worker.state();
            let id = |at: usize| state.shards.get(at).map_or(0, |s| s.id.0);
            let destination = self.destination(statement, sql.as_bytes(), &params);
            let moves = self.explain_moves(statement, sql.as_bytes(), &params, &destination);
            lines.push(match destination {
                Destination::Shard(place) => match (place.keyed, place.bucket(&state)) {
                    (true, Some(bucket)) => format!("shard {} (bucket {})", id(place.shard), bucket.get()),
                    (true, None) => format!("shard {}", id(place.shard)),
                    (false, _) => format!("shard {} (no key)", id(place.shard)),
                },
                Destination::Multi(Resolved::Scatter { how, shards }) => {
                    let which = shards.as_ref().map_or("all shards".to_owned(), |shards| {
                        let ids: Vec<String> = shards.iter().map(ToString::to_string).collect();
                        format!("shards {}", ids.join(", "))
                    });
                    match how {
                        How::Each => format!("{which}, each for its own rows"),
                        How::Gather => format!("{which}, gathered"),
                        How::Apply => format!("{which}, done to copies first"),
                    }
                }
                Destination::Multi(Resolved::Drawn) => {
                    "the default shard, with the numbers drawn for this session".to_owned()
                }
                Destination::Multi(_) => "several shards".to_owned(),
                Destination::Refused(error) => format!("refused: {error}"),
            });
            lines.extend(moves);
        }
        lines.into_iter().map(|line| vec![Cell::Text(line)]).collect()
    }

    /// RowDescription of what `local` will answer; `None`: it returns no rows.
    pub(super) fn local_description(&self, effect: &Effect, binary: bool) -> Option<Vec<u8>> {
        let (columns, _, _) = self.table(effect).ok()?;
        let mut out = Vec::new();
        describe(&mut out, &columns, binary);
        Some(out)
    }
}

/// Tenants of these buckets that live elsewhere: `[[hash, shard], ...]`, empty if there are none.
pub(crate) fn overrides(map: &shard_config::ShardMap, buckets: std::ops::RangeInclusive<u16>) -> String {
    let all = map.overrides().iter().filter(|(hash, _)| buckets.contains(&hash.bucket(map.buckets()).get()));
    let list: Vec<String> = all.map(|(hash, shard)| format!("[{hash},{shard}]")).collect();
    if list.is_empty() { String::new() } else { format!("[{}]", list.join(",")) }
}

fn too_much_held() -> ProxyError {
    ProxyError::new("54000", "too many statements before the first one that needs a shard")
}

/// RESET, or SET ... TO DEFAULT.
pub(super) fn reset_tag(text: &[u8]) -> &'static str {
    if text.get(..3).is_some_and(|word| word.eq_ignore_ascii_case(b"set")) { "SET" } else { "RESET" }
}

fn describe(out: &mut Vec<u8>, columns: &[(&'static str, u32)], binary: bool) {
    let start = out.len();
    build::row_description(out, columns);
    if binary {
        // The format code is the last field of each column.
        let mut at = start + 7;
        for (name, _) in columns {
            at += name.len() + 1 + 18;
            out[at - 1] = 1;
        }
    }
}

fn data_row(out: &mut Vec<u8>, row: &[Cell], binary: bool) {
    let start = build::begin(out, b'D');
    out.extend_from_slice(&(row.len() as u16).to_be_bytes());
    let mut value = |bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    for cell in row {
        match cell {
            Cell::Int4(n) if binary => value(&n.to_be_bytes()),
            Cell::Int8(n) if binary => value(&n.to_be_bytes()),
            Cell::Int4(n) => value(n.to_string().as_bytes()),
            Cell::Int8(n) => value(n.to_string().as_bytes()),
            Cell::Text(text) => value(text.as_bytes()),
        }
    }
    build::end(out, start);
}
