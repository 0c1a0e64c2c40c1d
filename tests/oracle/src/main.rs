//! `oracle`: the differential suite. Every statement runs against the proxy with its shards and against one PostgreSQL with
//! the same rows; both must answer the same, or the proxy must refuse. Usually started by `cargo oracle`.
//!
//! Rooms, in reading order: `catalog` (the statements of the files in `catalog/`), `schema` (tables and rows), `sides` (both
//! servers, and the shards themselves), `client` (the protocol), `answer` (what is the same), `run`, `report`; `generate`
//! (random statements), `mutants` (seeded bugs); `tpc` has the rows of TPC-H, TPC-C and TPC-B, `text` finds constants in SQL.
//!
//! Invariants: nothing of the product is linked in; a statement whose answer PostgreSQL leaves open is not compared as if
//! it were defined; rows are the same at every run.

mod answer;
mod catalog;
mod client;
mod generate;
mod mutants;
mod random;
mod report;
mod run;
mod schema;
mod sides;
mod text;
mod tpc;

use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use answer::Verdict;
use catalog::{Case, What};
use report::Report;
use run::{Record, Runner};
use schema::Rows;
use sides::{MODES, Mode, Shards, Sides};

const HELP: &str = "\
cargo oracle -- [--catalog] [--generate N] [--seed S] [--json]

Runs statements against the running stack's proxy and against its single PostgreSQL, and compares what both answer: rows,
their order where it is defined, names and types of columns, command tags, SQLSTATEs; in the simple and the extended
protocol, in text and in binary. Exit status 1 when anything differs.

  --catalog     the statements in tests/oracle/catalog (default when nothing else is asked for)
  --generate N  N random statements; what differs is made as small as it gets
  --seed S      of the random statements (default: from the clock, and printed)
  --threads T   connections at the same time (default 3); the same seed makes the same statements with the same T
  --only T[:L]  those of the file T.sql, or of its line L
  --mode M      simple, text or binary only
  --json        one object: statements, equal, refused, different, first_difference, ...
  --all         print every refusal and difference, and errors whose text differs
  --count       only count the statements
  --stop        at the first difference
  --mutants [M] does the catalogue find the seeded bugs of tests/oracle/mutants (those with M in their names)? Builds the
                proxy once for each: a long run
  --print       only print the random statements
";

struct Arguments {
    catalog: bool,
    generate: usize,
    seed: Option<u64>,
    only: Option<String>,
    modes: Vec<Mode>,
    json: bool,
    all: bool,
    count: bool,
    print: bool,
    stop: bool,
    mutants: Option<Option<String>>,
    threads: usize,
}

fn parse() -> Result<Option<Arguments>> {
    let mut parsed = Arguments {
        catalog: false,
        generate: 0,
        seed: None,
        only: None,
        modes: MODES.to_vec(),
        json: false,
        all: false,
        count: false,
        print: false,
        stop: false,
        mutants: None,
        threads: 3,
    };
    let mut rest = std::env::args().skip(1).peekable();
    while let Some(flag) = rest.next() {
        if flag == "--mutants" {
            parsed.mutants = Some(rest.next_if(|name| !name.starts_with("--")));
            continue;
        }
        let mut value = || rest.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--catalog" => parsed.catalog = true,
            "--generate" => parsed.generate = value()?.parse().context("--generate")?,
            "--seed" => parsed.seed = Some(value()?.parse().context("--seed")?),
            "--only" => parsed.only = Some(value()?),
            "--mode" => {
                let name = value()?;
                let mode = MODES.into_iter().find(|mode| mode.name().ends_with(&name));
                parsed.modes = vec![mode.with_context(|| format!("--mode {name}"))?];
            }
            "--json" => parsed.json = true,
            "--all" => parsed.all = true,
            "--count" => parsed.count = true,
            "--stop" => parsed.stop = true,
            "--print" => parsed.print = true,
            "--threads" => parsed.threads = value()?.parse().context("--threads")?,
            "-h" | "--help" => return Ok(None),
            other => bail!("unknown option {other}; see --help"),
        }
    }
    parsed.catalog |= parsed.generate == 0 || parsed.only.is_some();
    Ok(Some(parsed))
}

fn cases(only: Option<&str>) -> Result<Vec<Case>> {
    let (theme, line) = match only.map(|only| only.split_once(':').unwrap_or((only, ""))) {
        None => (None, None),
        Some((theme, "")) => (Some(theme), None),
        Some((theme, line)) => (Some(theme), Some(line.parse::<usize>().context("--only THEME:LINE")?)),
    };
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/catalog");
    let mut files: Vec<_> = std::fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut cases = Vec::new();
    for file in files {
        let path = file.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        if path.extension().is_some_and(|e| e == "sql") && theme.is_none_or(|theme| theme == name) {
            cases.extend(catalog::parse(name, &std::fs::read_to_string(&path)?)?);
        }
    }
    cases.retain(|case| line.is_none_or(|line| case.line == line));
    if cases.is_empty() {
        bail!("no statement is called so");
    }
    Ok(cases)
}

fn url(name: &str) -> Result<String> {
    std::env::var(name)
        .with_context(|| format!("{name} is not set; `cargo stack up --detach` first, or use `cargo oracle`"))
}

fn prepare(one: &str, four: &str, rows: &[Rows]) -> Result<()> {
    let mut sides = Sides::connect(one, four)?;
    let all: Vec<String> =
        schema::TABLES.iter().chain(&tpc::TABLES).map(|table| (*table).to_owned()).collect();
    for side in [&mut sides.one, &mut sides.four] {
        schema::create(&mut side.client)?;
        schema::restore(&mut side.client, rows, &all)?;
    }
    Ok(())
}

/// Reads disturb nobody; what writes comes after them, alone.
fn run_all(
    arguments: &Arguments,
    cases: &[Case],
    one: &str,
    four: &str,
    rows: &[Rows],
) -> Result<Vec<Record>> {
    let runner = |shards: Option<Shards>| -> Result<Runner<'_>> {
        let mut sides = Sides::connect(one, four)?;
        sides.learn_types()?;
        Ok(Runner { sides, rows, shards, modes: &arguments.modes })
    };
    let (reads, others): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| matches!(case.what, What::Read(_)));
    let threads = arguments.threads.clamp(1, 16);
    let mut records = Vec::new();
    let stopped = AtomicBool::new(false);
    let note = |found: &[Record]| {
        let differs = |record: &Record| !record.deviates && matches!(record.verdict(), Verdict::Different(_));
        if arguments.stop && found.iter().any(differs) {
            stopped.store(true, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let mine: Vec<&Case> = reads.iter().skip(worker).step_by(threads).copied().collect();
                let (runner, note, stopped) = (&runner, &note, &stopped);
                scope.spawn(move || -> Result<Vec<Record>> {
                    let mut runner = runner(None)?;
                    let mut records = Vec::new();
                    for case in mine {
                        if stopped.load(Ordering::Relaxed) {
                            break;
                        }
                        let found = runner.case(case)?;
                        note(&found);
                        records.extend(found);
                    }
                    Ok(records)
                })
            })
            .collect();
        for worker in workers {
            records.extend(worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??);
        }
        Ok(())
    })?;
    if !others.is_empty() {
        let mut runner = runner(Some(Shards::from_environment()?))?;
        for case in others {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let found = runner.case(case).with_context(|| format!("{}:{}", case.theme, case.line))?;
            note(&found);
            records.extend(found);
        }
    }
    records.sort_by(|a, b| (&a.theme, a.line).cmp(&(&b.theme, b.line)));
    Ok(records)
}

/// Worker w of n has the seed S * n + w, so that a run repeats with the same seed and as many workers.
fn run_generated(arguments: &Arguments, seed: u64, one: &str, four: &str) -> Result<Vec<Record>> {
    let threads = arguments.threads.clamp(1, 16);
    let writing = Mutex::new(());
    let mut records = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (writing, count) = (&writing, arguments.generate);
                let mine = count / threads + usize::from(worker < count % threads);
                let seed = seed.wrapping_mul(threads as u64).wrapping_add(worker as u64);
                scope.spawn(move || -> Result<Vec<Record>> {
                    let mut sides = Sides::connect(one, four)?;
                    sides.learn_types()?;
                    generate::run(&mut sides, seed, mine, writing)
                })
            })
            .collect();
        for worker in workers {
            records.extend(worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??);
        }
        Ok(())
    })?;
    Ok(records)
}

fn run() -> Result<bool> {
    let Some(arguments) = parse()? else {
        print!("{HELP}");
        return Ok(true);
    };
    if let Some(name) = &arguments.mutants {
        return mutants::run(name.as_deref());
    }
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() % 1_000_000;
    let seed = arguments.seed.unwrap_or(clock);
    if arguments.print {
        for case in generate::cases(seed, arguments.generate) {
            if let What::Read(statement) = case.what {
                println!("{};", statement.sql);
            }
        }
        return Ok(true);
    }
    let cases = if arguments.catalog { cases(arguments.only.as_deref())? } else { Vec::new() };
    if arguments.count {
        println!("{}", cases.iter().map(Case::statements).sum::<usize>());
        return Ok(true);
    }
    let (one, four) = (url("SINGLE_URL")?, url("PROXY_URL")?);
    let rows = schema::rows();
    let begun = Instant::now();
    prepare(&one, &four, &rows)?;
    let mut report = Report::default();
    if arguments.catalog {
        report.records.extend(run_all(&arguments, &cases, &one, &four, &rows)?);
    }
    if arguments.generate > 0 {
        if !arguments.json {
            println!("seed {seed}");
        }
        report.seeds.push(seed);
        report.records.extend(run_generated(&arguments, seed, &one, &four)?);
    }
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        report.print(arguments.all);
        println!("{:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(report.is_clean())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
