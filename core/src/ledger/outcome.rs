//! What a failed posting statement tells about its payments. PURE.

/// What is known after a failure, and therefore what may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Some payment of the batch holds values that the database refuses. Nothing was applied. Halves are posted again
    /// until the culprit stands alone.
    Poison,
    /// The batch's tenants are on several shards. Nothing was applied. It is split by a fresh map.
    Straddles,
    /// Certainly not applied, and a later try may succeed.
    NotApplied,
    /// Certainly not applied, and the same batch succeeds once an operator has added what is missing (a partition).
    Unready,
    /// Sent, and no answer came: it may have been applied or still become so. Only posting the same keys and payment ids
    /// again tells, because claiming a key waits for whoever holds it (H32).
    Unknown,
    /// Certainly not applied, and trying again is of no use: this program or the schema is wrong.
    Broken,
}

/// By SQLSTATE. An error answer to an autocommit statement means that its transaction was rolled back, except where the
/// answer comes from somebody who does not know (08xxx, 40003) or from a server that is going down (57P01, 57P02: it may
/// have been waiting for the standby with its commit already written).
/// `constraint`: its name, if the error gave one. A row without a partition is a check violation without a name.
pub fn of_sqlstate(state: &str, constraint: Option<&str>) -> Failure {
    match state {
        "SP001" => Failure::Straddles,
        // Connection refused or rejected: nothing was sent.
        "08001" | "08004" => Failure::NotApplied,
        "40003" | "57P01" | "57P02" => Failure::Unknown,
        // A plan or a prepared statement that is gone: a new connection cures it. So does the end of a fail-over for
        // 25006 (a primary that became a standby).
        "25006" | "26000" => Failure::NotApplied,
        // A row that others have not written yet, or that was taken away: nothing about these values.
        "23503" => Failure::NotApplied,
        "23514" if constraint.is_none() => Failure::Unready,
        _ => match state.get(..2) {
            Some("22" | "23" | "P0") => Failure::Poison,
            Some("08") => Failure::Unknown,
            Some("0A" | "42" | "3F") => Failure::Broken,
            _ => Failure::NotApplied,
        },
    }
}

/// Whether an error of a single payment is about what it says, so that it is refused for good: bad data, a named check,
/// or an exception that a function raised.
pub fn is_about_values(state: &str) -> bool {
    state == "23514" || matches!(state.get(..2), Some("22" | "P0"))
}

/// Any error of a statement that was handed to the driver.
pub fn of_error(error: &tokio_postgres::Error) -> Failure {
    match error.code() {
        // tokio-postgres keeps a prepared statement over DDL; PostgreSQL then says 0A000, and preparing anew cures it.
        Some(code) if code.code() == "0A000" && message(error).contains("cached plan") => Failure::NotApplied,
        Some(code) => of_sqlstate(code.code(), error.as_db_error().and_then(|e| e.constraint())),
        // No SQLSTATE: the connection broke, or its answer could not be read.
        None => Failure::Unknown,
    }
}

fn message(error: &tokio_postgres::Error) -> &str {
    error.as_db_error().map_or("", |e| e.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h32_only_certain_errors_are_certain() {
        for (state, expected) in [
            ("SP001", Failure::Straddles),
            ("08007", Failure::Unknown),
            ("08006", Failure::Unknown),
            ("08001", Failure::NotApplied),
            ("57P01", Failure::Unknown),
            ("57P02", Failure::Unknown),
            ("57P03", Failure::NotApplied),
            ("57014", Failure::NotApplied),
            ("40001", Failure::NotApplied),
            ("40P01", Failure::NotApplied),
            ("40003", Failure::Unknown),
            ("53300", Failure::NotApplied),
            ("55P03", Failure::NotApplied),
            ("25006", Failure::NotApplied),
            ("26000", Failure::NotApplied),
            ("42883", Failure::Broken),
            ("0A000", Failure::Broken),
            ("23503", Failure::NotApplied),
            ("23514", Failure::Unready),
        ] {
            assert_eq!(of_sqlstate(state, None), expected, "{state}");
        }
    }

    #[test]
    fn h38_only_classes_22_23_and_p0_bisect() {
        for state in ["22003", "23502", "23505", "P0001"] {
            assert_eq!(of_sqlstate(state, None), Failure::Poison);
        }
        assert_eq!(of_sqlstate("23514", Some("payments_amount_minor_check")), Failure::Poison);
        for state in ["40001", "53100", "57014", "XX000", "42P01", "28000", "55000", "SP001", ""] {
            assert_ne!(of_sqlstate(state, None), Failure::Poison, "{state}");
        }
    }

    #[test]
    fn only_values_are_refused_for_good() {
        for (state, expected) in [
            ("22P02", true),
            ("P0001", true),
            ("23514", true),
            ("23502", false),
            ("23503", false),
            ("23505", false),
        ] {
            assert_eq!(is_about_values(state), expected, "{state}");
        }
    }
}
