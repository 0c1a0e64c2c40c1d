//! Where things are: the workspace, cargo's target directory, the data directory.

use crate::args::Options;
use anyhow::{Context, Result, bail};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The checkout this binary was built from. Asked at run time first, so that a moved checkout still works.
pub(crate) fn workspace() -> Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Ok(dir) = std::env::var("CARGO_MANIFEST_DIR") {
        candidates.push(dir.into());
    }
    candidates.push(env!("CARGO_MANIFEST_DIR").into());
    if let Ok(dir) = std::env::current_dir() {
        candidates.push(dir);
    }
    candidates
        .iter()
        .flat_map(|dir| dir.ancestors())
        .find(|dir| dir.join("tests/stack/Cargo.toml").is_file() && dir.join("Cargo.toml").is_file())
        .map(Path::to_path_buf)
        .context("cannot find the workspace; run this from inside the checkout")
}

/// cargo's target directory, from where this binary itself lies (`target/<profile>/stack`).
pub(crate) fn target() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    me.parent()
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .context("this binary lies outside a target directory")
}

/// A binary of the workspace, in the profile that demo, tests and load runs share.
pub(crate) fn release(name: &str) -> Result<PathBuf> {
    Ok(target()?.join("release").join(name))
}

/// The data directory: `--dir`, STACK_DIR, or `.stack/<port base>` of the workspace. PostgreSQL refuses to run as root,
/// so a root user's servers run as `postgres`, who must be able to reach the directory; when a parent is closed to
/// others (a checkout below /root), the data goes to /var/lib instead.
pub(crate) fn data_dir(options: &Options) -> Result<PathBuf> {
    if let Some(dir) = &options.dir {
        return std::path::absolute(dir).with_context(|| format!("--dir {}", dir.display()));
    }
    let workspace = workspace()?;
    let wanted = workspace.join(".stack").join(options.port_base.to_string());
    if !nix::unistd::geteuid().is_root() || traversable(&workspace) {
        return Ok(wanted);
    }
    let hash = fnv1a(wanted.as_os_str().as_encoded_bytes());
    Ok(PathBuf::from(format!("/var/lib/shard-stack/{hash:016x}")))
}

/// Whether a user who is neither owner nor in the group may pass through every directory on the way.
pub(crate) fn traversable(dir: &Path) -> bool {
    dir.ancestors().all(|part| part.metadata().is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Creates the directory; `--dir /` and other people's directories are refused rather than filled.
pub(crate) fn create_data_dir(dir: &Path) -> Result<()> {
    if dir.parent().is_none() {
        bail!("--dir / : the stack needs a directory of its own");
    }
    std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("cannot create {}", dir.display()))?;
    if nix::unistd::geteuid().is_root() && !traversable(dir) {
        bail!(
            "{} cannot be reached by the user `postgres`, as whom the servers run when you are root; \
             choose another --dir or open its parents (chmod o+x)",
            dir.display()
        );
    }
    Ok(())
}
