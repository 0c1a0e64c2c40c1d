package jdbcsmoke;

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.Statement;
import java.util.UUID;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** The SQL of an ordinary application, one tenant a statement, and what may span tenants already. */
final class StatementChecks {
    private StatementChecks() {}

    private static void fill(Connection connection, Transcript out, int tenants) throws Exception {
        for (int n = 0; n < tenants; n++) {
            for (int item = 1; item <= 5; item++) {
                Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id, name, amount) VALUES (?, ?, ?, ?)",
                    out.tenant(n), item, "item " + item, item * 10);
                Transcript.run(connection, "INSERT INTO jdbc_lines (tenant_id, item_id, quantity) VALUES (?, ?, ?)",
                    out.tenant(n), item, item);
            }
        }
    }

    static void add(Suite suite) {
        suite.add("queries_of_one_tenant", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                fill(connection, out, 8);
                for (int n = 0; n < 8; n++) {
                    UUID tenant = out.tenant(n);
                    out.query(connection, "SELECT i.name, l.quantity FROM jdbc_items i JOIN jdbc_lines l ON l.tenant_id = i.tenant_id"
                        + " AND l.item_id = i.item_id WHERE i.tenant_id = ? ORDER BY 1", tenant);
                    out.query(connection, "SELECT i.name, l.quantity FROM jdbc_items i LEFT JOIN jdbc_lines l USING (tenant_id, item_id)"
                        + " WHERE tenant_id = ? AND i.item_id > 3 ORDER BY 1", tenant);
                    out.query(connection, "SELECT i.name FROM jdbc_items i, jdbc_lines l WHERE i.tenant_id = l.tenant_id"
                        + " AND i.item_id = l.item_id AND l.tenant_id = ? ORDER BY 1 LIMIT 2 OFFSET 1", tenant);
                    out.query(connection, "SELECT item_id FROM jdbc_items i WHERE tenant_id = ? AND EXISTS (SELECT 1 FROM jdbc_lines l"
                        + " WHERE l.tenant_id = i.tenant_id AND l.item_id = i.item_id AND l.quantity > 2) ORDER BY 1", tenant);
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ? AND item_id IN (SELECT item_id"
                        + " FROM jdbc_lines WHERE tenant_id = ? AND quantity < 3) ORDER BY 1", tenant, tenant);
                    out.query(connection, "SELECT count(*), sum(amount), avg(amount), max(name), array_agg(item_id ORDER BY item_id)"
                        + " FROM jdbc_items WHERE tenant_id = ?", tenant);
                    out.query(connection, "SELECT item_id % 2, count(*) FROM jdbc_items WHERE tenant_id = ? GROUP BY 1 HAVING count(*) > 1"
                        + " ORDER BY 1", tenant);
                    out.query(connection, "SELECT name, rank() OVER (ORDER BY amount DESC) FROM jdbc_items WHERE tenant_id = ?", tenant);
                    out.query(connection, "WITH big AS (SELECT * FROM jdbc_items WHERE tenant_id = ? AND amount > 20)"
                        + " SELECT item_id FROM big ORDER BY 1", tenant);
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ? AND amount > 40 UNION ALL"
                        + " SELECT quantity FROM jdbc_lines WHERE tenant_id = ? AND quantity < 2", tenant, tenant);
                    out.query(connection, "SELECT quantity FROM jdbc_item_totals WHERE tenant_id = ? AND item_id = 4", tenant);
                    out.query(connection, "SELECT (SELECT max(quantity) FROM jdbc_lines l WHERE l.tenant_id = i.tenant_id) FROM jdbc_items i"
                        + " WHERE i.tenant_id = ? AND i.item_id = 1", tenant);
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id IN (?, ?, ?) ORDER BY 1", tenant, tenant, tenant);
                }
                out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ? AND tenant_id = ?", out.tenant(0), out.tenant(0));
                out.query(connection, "SELECT 1 AS one, now() IS NOT NULL, version() LIKE 'PostgreSQL%', $$it's$$ || E'\\n'");
            }
        });

        suite.add("writes_of_one_tenant", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                fill(connection, out, 4);
                for (int n = 0; n < 4; n++) {
                    UUID tenant = out.tenant(n);
                    String upsert = "INSERT INTO jdbc_items (tenant_id, item_id, amount) VALUES (?, ?, ?) ON CONFLICT (tenant_id, item_id)"
                        + " DO UPDATE SET amount = jdbc_items.amount + excluded.amount, version = jdbc_items.version + 1";
                    out.update(connection, upsert, tenant, 1, 5);
                    out.update(connection, upsert, tenant, 9, 5);
                    out.update(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, 1) ON CONFLICT DO NOTHING", tenant);
                    out.query(connection, upsert + " RETURNING item_id, amount, version", tenant, 9, 1);
                    out.query(connection, "WITH changed AS (UPDATE jdbc_items SET amount = amount * 2 WHERE tenant_id = ?"
                        + " AND item_id < 3 RETURNING amount) SELECT amount FROM changed ORDER BY 1", tenant);
                    out.update(connection, "UPDATE jdbc_items i SET name = 'line ' || l.quantity FROM jdbc_lines l WHERE i.tenant_id = ?"
                        + " AND l.tenant_id = i.tenant_id AND l.item_id = i.item_id AND l.quantity = 4", tenant);
                    out.update(connection, "DELETE FROM jdbc_lines l USING jdbc_items i WHERE l.tenant_id = ? AND i.tenant_id = l.tenant_id"
                        + " AND i.item_id = l.item_id AND i.item_id = 5", tenant);
                    out.update(connection, "INSERT INTO jdbc_items (tenant_id, item_id, name) SELECT tenant_id, item_id + 100, name || '!'"
                        + " FROM jdbc_items WHERE tenant_id = ?", tenant);
                    out.query(connection, "WITH gone AS (DELETE FROM jdbc_items WHERE tenant_id = ? AND item_id > 100 RETURNING item_id)"
                        + " SELECT count(*) FROM gone", tenant);
                    connection.setAutoCommit(false);
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ? AND item_id = 2 FOR UPDATE", tenant);
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ? AND item_id = 3 FOR SHARE SKIP LOCKED", tenant);
                    connection.commit();
                    connection.setAutoCommit(true);
                    out.query(connection, "SELECT item_id, name, amount, version FROM jdbc_items WHERE tenant_id = ? ORDER BY 1", tenant);
                }
            }
        });

        suite.add("insert_of_several_tenants", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1"); Statement statement = connection.createStatement()) {
                StringBuilder literals = new StringBuilder("INSERT INTO jdbc_items (item_id, tenant_id, name) VALUES ");
                StringBuilder parameters = new StringBuilder("INSERT INTO jdbc_items (tenant_id, item_id, name) VALUES ");
                Object[] values = new Object[24];
                for (int n = 0; n < 8; n++) {
                    literals.append(n > 0 ? ", " : "").append("(1, '" + out.tenant(n) + "', 'it''s " + n + "')");
                    parameters.append(n > 0 ? ", " : "").append("(?, ?, upper(?))");
                    values[3 * n] = out.tenant(n);
                    values[3 * n + 1] = 2;
                    values[3 * n + 2] = "two " + n;
                }
                out.line(statement.executeUpdate(literals.toString()));
                out.update(connection, parameters.toString(), values);
                out.error("again", () -> Transcript.run(connection, parameters.toString(), values));
                for (int n = 0; n < 8; n++) {
                    values[3 * n + 1] = n == 7 ? 1 : 3;
                    values[3 * n + 2] = "three " + n;
                }
                // Only the last row collides; the other tenants' rows must not stay.
                out.error("last row", () -> Transcript.run(connection, parameters.toString(), values));
                out.update(connection, parameters + " ON CONFLICT DO NOTHING", values);
                for (int n = 0; n < 8; n++) {
                    values[3 * n + 1] = 4;
                    values[3 * n + 2] = "four " + n;
                }
                out.query(connection, parameters + " RETURNING name, item_id", values);
                for (int n = 0; n < 8; n++) {
                    out.query(connection, "SELECT item_id, name FROM jdbc_items WHERE tenant_id = ? ORDER BY 1", out.tenant(n));
                }
            }
        });

        for (String format : new String[] {"text", "csv"}) {
            suite.add("copy_" + format, (target, out) -> {
                try (Connection connection = target.connect()) {
                    CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
                    String comma = format.equals("csv") ? "," : "\t";
                    StringBuilder data = new StringBuilder();
                    for (int n = 0; n < 400; n++) {
                        // PostgreSQL does not count a line end within quotes before it has seen one outside, so the
                        // line that an error names would depend on the shard's first row.
                        String quoted = n < 8 ? "lines " + n : "\"with \"\"quotes\"\",\nand lines " + n + "\"";
                        data.append(n).append(comma).append(out.tenant(n % 8)).append(comma)
                            .append(format.equals("csv") ? quoted : "tab\\tand\\nlines " + n).append('\n');
                    }
                    String into = "COPY jdbc_items (item_id, tenant_id, name) FROM STDIN (FORMAT " + format + ")";
                    out.line(copy.copyIn(into, new StringReader(data.toString())));
                    for (int n = 0; n < 8; n++) {
                        out.query(connection, "SELECT count(*), min(name), max(name) FROM jdbc_items WHERE tenant_id = ?", out.tenant(n));
                    }
                    StringWriter written = new StringWriter();
                    out.line(copy.copyOut("COPY (SELECT item_id, name FROM jdbc_items WHERE tenant_id = '" + out.tenant(3)
                        + "' ORDER BY 1 LIMIT 5) TO STDOUT (FORMAT " + format + ")", written));
                    out.line(written);
                    // Only the last line is a duplicate: nothing of the COPY stays.
                    String bad = data.toString().replaceAll("(?m)^(\\d+)(?=[,\\t][0-9a-f]{8}-)", "1$10000")
                        .replace("lines ", "other lines ") + "0" + comma + out.tenant(0) + comma + "x\n";
                    out.error("duplicate", () -> copy.copyIn(into, new StringReader(bad)));
                    out.query(connection, "SELECT count(*) FROM jdbc_items WHERE tenant_id = ?", out.tenant(5));
                    out.error("no number", () -> copy.copyIn(into, new StringReader("x" + comma + out.tenant(0) + comma + "x\n")));
                    out.query(connection, "SELECT 1");
                    connection.setAutoCommit(false);
                    copy.copyIn(into, new StringReader("7000" + comma + out.tenant(0) + comma + "x\n8000" + comma + out.tenant(1) + comma + "x\n"));
                    connection.rollback();
                    out.query(connection, "SELECT count(*) FROM jdbc_items WHERE tenant_id = ?", out.tenant(0));
                }
            });
        }

        suite.add("ddl", (target, out) -> {
            try (Connection connection = target.connect(); Statement statement = connection.createStatement()) {
                statement.execute("DROP TABLE IF EXISTS jdbc_ddl");
                out.line(statement.execute("CREATE TABLE jdbc_ddl (tenant_id uuid NOT NULL, id int NOT NULL, PRIMARY KEY (tenant_id, id))"));
                for (int n = 0; n < 8; n++) {
                    out.update(connection, "INSERT INTO jdbc_ddl VALUES (?, ?)", out.tenant(n), n);
                }
                statement.execute("ALTER TABLE jdbc_ddl ADD COLUMN note text NOT NULL DEFAULT 'none'");
                statement.execute("CREATE INDEX jdbc_ddl_note ON jdbc_ddl (tenant_id, note)");
                for (int n = 0; n < 8; n++) {
                    out.query(connection, "SELECT id, note FROM jdbc_ddl WHERE tenant_id = ?", out.tenant(n));
                }
                // DDL is transactional, on every shard.
                connection.setAutoCommit(false);
                statement.execute("ALTER TABLE jdbc_ddl ADD COLUMN undone int");
                connection.rollback();
                connection.setAutoCommit(true);
                for (int n = 0; n < 8; n++) {
                    out.query(connection, "SELECT * FROM jdbc_ddl WHERE tenant_id = ?", out.tenant(n));
                }
                statement.execute("DROP TABLE jdbc_ddl");
                out.error("dropped", () -> out.query(connection, "SELECT * FROM jdbc_ddl WHERE tenant_id = ?", out.tenant(0)));
            }
        });
    }
}
