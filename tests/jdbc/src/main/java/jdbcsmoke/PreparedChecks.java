package jdbcsmoke;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.util.ArrayList;
import java.util.List;
import org.postgresql.PGStatement;

/** Server-prepared statements, which must survive transaction pooling. */
final class PreparedChecks {
    private PreparedChecks() {}

    static void add(Suite suite) {
        for (String threshold : new String[] {"1", "5", "0", "-1"}) {
            suite.add("prepared_threshold_" + threshold, (target, out) -> {
                try (Connection connection = target.connect("prepareThreshold", threshold);
                    PreparedStatement insert = connection.prepareStatement(
                        "INSERT INTO jdbc_items (tenant_id, item_id, name, amount) VALUES (?, ?, ?, ?)");
                    PreparedStatement select = connection.prepareStatement(
                        "SELECT item_id, name, amount, version FROM jdbc_items WHERE tenant_id = ? AND item_id >= ?")) {
                    for (int n = 0; n < 12; n++) {
                        Transcript.set(insert, out.tenant(n % 8), n, "name " + n, new java.math.BigDecimal("1.5"));
                        out.line(insert.executeUpdate());
                        Transcript.set(select, out.tenant(n % 8), n);
                        out.rows(select.executeQuery());
                    }
                    out.line(select.unwrap(PGStatement.class).isUseServerPrepare());
                }
            });
        }

        suite.add("prepared_many_distinct_statements", (target, out) -> {
            // More than the driver's cache, so that it closes statements while others are in use.
            try (Connection connection = target.connect("prepareThreshold", "1", "preparedStatementCacheQueries", "40")) {
                for (int round = 0; round < 2; round++) {
                    long sum = 0;
                    for (int n = 0; n < 300; n++) {
                        String sql = "SELECT count(*) + " + n + " AS c" + n + " FROM jdbc_items WHERE tenant_id = ?";
                        try (PreparedStatement statement = connection.prepareStatement(sql)) {
                            for (int tenant = 0; tenant < 4; tenant++) {
                                statement.setObject(1, out.tenant(tenant));
                                ResultSet rows = statement.executeQuery();
                                rows.next();
                                sum += rows.getLong("c" + n);
                            }
                        }
                    }
                    out.line(sum);
                }
            }
        });

        suite.add("prepared_many_connections", (target, out) -> {
            List<Connection> connections = new ArrayList<>();
            for (int n = 0; n < 12; n++) {
                connections.add(target.connect("prepareThreshold", "1"));
            }
            // The driver names its statements S_1, S_2, ... on every connection, here of different texts.
            for (int round = 0; round < 3; round++) {
                for (int n = 0; n < connections.size(); n++) {
                    for (int k = 0; k < 4; k++) {
                        out.query(connections.get(n), "SELECT " + (n + k) + ", ?::text FROM jdbc_items"
                            + " WHERE tenant_id = ? UNION ALL SELECT 0, 'none'", "p" + k, out.tenant(n));
                    }
                }
            }
            for (Connection connection : connections) {
                connection.close();
            }
        });

        suite.add("prepared_across_ddl", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1"); Connection ddl = target.connect()) {
                String sql = "SELECT * FROM jdbc_items WHERE tenant_id = ?";
                Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, 1)", out.tenant(0));
                out.query(connection, sql, out.tenant(0));
                out.query(connection, sql, out.tenant(0));
                try {
                    Transcript.run(ddl, "ALTER TABLE jdbc_items ADD COLUMN extra int DEFAULT 7");
                    // "cached plan must not change result type": outside a transaction the driver prepares again.
                    out.query(connection, sql, out.tenant(0));
                } finally {
                    Transcript.run(ddl, "ALTER TABLE jdbc_items DROP COLUMN extra");
                }
                out.query(connection, sql, out.tenant(0));
            }
        });

        suite.add("prepared_after_deallocate_all", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                String sql = "SELECT count(*) FROM jdbc_items WHERE tenant_id = ?";
                out.query(connection, sql, out.tenant(0));
                Transcript.run(connection, "DEALLOCATE ALL");
                out.query(connection, sql, out.tenant(0));
                Transcript.run(connection, "DISCARD ALL");
                out.query(connection, sql, out.tenant(0));
            }
        });

        suite.addRefusable("prepared_in_sql", (target, out) -> {
            try (Connection connection = target.connect()) {
                Transcript.run(connection, "PREPARE by_tenant (uuid) AS SELECT count(*) FROM jdbc_items WHERE tenant_id = $1");
                for (int n = 0; n < 4; n++) {
                    out.query(connection, "EXECUTE by_tenant ('" + out.tenant(n) + "')");
                }
                Transcript.run(connection, "DEALLOCATE by_tenant");
                out.error("gone", () -> out.query(connection, "EXECUTE by_tenant ('" + out.tenant(0) + "')"));
            }
        });

        for (String mode : new String[] {"simple", "extendedForPrepared", "extendedCacheEverything"}) {
            suite.add("query_mode_" + mode, (target, out) -> {
                try (Connection connection = target.connect("preferQueryMode", mode)) {
                    for (int n = 0; n < 8; n++) {
                        out.update(connection, "INSERT INTO jdbc_items (tenant_id, item_id, name) VALUES (?, ?, ?)",
                            out.tenant(n), n, "it's \\ n");
                        out.query(connection, "SELECT item_id, name FROM jdbc_items WHERE tenant_id = ?", out.tenant(n));
                        out.rows(connection.createStatement().executeQuery(
                            "SELECT item_id FROM jdbc_items WHERE tenant_id = '" + out.tenant(n) + "'"));
                    }
                    out.update(connection, "DELETE FROM jdbc_items WHERE tenant_id = ?", out.tenant(0));
                }
            });
        }
    }
}
