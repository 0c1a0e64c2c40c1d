package jdbcsmoke;

import java.sql.Connection;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.UUID;

/** Errors with every field of the server's own. */
final class ErrorChecks {
    private ErrorChecks() {}

    static void add(Suite suite) {
        suite.add("error_fields", (target, out) -> {
            try (Connection connection = target.connect()) {
                String items = "INSERT INTO jdbc_items (tenant_id, item_id, name, amount) VALUES (?, ?, ?, ?)";
                for (int n = 0; n < 4; n++) {
                    UUID tenant = out.tenant(n);
                    Transcript.run(connection, items, tenant, 1, "a", 1);
                    out.error("primary key", () -> Transcript.run(connection, items, tenant, 1, "b", 1));
                    out.error("unique", () -> Transcript.run(connection, items, tenant, 2, "a", 1));
                    out.error("check", () -> Transcript.run(connection, items, tenant, 2, "b", -1));
                    out.error("not null", () -> Transcript.run(connection, items, tenant, null, "b", 1));
                    out.error("overflow", () -> Transcript.run(connection, items, tenant, 2, "b", new java.math.BigDecimal("1e15")));
                    out.error("foreign key", () -> Transcript.run(connection,
                        "INSERT INTO jdbc_lines (tenant_id, item_id, quantity) VALUES (?, 99, 1)", tenant));
                    Transcript.run(connection, "INSERT INTO jdbc_lines (tenant_id, item_id, quantity) VALUES (?, 1, 1)", tenant);
                    out.error("still referenced", () -> Transcript.run(connection, "DELETE FROM jdbc_items WHERE tenant_id = ?", tenant));
                    out.error("null key", () -> Transcript.run(connection, items, null, 1, "a", 1));
                    out.error("division", () -> out.query(connection,
                        "SELECT 1 / (item_id - 1) FROM jdbc_items WHERE tenant_id = ?", tenant));
                    out.error("cast", () -> out.query(connection,
                        "SELECT name::int FROM jdbc_items WHERE tenant_id = ?", tenant));
                }
            }
        });

        suite.add("error_positions", (target, out) -> {
            try (Connection connection = target.connect(); Statement statement = connection.createStatement()) {
                String tenant = "'" + out.tenant(0) + "'";
                for (String sql : new String[] {
                    "SELECT * FORM jdbc_items",
                    "SELECT nothing FROM jdbc_items WHERE tenant_id = " + tenant,
                    "SELECT jdbc_items.nam FROM jdbc_items WHERE tenant_id = " + tenant,
                    "SELECT * FROM jdbc_nothing WHERE tenant_id = " + tenant,
                    "SELECT upper(item_id) FROM jdbc_items WHERE tenant_id = " + tenant,
                    "SELECT 'abc'::int",
                    "SELECT item_id FROM jdbc_items WHERE tenant_id = " + tenant + " AND name = 5",
                    "INSERT INTO jdbc_items (tenant_id, nope) VALUES (" + tenant + ", 1)",
                    "INSERT INTO jdbc_items (tenant_id) VALUES (" + tenant + ", 1)",
                    "UPDATE jdbc_items SET nope = 1 WHERE tenant_id = " + tenant,
                    "SELECT item_id, count(*) FROM jdbc_items WHERE tenant_id = " + tenant,
                    "SELECT 'unterminated",
                    "DROP TABLE jdbc_nothing",
                    "CREATE TABLE jdbc_items (id int)",
                }) {
                    out.error(sql, () -> statement.execute(sql));
                }
                // The connection is none the worse.
                out.query(connection, "SELECT 1");
            }
        });

        suite.add("error_codes_of_what_a_proxy_must_know", (target, out) -> {
            // Names and keys that a proxy has to read before it knows a server: it says what is wrong with the same
            // SQLSTATE, but it may know fewer fields (the types of arguments, the position).
            try (Connection connection = target.connect(); Statement statement = connection.createStatement()) {
                for (String sql : new String[] {
                    "SELECT no_such_function(1)",
                    "SELECT lower(1, 2)",
                    "SELECT * FROM jdbc_items WHERE tenant_id = 'not a uuid'",
                    "INSERT INTO jdbc_items (tenant_id, item_id) VALUES ('not a uuid', 1)",
                    "SELECT * FROM jdbc_nothing",
                    "INSERT INTO jdbc_nothing VALUES (1)",
                }) {
                    try {
                        statement.execute(sql);
                        out.line("no error");
                    } catch (SQLException error) {
                        out.line(error.getSQLState());
                    }
                }
            }
        });

        suite.add("error_in_a_multi_statement_query", (target, out) -> {
            for (String mode : new String[] {"simple", "extended"}) {
                try (Connection connection = target.connect("preferQueryMode", mode); Statement statement = connection.createStatement()) {
                    String insert = "INSERT INTO jdbc_items (tenant_id, item_id) VALUES ('" + out.tenant(mode.length()) + "', ";
                    out.error(mode, () -> statement.execute(insert + "1); " + insert + "2); " + insert + "1)"));
                    // One implicit transaction: nothing of it stays.
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", out.tenant(mode.length()));
                    out.line(statement.execute(insert + "1); " + insert + "2); SELECT item_id FROM jdbc_items WHERE tenant_id = '"
                        + out.tenant(mode.length()) + "' ORDER BY 1"));
                    out.line(statement.getUpdateCount(), statement.getMoreResults(), statement.getUpdateCount(), statement.getMoreResults());
                    out.rows(statement.getResultSet());
                    out.line(statement.getMoreResults(), statement.getUpdateCount());
                    // Over several tenants, too.
                    StringBuilder all = new StringBuilder();
                    for (int n = 100; n < 108; n++) {
                        all.append("INSERT INTO jdbc_items (tenant_id, item_id) VALUES ('" + out.tenant(n) + "', " + mode.length() + ");");
                    }
                    out.error("several", () -> statement.execute(all + insert + "1)"));
                    for (int n = 100; n < 108; n++) {
                        out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", out.tenant(n));
                    }
                    out.line(statement.execute(all.toString()));
                    for (int n = 100; n < 108; n++) {
                        out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ? ORDER BY 1", out.tenant(n));
                    }
                }
            }
        });
    }
}
