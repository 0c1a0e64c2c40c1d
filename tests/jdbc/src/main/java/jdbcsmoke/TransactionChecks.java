package jdbcsmoke;

import java.sql.Connection;
import java.sql.Savepoint;
import java.util.UUID;

/** Transactions, savepoints, isolation, read-only. */
final class TransactionChecks {
    private TransactionChecks() {}

    private static final String INSERT = "INSERT INTO jdbc_items (tenant_id, item_id, name) VALUES (?, ?, ?)";
    private static final String SELECT = "SELECT item_id, name FROM jdbc_items WHERE tenant_id = ? ORDER BY item_id";

    static void add(Suite suite) {
        suite.add("transaction_commit_and_rollback", (target, out) -> {
            try (Connection connection = target.connect(); Connection other = target.connect()) {
                connection.setAutoCommit(false);
                out.update(connection, INSERT, out.tenant(0), 1, "a");
                out.query(connection, SELECT, out.tenant(0));
                out.query(other, SELECT, out.tenant(0));
                connection.commit();
                out.query(other, SELECT, out.tenant(0));
                out.update(connection, INSERT, out.tenant(0), 2, "b");
                connection.rollback();
                out.query(connection, SELECT, out.tenant(0));
                connection.rollback();
                connection.setAutoCommit(true);
                out.update(connection, INSERT, out.tenant(0), 3, "c");
                out.query(other, SELECT, out.tenant(0));
            }
        });

        suite.add("transaction_aborted_by_an_error", (target, out) -> {
            try (Connection connection = target.connect()) {
                connection.setAutoCommit(false);
                Transcript.run(connection, INSERT, out.tenant(0), 1, "a");
                out.error("duplicate", () -> Transcript.run(connection, INSERT, out.tenant(0), 1, "b"));
                out.error("next", () -> out.query(connection, SELECT, out.tenant(0)));
                // raiseExceptionOnSilentRollback: COMMIT of an aborted transaction answers ROLLBACK.
                out.error("commit", connection::commit);
                connection.rollback();
                out.query(connection, SELECT, out.tenant(0));
                connection.commit();
            }
        });

        suite.add("transaction_over_several_tenants", (target, out) -> {
            try (Connection connection = target.connect()) {
                connection.setAutoCommit(false);
                for (int n = 0; n < 8; n++) {
                    Transcript.run(connection, INSERT, out.tenant(n), n, "committed");
                }
                connection.commit();
                for (int n = 0; n < 8; n++) {
                    Transcript.run(connection, INSERT, out.tenant(n), n + 100, "rolled back");
                    out.query(connection, SELECT, out.tenant(n));
                }
                connection.rollback();
                for (int n = 0; n < 8; n++) {
                    out.query(connection, SELECT, out.tenant(n));
                }
                connection.commit();
                // The eighth fails, so none of the eight is there.
                for (int n = 0; n < 7; n++) {
                    Transcript.run(connection, INSERT, out.tenant(n), n + 200, "x");
                }
                out.error("last", () -> Transcript.run(connection, INSERT, out.tenant(7), 7, "x"));
                out.error("commit", connection::commit);
                connection.rollback();
                for (int n = 0; n < 8; n++) {
                    out.query(connection, SELECT, out.tenant(n));
                }
                connection.commit();
            }
        });

        suite.add("savepoints", (target, out) -> {
            try (Connection connection = target.connect()) {
                connection.setAutoCommit(false);
                Savepoint empty = connection.setSavepoint("before anything");
                Transcript.run(connection, INSERT, out.tenant(0), 1, "kept");
                Savepoint outer = connection.setSavepoint();
                Transcript.run(connection, INSERT, out.tenant(0), 2, "undone");
                Savepoint inner = connection.setSavepoint("in \"quotes\"");
                out.error("duplicate", () -> Transcript.run(connection, INSERT, out.tenant(0), 2, "x"));
                connection.rollback(inner);
                out.query(connection, SELECT, out.tenant(0));
                connection.rollback(outer);
                out.query(connection, SELECT, out.tenant(0));
                Transcript.run(connection, INSERT, out.tenant(0), 3, "kept, too");
                connection.releaseSavepoint(outer);
                out.error("released", () -> connection.rollback(outer));
                connection.rollback(empty);
                Transcript.run(connection, INSERT, out.tenant(0), 4, "kept");
                connection.commit();
                out.query(connection, SELECT, out.tenant(0));
                connection.commit();
            }
        });

        suite.add("savepoints_over_several_tenants", (target, out) -> {
            try (Connection connection = target.connect()) {
                connection.setAutoCommit(false);
                Transcript.run(connection, INSERT, out.tenant(0), 0, "kept");
                Savepoint savepoint = connection.setSavepoint();
                // These tenants' shards are reached after the savepoint was set.
                for (int n = 1; n < 8; n++) {
                    Transcript.run(connection, INSERT, out.tenant(n), n, "undone");
                }
                connection.rollback(savepoint);
                Transcript.run(connection, INSERT, out.tenant(7), 77, "kept");
                connection.commit();
                for (int n = 0; n < 8; n++) {
                    out.query(connection, SELECT, out.tenant(n));
                }
                connection.commit();
            }
        });

        suite.add("savepoints_by_autosave", (target, out) -> {
            try (Connection connection = target.connect("autosave", "always")) {
                connection.setAutoCommit(false);
                Transcript.run(connection, INSERT, out.tenant(0), 1, "a");
                out.error("duplicate", () -> Transcript.run(connection, INSERT, out.tenant(0), 1, "b"));
                Transcript.run(connection, INSERT, out.tenant(0), 2, "c");
                connection.commit();
                out.query(connection, SELECT, out.tenant(0));
            }
        });

        suite.add("isolation_levels", (target, out) -> {
            int[] levels = {
                Connection.TRANSACTION_READ_UNCOMMITTED, Connection.TRANSACTION_READ_COMMITTED,
                Connection.TRANSACTION_REPEATABLE_READ, Connection.TRANSACTION_SERIALIZABLE,
            };
            try (Connection connection = target.connect()) {
                for (int level : levels) {
                    connection.setTransactionIsolation(level);
                    connection.setAutoCommit(false);
                    out.line(connection.getTransactionIsolation());
                    out.query(connection, "SHOW transaction_isolation");
                    Transcript.run(connection, INSERT, out.tenant(0), level, "level " + level);
                    out.query(connection, SELECT, out.tenant(0));
                    connection.commit();
                    connection.setAutoCommit(true);
                    out.query(connection, "SHOW transaction_isolation");
                }
            }
        });

        suite.add("isolation_repeatable_read", (target, out) -> {
            UUID tenant = out.tenant(0);
            try (Connection reader = target.connect(); Connection writer = target.connect()) {
                Transcript.run(writer, INSERT, tenant, 1, "before");
                reader.setAutoCommit(false);
                reader.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
                out.query(reader, SELECT, tenant);
                Transcript.run(writer, "UPDATE jdbc_items SET name = 'after' WHERE tenant_id = ?", tenant);
                out.query(reader, SELECT, tenant);
                out.error("update", () -> Transcript.run(reader, "UPDATE jdbc_items SET name = 'x' WHERE tenant_id = ?", tenant));
                reader.rollback();
                out.query(reader, SELECT, tenant);
                reader.rollback();
            }
        });

        suite.add("read_only_connections", (target, out) -> {
            int id = 0;
            for (String mode : new String[] {"ignore", "transaction", "always"}) {
                int row = ++id;
                try (Connection connection = target.connect("readOnlyMode", mode)) {
                    connection.setReadOnly(true);
                    out.line(mode, connection.isReadOnly());
                    out.query(connection, SELECT, out.tenant(0));
                    out.error("write", () -> Transcript.run(connection, INSERT, out.tenant(0), row, mode));
                    connection.setAutoCommit(false);
                    out.query(connection, SELECT, out.tenant(0));
                    out.error("write", () -> Transcript.run(connection, INSERT, out.tenant(1), row, mode));
                    connection.rollback();
                    connection.setReadOnly(false);
                    out.update(connection, INSERT, out.tenant(2), row, mode);
                    connection.commit();
                    out.query(connection, SELECT, out.tenant(2));
                    connection.commit();
                }
            }
        });

        suite.add("transaction_chain_and_modes_in_sql", (target, out) -> {
            try (Connection connection = target.connect()) {
                Transcript.run(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ");
                Transcript.run(connection, INSERT, out.tenant(0), 1, "a");
                Transcript.run(connection, "COMMIT AND CHAIN");
                out.query(connection, "SHOW transaction_isolation");
                Transcript.run(connection, INSERT, out.tenant(0), 2, "b");
                Transcript.run(connection, "ROLLBACK");
                Transcript.run(connection, "START TRANSACTION READ ONLY");
                out.error("write", () -> Transcript.run(connection, INSERT, out.tenant(0), 3, "c"));
                Transcript.run(connection, "ABORT");
                out.query(connection, SELECT, out.tenant(0));
            }
        });
    }
}
