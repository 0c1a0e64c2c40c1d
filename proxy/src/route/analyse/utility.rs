//! Statements that are not queries: transactions, settings, cursors, maintenance, EXPLAIN.

use pg_raw_parse::raw::{DiscardMode, ReindexObjectType, TransactionStmtKind, VariableSetKind};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::ir::{Builder, Result};
use super::names::Found;
use super::tokens::leading_words;
use super::{plain_plan, prove};
use crate::catalog::TableKind;
use crate::route::plan::{
    Access, Around, Broadcast, ConfigValue, Effect, How, Plan, Refusal, Route, SavepointVerb,
};

/// `CURSOR_OPT_HOLD` of parsenodes.h.
const CURSOR_HOLD: i32 = 0x0020;

/// `EXPLAIN ROUTE <sql>`, which is ours and no PostgreSQL grammar's.
pub(super) fn explain_route(text: &str, standard_strings: bool) -> Option<Plan> {
    if !text.get(..7)?.eq_ignore_ascii_case("explain") {
        return None;
    }
    let (words, rest) = leading_words(text, standard_strings, 2)?;
    (words == ["explain", "route"])
        .then(|| plain_plan(Route::Session, Access::Read, Effect::ExplainRoute(rest.to_owned())))
}

fn of_cursor(name: Option<&str>) -> Plan {
    plain_plan(Route::Any, Access::Write, Effect::Cursor(name.map(str::to_owned)))
}

fn session(effect: Effect) -> Plan {
    plain_plan(Route::Session, Access::Read, effect)
}

fn ddl() -> Plan {
    plain_plan(Route::All(Broadcast::Ddl), Access::Write, Effect::CreatesObject)
}

pub(super) fn autocommit() -> Plan {
    plain_plan(Route::All(Broadcast::DdlAutocommit), Access::Write, Effect::CreatesObject)
}

impl Builder<'_> {
    pub(super) fn utility(&mut self, node: Node<'_>) -> Result<Plan> {
        match node {
            Node::TransactionStmt(t) => transaction(t),
            Node::VariableSetStmt(set) => set_variable(set),
            Node::VariableShowStmt(show) => Ok(self.show(show.name().unwrap_or_default())),
            Node::ConstraintsSetStmt(_) => {
                Ok(plain_plan(Route::Any, Access::Write, Effect::SetTransaction { read_only: None }))
            }
            Node::DiscardStmt(discard) => Ok(session(Effect::Discard(
                match discard.target {
                    DiscardMode::DISCARD_PLANS => "PLANS",
                    DiscardMode::DISCARD_SEQUENCES => "SEQUENCES",
                    DiscardMode::DISCARD_TEMP => "TEMP",
                    _ => "ALL",
                }
                .to_owned(),
            ))),
            Node::DeallocateStmt(d) => {
                Ok(session(Effect::Deallocate(d.name().filter(|_| !d.isall).map(str::to_owned))))
            }
            Node::ListenStmt(_) => Ok(plain_plan(Route::Default, Access::Write, Effect::Pin("LISTEN"))),
            Node::UnlistenStmt(_) | Node::NotifyStmt(_) => {
                Ok(plain_plan(Route::Default, Access::Write, Effect::None))
            }
            Node::DeclareCursorStmt(cursor) => self.cursor(cursor),
            Node::FetchStmt(fetch) => Ok(of_cursor(fetch.portalname())),
            Node::ClosePortalStmt(close) => Ok(of_cursor(close.portalname())),
            Node::ExplainStmt(explain) => self.explain(explain),
            Node::CallStmt(call) => self.call(call),
            Node::CopyStmt(copy) => self.copy(copy),
            Node::LockStmt(lock) => self.on_tables(lock.relations(), "LOCK"),
            Node::TruncateStmt(truncate) => self.on_tables(truncate.relations(), "TRUNCATE"),
            Node::VacuumStmt(vacuum) if vacuum.is_vacuumcmd => Ok(autocommit()),
            Node::VacuumStmt(_) => Ok(ddl()),
            Node::ReindexStmt(reindex) => {
                let concurrently = reindex.params().iter().any(|p| p.defname() == Some("concurrently"));
                let one = matches!(
                    reindex.kind,
                    ReindexObjectType::REINDEX_OBJECT_INDEX | ReindexObjectType::REINDEX_OBJECT_TABLE
                );
                Ok(if one && !concurrently { ddl() } else { autocommit() })
            }
            Node::ClusterStmt(cluster) => Ok(if cluster.relation().is_some() { ddl() } else { autocommit() }),
            Node::CheckPointStmt(_) => Ok(autocommit()),
            Node::PrepareStmt(prepare) => {
                Ok(session(Effect::SqlPrepare(prepare.name().unwrap_or_default().to_owned())))
            }
            Node::ExecuteStmt(execute) => self.execute(execute),
            Node::DoStmt(_) => Err(Refusal::unsupported(
                "a DO block may touch any table, so it cannot be routed",
                "SET shard.target = 'n' runs it on one shard; or put it in a function that is declared.",
            )),
            other => self.definition(other),
        }
    }

    fn show(&self, name: &str) -> Plan {
        match name.get(..6).filter(|prefix| prefix.eq_ignore_ascii_case("shard.")) {
            Some(_) => session(Effect::ShowProxy(name.get(6..).unwrap_or_default().to_ascii_lowercase())),
            None => plain_plan(Route::Any, Access::Read, Effect::None),
        }
    }

    fn cursor(&mut self, cursor: &nodes::DeclareCursorStmt) -> Result<Plan> {
        let mut plan = self.inner(Node::DeclareCursorStmt(cursor), cursor.query())?;
        self.without_sequence_value("a cursor")?;
        // FETCH must find the server again.
        plan.access = Access::Write;
        let several = matches!(plan.route, Route::Scatter(_));
        let hold = cursor.options & CURSOR_HOLD != 0;
        if several && (hold || self.seen.locks) {
            return Err(Refusal::unsupported(
                format!("a cursor {} over several shards", if hold { "WITH HOLD" } else { "FOR UPDATE" }),
                "Use a cursor without it within its transaction, or run the query by itself.",
            ));
        }
        // Its rows are on one server, from which FETCH takes them in any direction.
        if several {
            plan.route = Route::Scatter(How::Gather);
        }
        plan.straddle = plan.straddle.filter(|_| !hold && !self.seen.locks).map(|_| How::Gather);
        plan.around = Around::Cursor;
        plan.effect = if cursor.options & CURSOR_HOLD != 0 {
            Effect::Pin("WITH HOLD cursor")
        } else {
            Effect::Declare(cursor.portalname().unwrap_or_default().to_owned())
        };
        Ok(plan)
    }

    /// What the session's connection then knows of draws is not asked for here.
    pub(super) fn without_sequence_value(&self, what: &str) -> Result<()> {
        if !self.seen.sequence_value {
            return Ok(());
        }
        Err(Refusal::unsupported(
            format!("currval() and lastval() in {what}"),
            "Ask for the number first, and pass it.",
        ))
    }

    /// A query within another statement.
    pub(super) fn inner(&mut self, statement: Node<'_>, query: Node<'_>) -> Result<Plan> {
        if let Node::SelectStmt(select) = query {
            if let Some(plan) = self.set_config(select)? {
                return Ok(plan);
            }
            let block = self.select(select)?;
            let mut plan = self.finish(block, None)?;
            if matches!(plan.route, Route::Scatter(How::Apply)) {
                return Err(write_within());
            }
            plan.straddle = plan.straddle.filter(|how| *how != How::Apply);
            return self.explained(statement, select, block, plan);
        }
        if prove::is_query(query) {
            let plan = self.plan(query)?;
            if matches!(plan.route, Route::Scatter(_)) {
                return Err(write_within());
            }
            // What the statement around it makes of several answers is not known.
            return Ok(Plan { straddle: None, ..plan });
        }
        Err(Refusal::unsupported("this statement is not supported here", "Run it by itself."))
    }

    /// Runs where its statement runs.
    fn explain(&mut self, explain: &nodes::ExplainStmt) -> Result<Plan> {
        let analyze = explain.options().iter().any(|o| {
            o.defname() == Some("analyze")
                && match o.arg() {
                    Node::String(s) => !matches!(s.sval(), Some("off" | "false")),
                    Node::Integer(i) => i.ival != 0,
                    Node::Boolean(b) => b.boolval,
                    _ => true,
                }
        });
        let mut plan = match explain.query() {
            // What is explained is known when it runs.
            Node::ExecuteStmt(execute) => return self.execute(execute),
            Node::DeclareCursorStmt(cursor) => self.cursor(cursor)?,
            query => self.inner(Node::ExplainStmt(explain), query)?,
        };
        plan.around = Around::Explain { analyze, text: in_text(explain) };
        if matches!(plan.route, Route::Scatter(_)) || plan.straddle.is_some() {
            if analyze && plan.access == Access::Write {
                return Err(Refusal::unsupported(
                    "EXPLAIN ANALYZE of a statement over several shards that does not only read",
                    "EXPLAIN without ANALYZE, or SET shard.target.",
                ));
            }
        }
        match plan.route {
            Route::All(_) | Route::SplitInsert(_) if analyze => {
                return Err(Refusal::unsupported(
                    "EXPLAIN ANALYZE of a statement that runs on several shards",
                    "EXPLAIN without ANALYZE, or SET shard.target.",
                ));
            }
            Route::All(_) | Route::SplitInsert(_) => plan.route = Route::Default,
            _ => {}
        }
        plan.effect = Effect::None;
        Ok(plan)
    }

    fn call(&mut self, call: &nodes::CallStmt) -> Result<Plan> {
        let Some(function) = call.funccall() else {
            return Err(Refusal::unsupported("this CALL could not be analysed", "Please report it."));
        };
        self.seen.writes = true;
        let block = self.new_block();
        self.levels.push(Vec::new());
        self.function(function, super::expr::Place { block, scope: Some(0) })?;
        self.levels.pop();
        self.finish(block, None)
    }

    /// Its arguments are computed by a server, once; what the statement itself needs is found when they are known.
    pub(super) fn execute(&mut self, execute: &nodes::ExecuteStmt) -> Result<Plan> {
        let block = self.new_block();
        self.levels.push(Vec::new());
        self.expressions(execute.params(), super::expr::Place { block, scope: Some(0) })?;
        self.levels.pop();
        let name = execute.name().unwrap_or_default().to_owned();
        let plan = self.finish(block, None)?;
        match (&plan.route, &plan.effect) {
            (Route::Any | Route::Default, Effect::None) => {
                let default_shard = matches!(plan.route, Route::Default);
                Ok(session(Effect::SqlExecute { name, default_shard }))
            }
            _ => Err(Refusal::unsupported(
                "EXECUTE with arguments that depend on tables or on the session's server",
                "Pass their values.",
            )),
        }
    }

    /// LOCK and TRUNCATE: plain tables on the default shard, all others everywhere.
    fn on_tables(&mut self, relations: &pg_raw_parse::list::NodeList, verb: &str) -> Result<Plan> {
        let (mut plain, mut everywhere, mut temporary) = (false, false, false);
        for node in relations {
            let Node::RangeVar(var) = node else { continue };
            match self.used_relation(var)? {
                Found::Table(table) => match table.kind {
                    TableKind::Plain | TableKind::System => plain = true,
                    TableKind::Sharded { .. } | TableKind::Reference => everywhere = true,
                    TableKind::View => {
                        return Err(Refusal::unsupported(format!("{verb} of a view"), "Name its tables."));
                    }
                },
                Found::Temporary => temporary = true,
                Found::System(_) | Found::Cte(_) => plain = true,
            }
        }
        let route = match (plain, everywhere, temporary) {
            (true, false, _) => Route::Default,
            (false, true, _) => Route::All(Broadcast::Ddl),
            (false, false, _) => Route::Any,
            (true, true, _) => {
                return Err(Refusal::unsupported(
                    format!("{verb} of plain and sharded tables together"),
                    "Use one statement for each kind.",
                ));
            }
        };
        let effect = if verb == "LOCK" { Effect::NeedsBlock("LOCK TABLE") } else { Effect::None };
        Ok(plain_plan(route, Access::Write, effect))
    }

    /// `SELECT set_config('name', 'value', local)` is a SET.
    pub(super) fn set_config(&mut self, select: &nodes::SelectStmt) -> Result<Option<Plan>> {
        let calls = select.target_list().iter().filter(|t| is_set_config(t.val())).count();
        if calls == 0 {
            return Ok(None);
        }
        let alone = calls == 1
            && select.target_list().len() == 1
            && select.from_clause().is_empty()
            && matches!(select.where_clause(), Node::None)
            && select.op == 0;
        let refusal = || {
            Refusal::unsupported(
                "set_config() in this form",
                "Use SET, or SELECT set_config('name', 'value', false) by itself; the value may be a parameter.",
            )
        };
        let Some(Node::FuncCall(call)) = select.target_list().iter().next().map(nodes::ResTarget::val) else {
            return Err(refusal());
        };
        if !alone {
            return Err(refusal());
        }
        let arguments: Vec<Node<'_>> = call.args().iter().collect();
        let [Node::A_Const(name), value, Node::A_Const(local)] = arguments.as_slice() else {
            return Err(refusal());
        };
        let (Some(ConstValue::String(name)), Some(ConstValue::Boolean(local))) = (name.val(), local.val())
        else {
            return Err(refusal());
        };
        let value = as_text(*value);
        let of = match value {
            Node::ParamRef(parameter) => {
                let number = u16::try_from(parameter.number).map_err(|_| refusal())?;
                self.seen.parameters = self.seen.parameters.max(number);
                ConfigValue::Parameter(number.checked_sub(1).ok_or_else(refusal)?)
            }
            Node::A_Const(constant) => match constant.val() {
                Some(ConstValue::String(text)) => ConfigValue::Text(text.to_owned()),
                _ => return Err(refusal()),
            },
            _ => return Err(refusal()),
        };
        // The plan holds these values.
        arguments.iter().chain([&value]).for_each(|node| self.peek(*node));
        self.peeked = true;
        let name = name.to_ascii_lowercase();
        let ours = crate::route::is_own_setting(&name);
        if ours && matches!(of, ConfigValue::Parameter(_)) {
            return Err(refusal());
        }
        let effect = Effect::SetConfig { name, value: of, local };
        Ok(Some(plain_plan(if ours { Route::Session } else { Route::Any }, Access::Write, effect)))
    }
}

fn write_within() -> Refusal {
    Refusal::unsupported(
        "a write over several shards within another statement (COPY, EXPLAIN)",
        "Run it by itself, or SET shard.target.",
    )
}

fn in_text(explain: &nodes::ExplainStmt) -> bool {
    !explain.options().iter().any(|option| {
        let other =
            |node: Node<'_>| matches!(node.as_str(), Some(format) if !format.eq_ignore_ascii_case("text"));
        option.defname() == Some("format") && other(option.arg())
    })
}

/// Without a cast to the type that it has anyway.
fn as_text(node: Node<'_>) -> Node<'_> {
    match node {
        Node::TypeCast(cast)
            if cast.type_name().is_some_and(|t| {
                t.names().iter().next_back().and_then(nodes::String::sval) == Some("text")
            }) =>
        {
            cast.arg()
        }
        node => node,
    }
}

fn is_set_config(node: Node<'_>) -> bool {
    matches!(node, Node::FuncCall(call) if call.funcname().iter().next_back().and_then(|n| n.as_str()) == Some("set_config"))
}

fn transaction(t: &nodes::TransactionStmt) -> Result<Plan> {
    let name = || t.savepoint_name().unwrap_or_default().to_owned();
    let effect = match t.kind {
        TransactionStmtKind::TRANS_STMT_BEGIN | TransactionStmtKind::TRANS_STMT_START => {
            Effect::Begin { read_only: read_only(t.options()) }
        }
        TransactionStmtKind::TRANS_STMT_COMMIT => Effect::Commit { chain: t.chain },
        TransactionStmtKind::TRANS_STMT_ROLLBACK => Effect::Rollback { chain: t.chain },
        TransactionStmtKind::TRANS_STMT_SAVEPOINT => Effect::Savepoint(SavepointVerb::Savepoint, name()),
        TransactionStmtKind::TRANS_STMT_RELEASE => Effect::Savepoint(SavepointVerb::Release, name()),
        TransactionStmtKind::TRANS_STMT_ROLLBACK_TO => Effect::Savepoint(SavepointVerb::RollbackTo, name()),
        _ => {
            return Err(Refusal::unsupported(
                "prepared transactions are the proxy's own means of committing on several shards",
                "Use BEGIN and COMMIT; they are atomic over all shards.",
            ));
        }
    };
    Ok(session(effect))
}

/// `transaction_read_only` among transaction modes.
fn read_only(options: &pg_raw_parse::list::NodeList) -> Option<bool> {
    options.iter().find_map(|node| match node {
        Node::DefElem(option) if option.defname() == Some("transaction_read_only") => match option.arg() {
            Node::A_Const(c) => c.val().and_then(|v| v.numeric_value::<i32>()).map(|n| n != 0),
            Node::Integer(i) => Some(i.ival != 0),
            _ => None,
        },
        _ => None,
    })
}

fn set_variable(set: &nodes::VariableSetStmt) -> Result<Plan> {
    let name = set.name().unwrap_or_default().to_ascii_lowercase();
    if set.kind == VariableSetKind::VAR_SET_MULTI {
        return set_modes(&name, set);
    }
    let effect = match set.kind {
        VariableSetKind::VAR_RESET_ALL => Effect::ResetAll,
        VariableSetKind::VAR_SET_VALUE => {
            Effect::Set { value: Some(setting(set)?), name, local: set.is_local }
        }
        // DEFAULT and RESET; FROM CURRENT is only part of CREATE FUNCTION.
        _ => Effect::Set { name, value: None, local: set.is_local },
    };
    // Ours never reach a server; others are validated by one.
    let ours = matches!(&effect, Effect::Set { name, .. } if crate::route::is_own_setting(name));
    Ok(plain_plan(if ours { Route::Session } else { Route::Any }, Access::Write, effect))
}

/// SET TRANSACTION, SET SESSION CHARACTERISTICS.
fn set_modes(name: &str, set: &nodes::VariableSetStmt) -> Result<Plan> {
    match name {
        "transaction" => {
            let effect = Effect::SetTransaction { read_only: read_only(set.args()) };
            Ok(plain_plan(Route::Any, Access::Write, effect))
        }
        "session characteristics" => {
            // Each mode is the setting `default_<mode>`; one is what drivers send.
            let refusal = || {
                Refusal::unsupported(
                    "SET SESSION CHARACTERISTICS with several modes",
                    "Set one mode at a time.",
                )
            };
            let mut options = set.args().iter();
            let (Some(Node::DefElem(option)), None) = (options.next(), options.next()) else {
                return Err(refusal());
            };
            let mode = option.defname().unwrap_or_default();
            let value = match option.arg() {
                Node::A_Const(c) => match c.val() {
                    Some(ConstValue::String(s)) => quote(s),
                    Some(ConstValue::Integer(i)) => quote(if i == 0 { "off" } else { "on" }),
                    _ => return Err(refusal()),
                },
                _ => return Err(refusal()),
            };
            let effect = Effect::Set { name: format!("default_{mode}"), value: Some(value), local: false };
            Ok(plain_plan(Route::Any, Access::Write, effect))
        }
        _ => Err(Refusal::unsupported(
            "SET TRANSACTION SNAPSHOT: a snapshot is one server's",
            "Use SET shard.target to work on one shard.",
        )),
    }
}

/// The value's text, fit for `SET name = value`.
fn setting(set: &nodes::VariableSetStmt) -> Result<String> {
    let mut values = Vec::new();
    for node in set.args() {
        let constant = match node {
            Node::A_Const(c) => c.val(),
            _ => None,
        };
        values.push(match constant {
            Some(ConstValue::Integer(i)) => i.to_string(),
            Some(ConstValue::Float(f)) => f.to_owned(),
            Some(ConstValue::String(s)) => quote(s),
            Some(ConstValue::Boolean(b)) => quote(if b { "on" } else { "off" }),
            _ => {
                return Err(Refusal::unsupported("this form of SET", "Write SET name = 'value'."));
            }
        });
    }
    Ok(values.join(", "))
}

pub(super) fn quote(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}
