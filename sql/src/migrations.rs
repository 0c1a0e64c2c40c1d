//! The migrations, in the order in which they are applied.

use sha2::{Digest, Sha256};

/// One forward-only step.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Grows by one from 1.
    pub version: i32,
    pub name: &'static str,
    pub sql: &'static str,
}

impl Migration {
    /// Hex SHA-256 of the file, recorded with the version so that a changed file is noticed.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

macro_rules! migrations {
    ($($version:literal $name:literal),* $(,)?) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../migrations/", $name, ".sql")),
        }),*]
    };
}

/// All of them.
pub const MIGRATIONS: &[Migration] = migrations![
    1 "0001_tenants",
    2 "0002_ledger",
    3 "0003_posting",
    4 "0004_currencies",
    5 "0005_payment_filters",
    6 "0006_transactions_view",
    7 "0007_partitions",
];

#[cfg(test)]
mod tests {
    use super::MIGRATIONS;

    #[test]
    fn versions_count_up_and_match_their_file_names() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(usize::try_from(migration.version).ok(), Some(index + 1));
            assert!(migration.name.starts_with(&format!("{:04}_", migration.version)), "{}", migration.name);
        }
    }

    #[test]
    fn every_file_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let files = std::fs::read_dir(folder).expect("the folder exists").count();
        assert_eq!(files, MIGRATIONS.len());
    }
}
