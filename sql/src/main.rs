//! `migrate`: brings the schema behind a proxy, or of one PostgreSQL, up to date.

use clap::Parser;

#[derive(Parser)]
#[command(about = "Apply missing migrations and make partitions ahead, on every shard behind the URL")]
struct Arguments {
    /// The proxy, or a plain PostgreSQL.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    url: String,
    /// Make partitions for this many months after the current one.
    #[arg(long, default_value_t = 6)]
    months_ahead: u16,
    /// Detach partitions older than this many months; their rows stay in tables of their own.
    #[arg(long)]
    retain_months: Option<u16>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let options =
        sql_assets::Options { months_ahead: arguments.months_ahead, retain_months: arguments.retain_months };
    match sql_assets::apply(&arguments.url, &options).await {
        Ok(report) => {
            for line in &report.applied {
                println!("applied  {line}");
            }
            for line in &report.failed {
                eprintln!("failed   {line}");
            }
            if report.failed.is_empty() {
                return std::process::ExitCode::SUCCESS;
            }
            eprintln!("hint: repair what failed and run migrate again; it resumes where it stopped");
        }
        Err(error) => eprintln!("error: {error}"),
    }
    std::process::ExitCode::FAILURE
}
