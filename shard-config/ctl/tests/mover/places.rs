//! The program itself as a move's runner, stopped at places within its steps (`shardctl::mover::fault`).

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::Bed;
use crate::commands::Tool;

pub struct Places {
    tool: Tool,
    directory: PathBuf,
}

impl Places {
    pub fn new(bed: &Bed) -> Self {
        let tool = Tool::new(bed);
        let directory = tool.directory.join("places");
        std::fs::create_dir_all(&directory).unwrap();
        Self { tool, directory }
    }

    /// The runner that gets to `place` next stops there, for a minute at most.
    pub fn stop_at(&self, place: &str) {
        std::fs::write(self.directory.join(place), "").unwrap();
    }

    pub fn start(&self, words: &str) -> Child {
        self.tool.command(words).env("SHARDCTL_FAULT_DIR", &self.directory).spawn().unwrap()
    }

    /// A figure in place of what a server says, or none any more.
    pub fn say(&self, name: &str, figure: Option<&str>) {
        let file = self.directory.join(name);
        figure.map_or_else(|| std::fs::remove_file(&file), |figure| std::fs::write(&file, figure)).unwrap();
    }

    pub async fn reached(&self, place: &str) {
        let reached = self.directory.join(format!("{place}.reached"));
        let begun = Instant::now();
        while !reached.exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody came to {place}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn go_on(&self, place: &str) {
        std::fs::remove_file(self.directory.join(format!("{place}.reached"))).unwrap();
    }
}

/// A stop within the pause is not to use up what an attempt has.
pub async fn unhurried(bed: &Bed, id: i64) {
    bed.load(id).await.set(&bed.control, json!({ "fence_limit_ms": 60_000 })).await.unwrap();
}
