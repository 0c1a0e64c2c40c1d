//! Does the suite find seeded bugs? Each file of `mutants/` changes one place of the router or the merger; the proxy is
//! built with it from a copy of the tree and started before the running shards, and the catalogue must find a difference.
//!
//! A file has lines `file: PATH`, `about: TEXT`, then `--- old` and `--- new`, each followed by lines of the source.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a build needs; the rest of the tree is left where it is.
const COPIED: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    ".cargo",
    "shard-config",
    "proxy",
    "core",
    "sql",
    "bench",
    "tests",
    ".rustfmt.toml",
];
/// Away from the stack's own proxies.
const PORTS_AWAY: u16 = 30;
const READY_LIMIT: Duration = Duration::from_secs(30);
/// A proxy that hangs is found, too.
const RUN_LIMIT: Duration = Duration::from_secs(600);

struct Mutant {
    name: String,
    file: String,
    about: String,
    old: String,
    new: String,
}

fn parse(name: &str, text: &str) -> Result<Mutant> {
    let (head, rest) = text.split_once("--- old\n").with_context(|| format!("{name}: no old text"))?;
    let (old, new) = rest.split_once("--- new\n").with_context(|| format!("{name}: no new text"))?;
    let field = |field: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        line.map(str::to_owned).with_context(|| format!("{name}: no {field}"))
    };
    if old.trim().is_empty() || old == new {
        bail!("{name}: changes nothing");
    }
    Ok(Mutant {
        name: name.to_owned(),
        file: field("file")?,
        about: field("about")?,
        old: old.to_owned(),
        new: new.to_owned(),
    })
}

fn all(workspace: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for entry in fs::read_dir(workspace.join("tests/oracle/mutants"))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        let mutant = parse(name, &fs::read_to_string(&path)?)?;
        let source = fs::read_to_string(workspace.join(&mutant.file)).with_context(|| mutant.file.clone())?;
        if source.matches(&mutant.old).count() != 1 {
            bail!("{name}: its text is not exactly once in {}", mutant.file);
        }
        mutants.push(mutant);
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints one line a mutant; true when all were found.
pub(crate) fn run(only: Option<&str>) -> Result<bool> {
    let workspace = PathBuf::from(
        std::env::var("STACK_WORKSPACE")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../..").to_owned()),
    );
    let mutants = all(&workspace)?;
    let tree = workspace.join("target/mutants/tree");
    let target = workspace.join("target/mutants/target");
    let (mut found, mut survived) = (0, Vec::new());
    for mutant in mutants.iter().filter(|mutant| only.is_none_or(|only| mutant.name.contains(only))) {
        let begun = Instant::now();
        copy(&workspace, &tree)?;
        let source = fs::read_to_string(tree.join(&mutant.file))?;
        fs::write(tree.join(&mutant.file), source.replacen(&mutant.old, &mutant.new, 1))?;
        build(&tree, &target).with_context(|| mutant.name.clone())?;
        let (proxy, port) = start(&target.join("release/shard-proxy"))?;
        let why = catalogue(port)?;
        drop(proxy);
        let seconds = begun.elapsed().as_secs();
        match why {
            Some(why) => {
                found += 1;
                println!("found    {} ({}), {seconds} s: {why}", mutant.name, mutant.about);
            }
            None => {
                println!("SURVIVED {} ({}), {seconds} s", mutant.name, mutant.about);
                survived.push(mutant.name.clone());
            }
        }
        std::io::stdout().flush()?;
    }
    println!("{found} mutants found, {} survived {}", survived.len(), survived.join(" "));
    Ok(survived.is_empty() && found > 0)
}

/// Files that are the same keep their time, so that only what a mutant changed is built again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for name in COPIED {
        copy_tree(&from.join(name), &to.join(name))?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let new = fs::read(from).with_context(|| from.display().to_string())?;
        if fs::read(to).ok().as_deref() != Some(&new) {
            fs::write(to, new)?;
        }
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy_tree(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn build(tree: &Path, target: &Path) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree).env("CARGO_TARGET_DIR", target);
    command.args(["build", "--quiet", "--release", "--bin", "shard-proxy"]);
    // A mutant may leave something unused.
    command.env("RUSTFLAGS", "-Awarnings");
    if !command.status().context("cargo")?.success() {
        bail!("the build failed");
    }
    Ok(())
}

/// With the configuration of the stack's first proxy, on ports and with a directory of its own.
fn start(program: &Path) -> Result<(Running, u16)> {
    let home = PathBuf::from(std::env::var("STACK_DIR").context("STACK_DIR is not set; use `cargo oracle`")?);
    let base: u16 = std::env::var("STACK_PORT_BASE").context("STACK_PORT_BASE")?.parse()?;
    let text = fs::read_to_string(home.join("proxy1/proxy.toml"))?;
    let own = home.join("mutant");
    let (port, http) = (base + 51 + PORTS_AWAY, base + 61 + PORTS_AWAY);
    let text = text
        .replace(&format!(":{}\"", base + 51), &format!(":{port}\""))
        .replace(&format!(":{}\"", base + 61), &format!(":{http}\""))
        .replace("\"proxy1\"", "\"mutant\"")
        .replace("/proxy1/state", "/mutant/state");
    fs::create_dir_all(own.join("state"))?;
    fs::write(own.join("proxy.toml"), text)?;
    let log = fs::File::create(own.join("log"))?;
    let child = Command::new(program)
        .arg("--config")
        .arg(own.join("proxy.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| program.display().to_string())?;
    let running = Running(child);
    let deadline = Instant::now() + READY_LIMIT;
    while !ready(http) {
        if Instant::now() > deadline {
            bail!("the mutated proxy does not get ready; see {}", own.join("log").display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok((running, port))
}

fn ready(http: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        use std::io::Read as _;
        let mut stream = TcpStream::connect(("127.0.0.1", http))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1) == Some("200"))
    };
    ask().unwrap_or(false)
}

/// How the catalogue found it; `None` when it did not.
fn catalogue(port: u16) -> Result<Option<String>> {
    let url = std::env::var("PROXY_URL")?;
    let (login, rest) = url.rsplit_once(':').context("PROXY_URL")?;
    let database = rest.split_once('/').map_or("payments", |(_, database)| database);
    let log = std::env::temp_dir().join(format!("oracle-mutant-{}", std::process::id()));
    let file = fs::File::create(&log)?;
    let child = Command::new(std::env::current_exe()?)
        .args(["--catalog", "--stop"])
        .env("PROXY_URL", format!("{login}:{port}/{database}"))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    let mut running = Running(child);
    let deadline = Instant::now() + RUN_LIMIT;
    loop {
        if let Some(status) = running.0.try_wait()? {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let _ = fs::remove_file(&log);
            if status.success() {
                return Ok(None);
            }
            // A run that failed otherwise has found nothing.
            if !text.contains("DIFFERENT") {
                bail!("the catalogue was not run: {}", text.lines().last().unwrap_or_default());
            }
            let first =
                text.lines().skip_while(|line| !line.starts_with("DIFFERENT")).take(2).collect::<Vec<_>>();
            return Ok(Some(first.join(" ").chars().take(160).collect()));
        }
        if Instant::now() > deadline {
            return Ok(Some("it hangs".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_still_fits_the_source() {
        let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        assert!(all(&workspace).unwrap().len() >= 20);
    }

    #[test]
    fn a_mutant_that_changes_nothing_is_none() {
        assert!(parse("m", "file: a\nabout: b\n--- old\nx\n--- new\ny\n").is_ok());
        assert!(parse("m", "file: a\nabout: b\n--- old\nx\n--- new\nx\n").is_err());
        assert!(parse("m", "about: b\n--- old\nx\n--- new\ny\n").is_err());
    }
}
