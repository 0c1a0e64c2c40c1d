//! The programs of others that the stack runs: finding them, naming what is missing, installing it when asked to.

use crate::process::run;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest PostgreSQL that has everything used here (multirange types aside, mostly `pg_rewind` and slots).
const POSTGRES_MINIMUM: u32 = 14;

#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// Directory with `postgres`, `initdb`, `pg_basebackup` and the rest.
    pub postgres: PathBuf,
    pub postgres_version: u32,
    pub redis: PathBuf,
    pub java: PathBuf,
    /// Whom the servers run as when we are root.
    pub user: Option<(u32, u32)>,
}

struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const SERVERS: [Need; 4] = [
    Need { program: "postgres", package: "postgresql", why: "PostgreSQL, the shards" },
    Need { program: "redis-server", package: "redis-server", why: "Redis, the cache" },
    Need { program: "java", package: "default-jre-headless", why: "a Java runtime for Apache Kafka" },
    Need { program: "mvn", package: "maven", why: "Maven, which brings the Kafka jars" },
];

/// What compiling the workspace needs besides Rust: librdkafka and the PostgreSQL grammar are C.
const BUILD: [Need; 3] = [
    Need { program: "cc", package: "build-essential", why: "a C compiler" },
    Need { program: "make", package: "build-essential", why: "make, for librdkafka" },
    Need {
        program: "clang",
        package: "libclang-dev clang",
        why: "libclang, for the bindings of the PostgreSQL grammar",
    },
];

const JAVA_COMPILER: Need =
    Need { program: "javac", package: "default-jdk-headless", why: "a Java compiler for the JDBC tests" };

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Servers,
    /// And what runs beside them is compiled.
    Building,
    Everything,
}

pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where ordinary users' PATH does not look.
    let dirs =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The newest PostgreSQL on this machine: PG_BINDIR, Debian's versioned directories, then PATH.
fn postgres_bin() -> Option<(PathBuf, u32)> {
    let version = |bin: &Path| -> Option<u32> {
        let text = run(Command::new(bin.join("postgres")).arg("--version")).ok()?;
        text.split_whitespace().find_map(|word| word.split(['.', 'd', 'b', 'r']).next()?.parse().ok())
    };
    if let Some(dir) = std::env::var_os("PG_BINDIR") {
        let dir = PathBuf::from(dir);
        return version(&dir).map(|number| (dir, number));
    }
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("postgres").is_file() && bin.join("initdb").is_file())
        .collect();
    found.sort();
    if let Some((number, bin)) = found.pop() {
        return Some((bin, number));
    }
    let dir = which("postgres")?.parent()?.to_path_buf();
    version(&dir).map(|number| (dir, number))
}

fn present(need: &Need) -> bool {
    match need.program {
        "postgres" => postgres_bin().is_some(),
        // Maven is needed once; its jars are cached.
        "mvn" => which("mvn").is_some() || crate::kafka::jars().is_ok_and(|jars| jars.is_dir()),
        // The bindings need the library. A compiler may be there without it.
        "clang" => libclang(),
        program => which(program).is_some(),
    }
}

fn libclang() -> bool {
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    // There, or in a folder of LLVM's version, or of the architecture.
    ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
        .into_iter()
        .flat_map(|root| entries(root.into()))
        .flat_map(|found| {
            let within = entries(found.path()).chain(entries(found.path().join("lib"))).collect::<Vec<_>>();
            std::iter::once(found).chain(within)
        })
        .any(|file| is_libclang(&file.file_name().to_string_lossy()))
        || std::env::var_os("LIBCLANG_PATH").is_some()
}

/// Not `libclang-cpp`, which other packages bring without it: that one has no C interface.
fn is_libclang(file: &str) -> bool {
    (file.starts_with("libclang.so") || file.starts_with("libclang-"))
        && file.contains(".so")
        && !file.contains("-cpp.")
}

/// Names what is missing and how to install it; installs it when `install` says so.
pub(crate) fn ensure(purpose: For, install: bool) -> Result<Tools> {
    let needs = || {
        let rest = if purpose == For::Servers { &[] } else { &BUILD[..] };
        let javac = (purpose == For::Everything).then_some(&JAVA_COMPILER);
        SERVERS.iter().chain(rest).chain(javac).filter(|need| !present(need))
    };
    let missing: Vec<&Need> = needs().collect();
    if !missing.is_empty() {
        let mut packages: Vec<&str> = missing.iter().flat_map(|need| need.package.split(' ')).collect();
        packages.sort_unstable();
        packages.dedup();
        let list: Vec<String> =
            missing.iter().map(|need| format!("  {} ({})", need.program, need.why)).collect();
        let command = format!("apt-get install -y {}", packages.join(" "));
        if !install {
            bail!(
                "missing:\n{}\ninstall with: sudo {command}\nor let this command do it: --install",
                list.join("\n")
            );
        }
        apt_get(&list, &packages)?;
        if let Some(still) = needs().next() {
            bail!("{} is still missing after `{command}`", still.program);
        }
    }
    let (postgres, postgres_version) = postgres_bin().context("no PostgreSQL found")?;
    if postgres_version < POSTGRES_MINIMUM {
        bail!(
            "PostgreSQL {postgres_version} in {} is too old: {POSTGRES_MINIMUM} or newer",
            postgres.display()
        );
    }
    Ok(Tools {
        postgres,
        postgres_version,
        redis: which("redis-server").context("redis-server")?,
        java: which("java").context("java")?,
        user: server_user()?,
    })
}

fn apt_get(list: &[String], packages: &[&str]) -> Result<()> {
    let Some(apt) = which("apt-get") else {
        bail!(
            "missing:\n{}\nand there is no apt-get here; install them with this system's package manager",
            list.join("\n")
        );
    };
    let root = nix::unistd::geteuid().is_root();
    if !root && which("sudo").is_none() {
        bail!("missing:\n{}\nas root: apt-get install -y {}", list.join("\n"), packages.join(" "));
    }
    out!("missing:\n{}\ninstalling with apt-get: {}", list.join("\n"), packages.join(" "));
    let apt_get = |arguments: &[&str]| -> Result<bool> {
        let mut command = if root { Command::new(&apt) } else { Command::new("sudo") };
        if !root {
            command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        }
        // Debian would start a cluster and a redis of its own with the packages; this stack runs its own.
        let status =
            command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).status().context("apt-get")?;
        Ok(status.success())
    };
    if !apt_get(&["update", "-q"])? {
        eprintln!("apt-get update failed; trying with the package lists as they are");
    }
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages);
    if !apt_get(&arguments)? {
        bail!("apt-get install -y {} failed", packages.join(" "));
    }
    Ok(())
}

/// PostgreSQL refuses to run as root.
fn server_user() -> Result<Option<(u32, u32)>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let user = nix::unistd::User::from_name("postgres")?.context(
        "you are root, and there is no user `postgres` to run the servers as: adduser --system postgres",
    )?;
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}

/// Bytes of memory this machine (or container) has.
pub(crate) fn memory_bytes() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(4 << 30, |kib| kib * 1024);
    let limit =
        std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    limit.map_or(total, |limit: u64| limit.min(total))
}

#[cfg(test)]
mod tests {
    use super::is_libclang;

    #[test]
    fn the_library_of_the_bindings() {
        for file in
            ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-14.0.6.so.1", "libclang-14.so"]
        {
            assert!(is_libclang(file), "{file}");
        }
        for file in ["libclang-cpp.so.14", "libclang-cpp.so.14.0", "libclang-14.a", "libclangAST.so", "llvm"]
        {
            assert!(!is_libclang(file), "{file}");
        }
    }
}
