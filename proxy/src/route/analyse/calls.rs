//! Function calls: what they do to the route (H9, H31).

use pg_raw_parse::nodes;
use shard_config::KeyType;

use super::expr::Place;
use super::ir::{Builder, Clock, KeyedCall, Result, family};
use super::names::worst;
use crate::catalog::{FunctionRoute, Volatility};
use crate::route::plan::{KeyPlace, KeyRef, Refusal};

impl Builder<'_> {
    pub(super) fn function(&mut self, call: &nodes::FuncCall, place: Place) -> Result<()> {
        for arg in call.args() {
            self.expression(arg, place)?;
        }
        for sort in call.agg_order().iter() {
            self.positional(sort.node(), place)?;
        }
        self.expression(call.agg_filter(), place)?;
        if let Some(window) = call.over() {
            self.window(window, place)?;
        }
        let (name, functions, builtin) = self.functions(call);
        let Some((volatility, route)) = worst(&functions) else {
            return self.unlisted(&name, call);
        };
        if call.over().is_none() && functions.iter().any(|f| f.aggregate) {
            self.aggregate(call, place.block);
        }
        self.note_order(call, &name, functions.iter().any(|f| f.aggregate));
        let bare = name.rsplit('.').next().unwrap_or_default();
        let clock = builtin && matches!(bare, "now" | "transaction_timestamp");
        if clock {
            self.note_clock(call.location, Clock::Call);
        }
        self.seen.user_code |= !builtin && volatility != Volatility::Immutable;
        match volatility {
            Volatility::Immutable => {}
            Volatility::Stable => {
                self.seen.unstable = Some(format!("function {name}"));
                self.seen.server_bound |= !builtin || !(clock || of_session(bare));
                // A user's STABLE function may call a VOLATILE one (H9): not for a replica.
                self.seen.volatile |= !builtin;
            }
            Volatility::Volatile => {
                self.seen.unstable = Some(format!("function {name}"));
                self.seen.volatile = true;
            }
        }
        if builtin && route == FunctionRoute::Local {
            return self.builtin(name.rsplit('.').next().unwrap_or_default());
        }
        match route {
            FunctionRoute::Local => Ok(()),
            FunctionRoute::DefaultShard => {
                self.seen.default = Some(format!("function {name}"));
                self.seen.default_function = true;
                let bare = name.rsplit('.').next().unwrap_or_default();
                self.seen.draws |= bare == "nextval";
                self.seen.other_default_function |= bare != "nextval" || !builtin;
                self.seen.session_lock |= is_session_lock(bare);
                self.seen.sequence_value |= reads_sequence(bare);
                self.seen.sets_sequence |= bare == "setval";
                Ok(())
            }
            FunctionRoute::Keyed { argument, array, key_type } => {
                self.keyed(&name, call, argument, array, key_type, place)
            }
            FunctionRoute::Opaque => Err(opaque(&name)),
        }
    }

    fn note_clock(&mut self, location: i32, clock: Clock) {
        self.seen.clock = true;
        match usize::try_from(location) {
            Ok(at) if self.views == 0 => {
                // The step of a recursive query is looked at several times.
                if !self.seen.clock_places.iter().any(|(known, _)| *known == at) {
                    self.seen.clock_places.push((at, clock));
                }
            }
            _ => self.seen.clock_elsewhere = true,
        }
    }

    pub(super) fn clock_word(&mut self, function: &nodes::SQLValueFunction) {
        use pg_raw_parse::raw::SQLValueFunctionOp as Op;
        match function.op {
            Op::SVFOP_CURRENT_TIMESTAMP => self.note_clock(function.location, Clock::Word("timestamptz")),
            Op::SVFOP_CURRENT_DATE => self.note_clock(function.location, Clock::Word("date")),
            Op::SVFOP_LOCALTIMESTAMP => self.note_clock(function.location, Clock::Word("timestamp")),
            Op::SVFOP_CURRENT_ROLE
            | Op::SVFOP_CURRENT_USER
            | Op::SVFOP_USER
            | Op::SVFOP_SESSION_USER
            | Op::SVFOP_CURRENT_CATALOG
            | Op::SVFOP_CURRENT_SCHEMA => {}
            _ => {
                self.seen.clock = true;
                self.seen.clock_elsewhere = true;
            }
        }
    }

    /// Not in the catalog: a cast written as a call, or a function that does not exist.
    fn unlisted(&mut self, name: &str, call: &nodes::FuncCall) -> Result<()> {
        let bare = name.strip_prefix("pg_catalog.").unwrap_or(name);
        let cast = matches!(
            bare,
            "uuid"
                | "int2"
                | "int4"
                | "int8"
                | "text"
                | "numeric"
                | "float4"
                | "float8"
                | "bool"
                | "date"
                | "json"
                | "jsonb"
                | "bytea"
                | "timestamp"
                | "timestamptz"
                | "interval"
                | "inet"
                | "cidr"
                | "macaddr"
                | "xml"
                | "bpchar"
                | "varchar"
                | "name"
                | "oid"
                | "regclass"
                | "time"
                | "timetz"
                | "money"
        );
        if cast && call.args().len() == 1 {
            self.seen.oids |= bare.starts_with("reg");
            return Ok(());
        }
        Err(Refusal::new(
            "42883",
            format!("function {name} with {} argument(s) does not exist", call.args().len()),
            "The proxy knows the functions that exist on the shards; one created around it is seen within a second.",
        )
        .at(self.position(call.location)))
    }

    /// Built-ins that touch more than their arguments.
    fn builtin(&mut self, name: &str) -> Result<()> {
        if runs_sql(name) {
            return Err(opaque(name));
        }
        if name == "set_config" {
            return Err(Refusal::unsupported(
                "set_config() within a query",
                "Use SET, or SELECT set_config('name', 'value', false) by itself with constants.",
            ));
        }
        self.seen.oids |= of_catalog(name);
        if of_default_shard(name) {
            self.seen.default = Some(format!("function {name}"));
            self.seen.default_function = true;
            self.seen.draws |= name == "nextval";
            self.seen.other_default_function |= name != "nextval";
            self.seen.session_lock |= is_session_lock(name);
            self.seen.sequence_value |= reads_sequence(name);
            self.seen.sets_sequence |= name == "setval";
        }
        Ok(())
    }

    fn keyed(
        &mut self,
        name: &str,
        call: &nodes::FuncCall,
        argument: usize,
        array: bool,
        key_type: KeyType,
        place: Place,
    ) -> Result<()> {
        let Some(node) = argument_at(call, argument) else { return Err(unbound_call(name, argument)) };
        if array {
            let value =
                self.array(node).filter(|v| v.family.is_none_or(|f| Some(f) == family(key_type.oid())));
            let Some(value) = value else { return Err(unbound_call(name, argument)) };
            self.evidence.push(format!("{name}: keys {}", describe(&value.place)));
            self.keys.push(KeyRef { key_type, place: value.place, batch: true });
            return Ok(());
        }
        if let Some(value) = self.value(node)
            && value.family.is_none_or(|f| Some(f) == family(key_type.oid()))
        {
            self.evidence.push(format!("{name}: key {}", describe(&value.place)));
            self.keys.push(KeyRef { key_type, place: value.place, batch: false });
            return Ok(());
        }
        match self.column_side(node) {
            Some((term, of)) if of == family(key_type.oid()) => {
                let call = KeyedCall { name: name.to_owned(), argument: term, key_type, scope: place.scope };
                self.blocks[place.block].calls.push(call);
                Ok(())
            }
            _ => Err(unbound_call(name, argument)),
        }
    }

    pub(super) fn window(&mut self, window: &nodes::WindowDef, place: Place) -> Result<()> {
        self.expressions(window.partition_clause(), place)?;
        for sort in window.order_clause().iter() {
            self.expression(sort.node(), place)?;
        }
        self.expression(window.start_offset(), place)?;
        self.expression(window.end_offset(), place)
    }
}

/// Positional, or by name when the names are numbered as the catalog has no argument names: only positional.
fn argument_at(call: &nodes::FuncCall, argument: usize) -> Option<pg_raw_parse::Node<'_>> {
    let named = |n: &pg_raw_parse::Node<'_>| matches!(n, pg_raw_parse::Node::NamedArgExpr(_));
    call.args().get(argument).filter(|node| !named(node))
}

pub(super) fn describe(place: &KeyPlace) -> String {
    match place {
        KeyPlace::Literal(n) => format!("constant {}", n + 1),
        KeyPlace::Parameter(n) => format!("${}", n + 1),
        KeyPlace::ParameterArray(n) => format!("any of array ${}", n + 1),
        KeyPlace::LiteralArray(n) => format!("any of array constant {}", n + 1),
        KeyPlace::OneOf(places) => {
            let places: Vec<String> = places.iter().take(8).map(describe).collect();
            format!("one of ({}{})", places.join(", "), if places.len() == 8 { ", ..." } else { "" })
        }
        KeyPlace::Null => "NULL".to_owned(),
        KeyPlace::Symbol => "each key".to_owned(),
    }
}

pub(super) fn opaque(name: &str) -> Refusal {
    let text = format!("function {name} may touch any table, so it cannot be routed");
    if name.starts_with("shard_catalog.") {
        return Refusal::unsupported(
            text,
            "It is for the shard that keeps the shard catalog (shardctl catalog says which): SET shard.target = 'n', then say the same again.",
        );
    }
    Refusal::unsupported(
        text,
        "Declare it in the configuration: [[function]] name=\"...\" route=\"key\", \"key_array\", \"local\" or \"default\".",
    )
}

fn unbound_call(name: &str, argument: usize) -> Refusal {
    Refusal::unsupported(
        format!(
            "argument {} of function {name} is its key, and its value is not known before execution",
            argument + 1
        ),
        "Pass the key (or the array of keys) by position, as a parameter or a constant.",
    )
}

/// STABLE built-ins that depend on their arguments and on settings, which are the session's on every server.
fn of_session(name: &str) -> bool {
    matches!(
        name,
        "date_trunc"
            | "date_part"
            | "extract"
            | "age"
            | "timezone"
            | "timestamptz"
            | "timestamp"
            | "date"
            | "time"
            | "timetz"
            | "to_char"
            | "to_date"
            | "to_timestamp"
            | "to_number"
            | "make_timestamptz"
            | "date_bin"
            | "concat"
            | "concat_ws"
            | "format"
            | "array_to_string"
            | "string_to_array"
            | "quote_literal"
            | "quote_nullable"
            | "to_json"
            | "to_jsonb"
            | "row_to_json"
            | "array_to_json"
            | "json_build_object"
            | "json_build_array"
            | "jsonb_build_object"
            | "jsonb_build_array"
            | "json_object"
            | "json_agg"
            | "jsonb_agg"
            | "json_object_agg"
            | "jsonb_object_agg"
            | "generate_series"
            | "overlaps"
            | "current_setting"
            | "text"
            | "lower"
            | "upper"
            | "btrim"
            | "substring"
            | "length"
            | "current_user"
            | "session_user"
            | "current_database"
            | "current_schema"
    )
}

/// Built-ins that run SQL given as text or read tables given by name.
fn runs_sql(name: &str) -> bool {
    matches!(
        name,
        "query_to_xml"
            | "query_to_xmlschema"
            | "query_to_xml_and_xmlschema"
            | "table_to_xml"
            | "table_to_xmlschema"
            | "table_to_xml_and_xmlschema"
            | "schema_to_xml"
            | "schema_to_xmlschema"
            | "schema_to_xml_and_xmlschema"
            | "database_to_xml"
            | "database_to_xmlschema"
            | "database_to_xml_and_xmlschema"
            | "cursor_to_xml"
            | "cursor_to_xmlschema"
            | "ts_stat"
            | "ts_rewrite"
    )
}

/// Built-ins about state that one server holds: sequences, locks, backends, WAL, large objects, sizes.
fn of_default_shard(name: &str) -> bool {
    const PREFIXES: [&str; 23] = [
        "pg_advisory_",
        "pg_try_advisory_",
        "pg_stat_",
        "pg_current_",
        "pg_last_",
        "pg_wal",
        "pg_switch_",
        "pg_create_",
        "pg_drop_",
        "pg_replication_",
        "pg_logical_",
        "pg_export_",
        "pg_ls_",
        "pg_read_",
        "pg_xact_",
        "pg_snapshot_",
        "pg_backup_",
        "pg_promote",
        "pg_rotate_",
        "pg_reload_",
        "txid_",
        "lo_",
        "pg_control_",
    ];
    matches!(
        name,
        "nextval"
            | "setval"
            | "currval"
            | "lastval"
            | "pg_notify"
            | "pg_cancel_backend"
            | "pg_terminate_backend"
            | "pg_sequence_last_value"
            | "pg_is_in_recovery"
            | "pg_relation_size"
            | "pg_total_relation_size"
            | "pg_table_size"
            | "pg_indexes_size"
            | "pg_database_size"
            | "pg_tablespace_size"
            | "loread"
            | "lowrite"
            | "pg_blocking_pids"
            | "pg_safe_snapshot_blocking_pids"
            | "pg_listening_channels"
            | "pg_postmaster_start_time"
            | "pg_conf_load_time"
            | "pg_lock_status"
            | "pg_prepared_xact"
            | "pg_start_backup"
            | "pg_stop_backup"
            | "brin_summarize_new_values"
            | "gin_clean_pending_list"
    ) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Built-ins that take or give an OID of the catalog.
fn of_catalog(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["to_reg", "pg_get_", "has_", "pg_identify_object"];
    matches!(
        name,
        "format_type"
            | "pg_typeof"
            | "obj_description"
            | "col_description"
            | "shobj_description"
            | "pg_describe_object"
            | "pg_filenode_relation"
            | "pg_relation_filenode"
            | "pg_relation_filepath"
            | "pg_relation_is_updatable"
            | "pg_column_is_updatable"
            | "pg_index_column_has_property"
            | "pg_index_has_property"
            | "row_security_active"
    ) || name.ends_with("_is_visible")
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What the session itself has drawn from a sequence before.
fn reads_sequence(name: &str) -> bool {
    matches!(name, "currval" | "lastval")
}

fn is_session_lock(name: &str) -> bool {
    matches!(
        name,
        "pg_advisory_lock"
            | "pg_advisory_lock_shared"
            | "pg_try_advisory_lock"
            | "pg_try_advisory_lock_shared"
            | "pg_advisory_unlock"
            | "pg_advisory_unlock_shared"
            | "pg_advisory_unlock_all"
    )
}
