use super::*;

fn config() -> Config {
    Config::parse(
        r#"
[key]
column = "tenant_id"
type = "uuid"
[[user]]
name = "app"
password = "app"
[[shard]]
id = 1
primary = "127.0.0.1:1"
[[shard]]
id = 2
primary = "127.0.0.1:2"
[[table]]
name = "public.currencies"
kind = "reference"
[[table]]
name = "public.bench"
kind = "sharded"
key = "aid"
type = "int8"
[[function]]
name = "public.post"
route = "key_array"
argument = 2
[[function]]
name = "public.touch"
route = "local"
[[function]]
name = "public.count_up"
route = "default"
"#,
    )
    .expect("valid")
}

fn column(name: &str, type_name: &str) -> RawColumn {
    RawColumn {
        name: name.into(),
        type_oid: 1,
        type_name: type_name.into(),
        base_type: type_name.into(),
        not_null: true,
        has_default: false,
        deterministic: true,
        generated: false,
        default: None,
    }
}

fn relation(kind: char, columns: &[(&str, &str)]) -> RawRelation {
    RawRelation {
        oid: 0,
        kind,
        rules: false,
        definition: None,
        constraints: Vec::new(),
        columns: columns.iter().map(|(n, t)| column(n, t)).collect(),
        triggers: Vec::new(),
        expressions: Vec::new(),
        policies: Vec::new(),
        policy_queries: Vec::new(),
    }
}

fn raw(relations: &[(&str, RawRelation)], functions: &[(&str, char, &str)]) -> RawCatalog {
    RawCatalog {
        relations: relations
            .iter()
            .map(|(n, r)| (("public".to_owned(), (*n).to_owned()), r.clone()))
            .collect(),
        functions: functions
            .iter()
            .map(|(name, volatility, language)| RawFunction {
                schema: "public".into(),
                name: (*name).into(),
                volatility: *volatility,
                arguments: Some(1),
                defaults: 0,
                aggregate: false,
                language: (*language).into(),
                extension: None,
            })
            .collect(),
        types: BTreeMap::new(),
    }
}

fn table(catalog: &Catalog, name: &str) -> Table {
    catalog.tables[&("public".to_owned(), name.to_owned())].clone()
}

fn one(catalog: RawCatalog) -> Catalog {
    build(&config(), &RawCatalog::default(), &catalog, &[])
}

#[test]
fn the_key_column_makes_a_table_sharded_and_overrides_win() {
    let catalog = one(raw(
        &[
            ("payments", relation('p', &[("id", "int8"), ("tenant_id", "uuid")])),
            ("settings", relation('r', &[("id", "int8")])),
            ("currencies", relation('r', &[("code", "text")])),
            ("bench", relation('r', &[("aid", "int4")])),
            ("ids", relation('S', &[("last_value", "int8")])),
        ],
        &[],
    ));
    let kind = |name| table(&catalog, name).kind;
    assert_eq!(kind("payments"), TableKind::Sharded { key_index: 1, key_type: KeyType::Uuid });
    assert_eq!(kind("settings"), TableKind::Plain);
    assert_eq!(kind("currencies"), TableKind::Reference);
    assert_eq!(kind("bench"), TableKind::Sharded { key_index: 0, key_type: KeyType::Int4 });
    assert_eq!(kind("ids"), TableKind::Plain);
}

#[test]
fn a_key_column_of_another_type_is_refused_not_guessed() {
    let mut nondeterministic = relation('r', &[("tenant_id", "uuid")]);
    nondeterministic.columns[0].deterministic = false;
    let catalog =
        one(raw(&[("odd", relation('r', &[("tenant_id", "varchar")])), ("folded", nondeterministic)], &[]));
    assert!(table(&catalog, "odd").drift.expect("refused").contains("varchar"));
    assert!(table(&catalog, "folded").drift.is_some());
}

#[test]
fn h9_a_user_function_is_opaque_unless_immutable_or_declared() {
    let functions = [
        ("pure", 'i', "sql"),
        ("reads", 's', "plpgsql"),
        ("writes", 'v', "plpgsql"),
        ("post", 'v', "sql"),
        ("touch", 'v', "plpgsql"),
    ];
    let catalog = one(raw(&[], &functions));
    let route = |name: &str| catalog.functions[&("public".to_owned(), name.to_owned())][0].route.clone();
    assert_eq!(route("pure"), FunctionRoute::Local);
    assert_eq!(route("reads"), FunctionRoute::Opaque);
    assert_eq!(route("writes"), FunctionRoute::Opaque);
    assert_eq!(route("touch"), FunctionRoute::Local);
    assert_eq!(route("post"), FunctionRoute::Keyed { argument: 1, array: true, key_type: KeyType::Uuid });
}

#[test]
fn h9_a_trigger_with_an_unknown_function_marks_its_sharded_table() {
    let mut known = relation('r', &[("tenant_id", "uuid")]);
    known.triggers = vec![("t".into(), "public".into(), "touch".into())];
    let mut unknown = known.clone();
    unknown.triggers.push(("audit".into(), "public".into(), "writes".into()));
    let functions = [("writes", 'v', "plpgsql"), ("touch", 'v', "plpgsql")];
    let catalog = one(raw(&[("known", known), ("unknown", unknown)], &functions));
    assert_eq!(table(&catalog, "known").opaque_trigger, None);
    assert!(table(&catalog, "unknown").opaque_trigger.expect("opaque").contains("audit"));
}

#[test]
fn h9_a_plain_table_s_trigger_stays_on_the_default_shard_or_is_refused() {
    let with = |function: &str| RawRelation {
        triggers: vec![("t".into(), "public".into(), function.into())],
        ..relation('r', &[("id", "int8")])
    };
    let ruled = RawRelation { rules: true, ..relation('r', &[("id", "int8")]) };
    let relations = [
        ("local", with("touch")),
        ("home", with("count_up")),
        ("unknown", with("writes")),
        ("keyed", with("post")),
        ("ruled", ruled),
    ];
    let functions = ["writes", "touch", "count_up", "post"].map(|name| (name, 'v', "plpgsql"));
    let catalog = one(raw(&relations, &functions));
    for (name, refused) in
        [("local", false), ("home", false), ("unknown", true), ("keyed", true), ("ruled", true)]
    {
        assert_eq!(table(&catalog, name).opaque_trigger.is_some(), refused, "{name}");
        assert_eq!(table(&catalog, name).kind, TableKind::Plain);
    }
}

#[test]
fn h9_defaults_constraints_and_policies_are_judged_like_triggers() {
    let call = |what: &str, function: &str| vec![(what.to_owned(), "public".to_owned(), function.to_owned())];
    let sharded = || relation('r', &[("tenant_id", "uuid")]);
    let relations = [
        ("known", RawRelation { expressions: call("constraint c", "touch"), ..sharded() }),
        ("checked", RawRelation { expressions: call("constraint c", "writes"), ..sharded() }),
        ("guarded", RawRelation { policies: call("policy p", "writes"), ..sharded() }),
        ("querying", RawRelation { policy_queries: vec!["policy q".into()], ..sharded() }),
        ("home", RawRelation { expressions: call("constraint c", "count_up"), ..sharded() }),
        (
            "plain",
            RawRelation { expressions: call("constraint c", "writes"), ..relation('r', &[("id", "int8")]) },
        ),
    ];
    let functions = ["writes", "touch", "count_up"].map(|name| (name, 'v', "plpgsql"));
    let catalog = one(raw(&relations, &functions));
    for (name, writes, reads) in [
        ("known", false, false),
        ("checked", true, false),
        ("guarded", true, true),
        ("querying", true, true),
        ("home", true, false),
        ("plain", false, false),
    ] {
        let table = table(&catalog, name);
        assert_eq!(
            (table.opaque_trigger.is_some(), table.opaque_policy.is_some()),
            (writes, reads),
            "{name}"
        );
    }
}

#[test]
fn h39_shards_that_disagree_stop_the_table() {
    let ours = raw(
        &[
            ("t", relation('r', &[("tenant_id", "uuid"), ("a", "int4")])),
            ("plain", relation('r', &[("a", "int4")])),
        ],
        &[],
    );
    let same = build(&config(), &RawCatalog::default(), &ours, &[(ShardId(2), &ours)]);
    assert_eq!(table(&same, "t").drift, None);

    let other = raw(
        &[("t", relation('r', &[("tenant_id", "uuid"), ("a", "int8")])), ("extra", relation('r', &[]))],
        &[],
    );
    let catalog = build(&config(), &RawCatalog::default(), &ours, &[(ShardId(2), &other)]);
    assert!(table(&catalog, "t").drift.expect("drifted").contains("column a differs on shard 2"));
    assert_eq!(table(&catalog, "plain").drift, None, "plain tables live on the default shard only");
    assert!(table(&catalog, "extra").drift.is_some());

    let ruled = RawRelation { rules: true, ..ours.relations[&("public".to_owned(), "t".to_owned())].clone() };
    let other = raw(&[("t", ruled)], &[]);
    let catalog = build(&config(), &RawCatalog::default(), &ours, &[(ShardId(2), &other)]);
    assert_eq!(
        table(&catalog, "t").drift.expect("drifted"),
        "its rewrite rules differ on shard 2 and on the default shard"
    );

    let missing = build(&config(), &RawCatalog::default(), &ours, &[(ShardId(2), &RawCatalog::default())]);
    assert!(table(&missing, "t").drift.expect("drifted").contains("does not exist on shard 2"));
}

#[test]
fn only_a_literal_is_a_constant_default() {
    for constant in [
        "0",
        "'-1'::integer",
        "(-1)",
        "'it''s'::text",
        "'{}'::jsonb",
        "true",
        "NULL::character varying",
        "1.50",
    ] {
        assert!(is_constant(constant), "{constant}");
    }
    for varying in [
        "now()",
        "nextval('s'::regclass)",
        "gen_random_uuid()",
        "('a'::text || now())",
        "'a'::text || 'b'::text",
        "CURRENT_USER",
    ] {
        assert!(!is_constant(varying), "{varying}");
    }
}
