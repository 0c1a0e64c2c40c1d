package jdbcsmoke;

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.io.StringReader;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.Statement;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import java.util.UUID;

/** How results come back: generated keys, portals with a fetch size, large values, metadata of a result. */
final class ResultChecks {
    private ResultChecks() {}

    private static void items(Connection connection, Transcript out, int tenants, int rows) throws Exception {
        try (PreparedStatement insert = connection.prepareStatement(
            "INSERT INTO jdbc_items (tenant_id, item_id, name) VALUES (?, ?, ?)")) {
            for (int tenant = 0; tenant < tenants; tenant++) {
                for (int n = 0; n < rows; n++) {
                    Transcript.set(insert, out.tenant(tenant), n, "row " + n);
                    insert.addBatch();
                }
                insert.executeBatch();
            }
        }
    }

    static void add(Suite suite) {
        suite.add("generated_keys", (target, out) -> {
            try (Connection connection = target.connect()) {
                for (int n = 0; n < 8; n++) {
                    Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, 1)", out.tenant(n));
                }
                Set<String> keys = new HashSet<>();
                for (int n = 0; n < 8; n++) {
                    try (PreparedStatement insert = connection.prepareStatement(
                        "INSERT INTO jdbc_lines (tenant_id, item_id, quantity) VALUES (?, 1, ?)",
                        Statement.RETURN_GENERATED_KEYS)) {
                        Transcript.set(insert, out.tenant(n), n);
                        out.line(insert.executeUpdate());
                        ResultSet row = insert.getGeneratedKeys();
                        out.expect(row.next(), "a row of keys");
                        String lineId = row.getString("line_id");
                        keys.add(lineId);
                        out.line(row.getString("tenant_id"), row.getInt("quantity"), row.getMetaData().getColumnCount());
                        out.expect(row.getLong("number") > 0, "an identity");
                        out.expect(!row.next(), "one row of keys");
                        out.query(connection, "SELECT quantity FROM jdbc_lines WHERE tenant_id = ? AND line_id = ?",
                            out.tenant(n), UUID.fromString(lineId));
                    }
                }
                out.line(keys.size(), "different keys");
            }
        });

        suite.add("generated_keys_of_a_plain_table", (target, out) -> {
            try (Connection connection = target.connect()) {
                // currval() is the session's own in a transaction block only.
                connection.setAutoCommit(false);
                try (PreparedStatement insert = connection.prepareStatement(
                    "INSERT INTO jdbc_plain (v) VALUES (?), (?), (?)", new String[] {"id"})) {
                    Transcript.set(insert, "a", "b", "c");
                    out.line(insert.executeUpdate());
                    out.rows(insert.getGeneratedKeys());
                }
                out.query(connection, "SELECT id, v FROM jdbc_plain ORDER BY id");
                out.query(connection, "SELECT currval('jdbc_plain_id_seq') > 0");
                connection.commit();
            }
        });

        suite.add("generated_keys_of_updates_and_deletes", (target, out) -> {
            try (Connection connection = target.connect(); Statement statement = connection.createStatement()) {
                items(connection, out, 1, 3);
                String tenant = " WHERE tenant_id = '" + out.tenant(0) + "'";
                out.line(statement.executeUpdate("UPDATE jdbc_items SET version = item_id * 10" + tenant + " AND item_id = 2",
                    new String[] {"version"}));
                out.rows(statement.getGeneratedKeys());
                out.line(statement.execute("DELETE FROM jdbc_items" + tenant + " AND item_id = 1 RETURNING item_id"));
                out.rows(statement.getResultSet());
            }
        });

        suite.add("fetch_size", (target, out) -> {
            try (Connection connection = target.connect()) {
                items(connection, out, 1, 500);
                connection.setAutoCommit(false);
                for (int size : new int[] {1, 7, 100, 500, 1000}) {
                    try (PreparedStatement select = connection.prepareStatement(
                        "SELECT item_id, name FROM jdbc_items WHERE tenant_id = ? ORDER BY item_id")) {
                        select.setFetchSize(size);
                        select.setObject(1, out.tenant(0));
                        ResultSet rows = select.executeQuery();
                        long sum = 0;
                        int count = 0;
                        while (rows.next()) {
                            sum += rows.getInt(1) * (long) ++count;
                        }
                        out.line(size, count, sum);
                    }
                }
                connection.commit();
            }
        });

        suite.add("fetch_size_with_two_open_cursors", (target, out) -> {
            try (Connection connection = target.connect()) {
                items(connection, out, 8, 50);
                connection.setAutoCommit(false);
                String sql = "SELECT item_id FROM jdbc_items WHERE tenant_id = ? ORDER BY item_id";
                try (PreparedStatement first = connection.prepareStatement(sql);
                    PreparedStatement second = connection.prepareStatement(sql)) {
                    first.setFetchSize(9);
                    second.setFetchSize(11);
                    for (int n = 1; n < 8; n++) {
                        first.setObject(1, out.tenant(0));
                        second.setObject(1, out.tenant(n));
                        ResultSet a = first.executeQuery();
                        ResultSet b = second.executeQuery();
                        long sum = 0;
                        for (int i = 0; i < 40; i++) {
                            out.expect(a.next() && b.next(), "40 rows");
                            sum += a.getInt(1) * b.getInt(1);
                            if (i == 20) {
                                // Another statement between two fetches.
                                Transcript.run(connection, "UPDATE jdbc_items SET version = 1 WHERE tenant_id = ?", out.tenant(n));
                            }
                        }
                        out.line(sum);
                        // Left half read, so the portals are closed.
                        a.close();
                        b.close();
                    }
                }
                connection.rollback();
            }
        });

        suite.add("fetch_size_ended_by_an_error", (target, out) -> {
            try (Connection connection = target.connect()) {
                items(connection, out, 1, 60);
                connection.setAutoCommit(false);
                try (PreparedStatement select = connection.prepareStatement(
                    // One row, so that every plan yields the numbers in their order.
                    "SELECT 100 / (30 - n) FROM jdbc_items, generate_series(0, 59) n WHERE tenant_id = ? AND item_id = 1")) {
                    select.setFetchSize(10);
                    select.setObject(1, out.tenant(0));
                    int[] seen = {0};
                    out.error("cursor", () -> {
                        ResultSet rows = select.executeQuery();
                        while (rows.next()) {
                            seen[0]++;
                        }
                    });
                    out.line(seen[0], "rows before it");
                    out.error("next", () -> out.query(connection, "SELECT 1"));
                }
                connection.rollback();
                out.query(connection, "SELECT 1");
            }
        });

        suite.add("max_rows_and_scrolling", (target, out) -> {
            try (Connection connection = target.connect()) {
                items(connection, out, 1, 20);
                try (PreparedStatement select = connection.prepareStatement(
                    "SELECT item_id, name, tenant_id, version FROM jdbc_items WHERE tenant_id = ? ORDER BY item_id",
                    ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_READ_ONLY)) {
                    select.setObject(1, out.tenant(0));
                    select.setMaxRows(7);
                    ResultSet rows = select.executeQuery();
                    rows.last();
                    out.line(rows.getRow(), rows.getInt(1), rows.previous(), rows.getInt(1), rows.absolute(2), rows.getInt(1));
                }
                // The driver asks the catalogs for the primary key and writes UPDATE itself.
                try (PreparedStatement select = connection.prepareStatement(
                    "SELECT tenant_id, item_id, version FROM jdbc_items WHERE tenant_id = ? AND item_id = 3",
                    ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)) {
                    select.setObject(1, out.tenant(0));
                    ResultSet rows = select.executeQuery();
                    out.expect(rows.next(), "a row");
                    rows.updateInt("version", 33);
                    rows.updateRow();
                }
                out.query(connection, "SELECT version FROM jdbc_items WHERE tenant_id = ? AND item_id = 3", out.tenant(0));
            }
        });

        suite.add("large_values", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                String text = "0123456789abcdef, grün, 漢字. ".repeat(200_000);
                byte[] bytes = new byte[5_000_000];
                for (int i = 0; i < bytes.length; i++) {
                    bytes[i] = (byte) (i * 31 + i / 251);
                }
                for (int n = 0; n < 4; n++) {
                    try (PreparedStatement insert = connection.prepareStatement(
                        "INSERT INTO jdbc_types (tenant_id, id, t, bin) VALUES (?, 1, ?, ?)")) {
                        insert.setObject(1, out.tenant(n));
                        if (n % 2 == 0) {
                            insert.setString(2, text);
                            insert.setBytes(3, bytes);
                        } else {
                            insert.setCharacterStream(2, new StringReader(text));
                            insert.setBinaryStream(3, new ByteArrayInputStream(bytes), bytes.length);
                        }
                        out.line(insert.executeUpdate());
                    }
                    try (PreparedStatement select = connection.prepareStatement(
                        "SELECT t, bin, length(t), md5(bin) FROM jdbc_types WHERE tenant_id = ?")) {
                        select.setObject(1, out.tenant(n));
                        ResultSet row = select.executeQuery();
                        row.next();
                        out.expect(text.equals(row.getString(1)), "the text is the same");
                        InputStream stream = row.getBinaryStream(2);
                        out.expect(Arrays.equals(bytes, stream.readAllBytes()), "the bytes are the same");
                        out.line(row.getString(3), row.getString(4));
                    }
                }
                out.update(connection, "DELETE FROM jdbc_types WHERE tenant_id = ?", out.tenant(0));
            }
        });

        suite.add("result_set_metadata", (target, out) -> {
            try (Connection connection = target.connect()) {
                for (int n = 0; n < 8; n++) {
                    try (PreparedStatement select = connection.prepareStatement(
                        "SELECT i.*, l.number AS nr, l.quantity + 1 AS more FROM jdbc_items i JOIN jdbc_lines l"
                            + " ON l.tenant_id = i.tenant_id AND l.item_id = i.item_id WHERE i.tenant_id = ?")) {
                        select.setObject(1, out.tenant(n));
                        out.line("parameter", select.getParameterMetaData().getParameterTypeName(1));
                        describe(out, select.getMetaData());
                        describe(out, select.executeQuery().getMetaData());
                    }
                }
            }
        });
    }

    private static void describe(Transcript out, ResultSetMetaData columns) throws Exception {
        // The driver looks these up in the catalogs by the table's oid, which is the shard's.
        for (int c = 1; c <= columns.getColumnCount(); c++) {
            out.line(columns.getColumnLabel(c), columns.getColumnTypeName(c), columns.getColumnType(c), columns.getPrecision(c),
                columns.getScale(c), columns.isNullable(c), columns.isAutoIncrement(c), columns.getTableName(c),
                ((org.postgresql.PGResultSetMetaData) columns).getBaseTableName(c),
                ((org.postgresql.PGResultSetMetaData) columns).getBaseColumnName(c),
                ((org.postgresql.PGResultSetMetaData) columns).getBaseSchemaName(c));
        }
    }
}
