//! `shard-proxy --config FILE`: starts the control thread, the workers and the listener; SIGHUP reloads, SIGTERM and
//! SIGINT drain.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use shard_config::{Config, ShardMap};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use shard_proxy::auth::users::Users;
use shard_proxy::control::{Control, Handle};
use shard_proxy::motion::Following;
use shard_proxy::shared::{ShardState, Shared, State};
use shard_proxy::twophase::fault;
use shard_proxy::worker::{Mail, Worker, WorkerHandle};
use shard_proxy::{limits, listen};

#[derive(Parser)]
#[command(name = "shard-proxy", about = "Makes several PostgreSQL shards look like one database.", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration file.
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    let text =
        std::fs::read_to_string(&arguments.config).with_context(|| arguments.config.display().to_string())?;
    let config = match Config::parse(&text) {
        Ok(config) => Arc::new(config),
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!(
                    "{}:{}: {}; {}",
                    arguments.config.display(),
                    mistake.line,
                    mistake.message,
                    mistake.remedy
                );
            }
            bail!("{} mistake(s) in the configuration", mistakes.len());
        }
    };
    if arguments.check {
        println!("{}: ok", arguments.config.display());
        return Ok(());
    }
    listen::raise_open_files(&config);
    fault::arm(config.proxy.listen.ip())?;
    let listener = listen::bind(config.proxy.listen)?;
    let shared = Arc::new(Shared::new(initial_state(config.clone())));
    let control = Control::start(config.clone(), &arguments.config, shared.clone())?;
    let (workers, threads) = start_workers(&config, &shared, &control.handle)?;
    control.open_door(shared, workers.clone())?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(listener, workers, control.handle.clone(), &config));
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker had panicked");
        }
    }
    control.stop();
    tracing::info!("stopped");
    result
}

/// Before the control thread has seen a server: no primaries, an empty catalog.
fn initial_state(config: Arc<Config>) -> State {
    let ids: Vec<_> = config.shards.iter().map(|s| (s.id, s.weight)).collect();
    let mut shards: Vec<_> = ids
        .iter()
        .map(|(id, _)| ShardState {
            id: *id,
            owns: true,
            since: 1,
            left: None,
            primary: None,
            replicas: Vec::new(),
        })
        .collect();
    shards.sort_by_key(|s| s.id.0);
    let map = Arc::new(ShardMap::weighted(&ids, config.key.buckets));
    State { config, map, catalog: Arc::default(), following: Following::default(), shards, lineup: 1 }
}

type Threads = Vec<std::thread::JoinHandle<()>>;

fn start_workers(
    config: &Config,
    shared: &Arc<Shared>,
    control: &Handle,
) -> anyhow::Result<(Vec<WorkerHandle>, Threads)> {
    let users = Arc::new(Users::new(config));
    let mut handles = Vec::new();
    let mut mailboxes = Vec::new();
    for _ in 0..config.proxy.workers.min(127) {
        let (mail, mailbox) = mpsc::channel(limits::MAILBOX);
        handles.push(WorkerHandle { mail, stats: Arc::default(), progress: Arc::default() });
        mailboxes.push(mailbox);
    }
    let mut threads = Vec::new();
    for (id, mailbox) in mailboxes.into_iter().enumerate() {
        let (all, stats, progress) =
            (handles.clone(), handles[id].stats.clone(), handles[id].progress.clone());
        let (shared, users, control) = (shared.clone(), users.clone(), control.clone());
        let thread = std::thread::Builder::new().name(format!("worker{id}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "worker runtime"),
            };
            let worker = Worker::new(id as u8, shared, users, control, stats, progress);
            *worker.workers.borrow_mut() = all;
            tokio::task::LocalSet::new().block_on(&runtime, worker.run(mailbox));
        })?;
        threads.push(thread);
    }
    Ok((handles, threads))
}

async fn serve(
    listener: std::net::TcpListener,
    workers: Vec<WorkerHandle>,
    control: Handle,
    config: &Config,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    // Until the catalog is known nothing can be routed: clients wait in the backlog instead of being refused.
    loop {
        tokio::select! {
            () = control.ready() => break,
            _ = terminate.recv() => return drain(&workers).await,
            _ = interrupt.recv() => return drain(&workers).await,
            // What is waited for may be a shard that only the changed file names.
            _ = reload.recv() => {
                tokio::spawn(reloaded(control.clone()));
            }
        }
    }
    tracing::info!(listen = %config.proxy.listen, http = %config.proxy.http, shards = config.shards.len(), "ready");
    let accepting = listen::accept(listener, workers.clone());
    tokio::pin!(accepting);
    loop {
        tokio::select! {
            result = &mut accepting => return result,
            _ = terminate.recv() => return drain(&workers).await,
            _ = interrupt.recv() => return drain(&workers).await,
            // Beside this loop: a new shard may be slow to answer, and clients go on being accepted meanwhile.
            _ = reload.recv() => {
                tokio::spawn(reloaded(control.clone()));
            }
        }
    }
}

async fn reloaded(control: Handle) {
    match control.reload().await {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(error) => tracing::error!(error = %format!("{error:#}"), "configuration not reloaded"),
    }
}

/// The listener is closed by now; running transactions get their time.
async fn drain(workers: &[WorkerHandle]) -> anyhow::Result<()> {
    tracing::info!("draining");
    for worker in workers {
        let _ = worker.mail.send(Mail::Drain).await;
    }
    let all = async {
        for worker in workers {
            worker.mail.closed().await;
        }
    };
    let _ = tokio::time::timeout(limits::DRAIN + Duration::from_secs(1), all).await;
    Ok(())
}
