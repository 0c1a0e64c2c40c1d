package jdbcsmoke;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.Statement;
import java.util.Arrays;

/** Batches, which pgjdbc sends as one pipeline or rewrites into multi-row INSERTs. */
final class BatchChecks {
    private BatchChecks() {}

    private static final String INSERT = "INSERT INTO jdbc_items (tenant_id, item_id, name) VALUES (?, ?, ?)";

    private static void fill(PreparedStatement insert, Transcript out, int rows, int tenants, int from) throws Exception {
        for (int n = 0; n < rows; n++) {
            Transcript.set(insert, out.tenant(n % tenants), from + n, "row " + (from + n));
            insert.addBatch();
        }
    }

    private static void count(Connection connection, Transcript out, int tenants) throws Exception {
        for (int tenant = 0; tenant < tenants; tenant++) {
            out.query(connection, "SELECT count(*), min(item_id), max(item_id) FROM jdbc_items WHERE tenant_id = ?",
                out.tenant(tenant));
        }
    }

    static void add(Suite suite) {
        for (String rewrite : new String[] {"false", "true"}) {
            for (int tenants : new int[] {1, 8}) {
                String kind = (rewrite.equals("true") ? "rewritten_" : "plain_") + (tenants == 1 ? "one_tenant" : "many_tenants");
                suite.add("batch_" + kind, (target, out) -> {
                    try (Connection connection = target.connect("reWriteBatchedInserts", rewrite, "prepareThreshold", "2");
                        PreparedStatement insert = connection.prepareStatement(INSERT)) {
                        // 137 = 128 + 8 + 1: rewritten in three sizes. Three times: unnamed, then prepared.
                        for (int round = 0; round < 3; round++) {
                            fill(insert, out, 137, tenants, round * 1000);
                            int[] counts = insert.executeBatch();
                            // Rewritten batches answer SUCCESS_NO_INFO.
                            out.line(counts.length, Arrays.stream(counts).min().getAsInt(), Arrays.stream(counts).max().getAsInt());
                        }
                        connection.setAutoCommit(false);
                        fill(insert, out, 40, tenants, 5000);
                        insert.executeBatch();
                        fill(insert, out, 40, tenants, 6000);
                        insert.executeBatch();
                        count(connection, out, tenants);
                        connection.rollback();
                        count(connection, out, tenants);
                        connection.commit();
                    }
                });

                suite.add("batch_violating_last_row_" + kind, (target, out) -> {
                    try (Connection connection = target.connect("reWriteBatchedInserts", rewrite);
                        PreparedStatement insert = connection.prepareStatement(INSERT)) {
                        // The last row's name is the first row's: nothing of the batch may stay, committed or not.
                        for (boolean autoCommit : new boolean[] {true, false}) {
                            connection.setAutoCommit(autoCommit);
                            fill(insert, out, 63, tenants, 0);
                            Transcript.set(insert, out.tenant(0), 9999, "row 0");
                            insert.addBatch();
                            out.error("batch", insert::executeBatch);
                            if (!autoCommit) {
                                connection.rollback();
                            }
                            count(connection, out, tenants);
                        }
                        connection.commit();
                    }
                });
            }
        }

        suite.add("batch_of_updates_and_deletes", (target, out) -> {
            try (Connection connection = target.connect();
                PreparedStatement insert = connection.prepareStatement(INSERT);
                PreparedStatement update = connection.prepareStatement(
                    "UPDATE jdbc_items SET version = version + 1 WHERE tenant_id = ? AND item_id < ?");
                PreparedStatement delete = connection.prepareStatement(
                    "DELETE FROM jdbc_items WHERE tenant_id = ? AND item_id = ?")) {
                fill(insert, out, 32, 8, 0);
                insert.executeBatch();
                for (int n = 0; n < 8; n++) {
                    Transcript.set(update, out.tenant(n), 16);
                    update.addBatch();
                    Transcript.set(delete, out.tenant(n), n);
                    delete.addBatch();
                    Transcript.set(delete, out.tenant(n), 1000);
                    delete.addBatch();
                }
                out.line(update.executeBatch());
                out.line(delete.executeBatch());
                for (int n = 0; n < 8; n++) {
                    out.query(connection, "SELECT item_id, version FROM jdbc_items WHERE tenant_id = ? ORDER BY 1", out.tenant(n));
                }
            }
        });

        suite.add("batch_of_different_statements", (target, out) -> {
            try (Connection connection = target.connect(); Statement batch = connection.createStatement()) {
                for (int n = 0; n < 8; n++) {
                    batch.addBatch("INSERT INTO jdbc_items (tenant_id, item_id) VALUES ('" + out.tenant(n) + "', 1)");
                    batch.addBatch("UPDATE jdbc_items SET version = 5 WHERE tenant_id = '" + out.tenant(n) + "'");
                }
                out.line(batch.executeBatch());
                count(connection, out, 8);
                batch.addBatch("DELETE FROM jdbc_items WHERE tenant_id = '" + out.tenant(0) + "'");
                batch.addBatch("DELETE FROM jdbc_items WHERE tenant_id = '" + out.tenant(1) + "'");
                batch.addBatch("INSERT INTO jdbc_items (tenant_id, item_id) VALUES ('" + out.tenant(2) + "', 1)");
                out.error("batch", batch::executeBatch);
                count(connection, out, 8);
            }
        });

        suite.add("batch_with_generated_keys", (target, out) -> {
            try (Connection connection = target.connect("reWriteBatchedInserts", "true")) {
                for (int n = 0; n < 8; n++) {
                    Transcript.run(connection, INSERT, out.tenant(n), 1, "item");
                }
                for (int tenants : new int[] {1, 8}) {
                    try (PreparedStatement insert = connection.prepareStatement(
                        "INSERT INTO jdbc_lines (tenant_id, item_id, quantity) VALUES (?, 1, ?)",
                        new String[] {"quantity", "tenant_id"})) {
                        for (int n = 0; n < 24; n++) {
                            Transcript.set(insert, out.tenant(n % tenants), n);
                            insert.addBatch();
                        }
                        out.line(insert.executeBatch().length);
                        // In the order of the batch.
                        out.rows(insert.getGeneratedKeys());
                    }
                }
            }
        });

        suite.add("batch_larger_than_a_pipeline", (target, out) -> {
            // pgjdbc cuts a batch with a Sync every 64 KB of what it expects to be answered.
            try (Connection connection = target.connect();
                PreparedStatement insert = connection.prepareStatement(INSERT)) {
                connection.setAutoCommit(false);
                fill(insert, out, 2000, 8, 0);
                out.line(Arrays.stream(insert.executeBatch()).sum());
                connection.commit();
                count(connection, out, 8);
            }
        });
    }
}
