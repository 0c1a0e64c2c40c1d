package jdbcsmoke;

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.util.Arrays;
import java.util.UUID;

/**
 * The statements of a JPA provider, written out: ordered batches of 50, IN clauses padded to a power of two, version
 * columns, autocommit disabled by the pool.
 */
final class JpaChecks {
    private JpaChecks() {}

    static void add(Suite suite) {
        suite.add("jpa_unit_of_work", (target, out) -> {
            HikariConfig config = new HikariConfig();
            config.setJdbcUrl(target.url);
            config.setDataSourceProperties(target.properties("reWriteBatchedInserts", "true", "prepareThreshold", "3"));
            config.setMaximumPoolSize(2);
            config.setAutoCommit(false);
            try (HikariDataSource pool = new HikariDataSource(config)) {
                for (int n = 0; n < 8; n++) {
                    UUID tenant = out.tenant(n);
                    try (Connection connection = pool.getConnection()) {
                        // Flush: inserts of all parents, then of all children, each in batches of 50.
                        try (PreparedStatement insert = connection.prepareStatement(
                            "insert into jdbc_items (amount,name,version,item_id,tenant_id) values (?,?,?,?,?)")) {
                            for (int i = 0; i < 120; i++) {
                                Transcript.set(insert, new java.math.BigDecimal("1.25"), "n" + i, 0, i, tenant);
                                insert.addBatch();
                                if (i % 50 == 49 || i == 119) {
                                    out.line(insert.executeBatch().length);
                                }
                            }
                        }
                        try (PreparedStatement insert = connection.prepareStatement(
                            "insert into jdbc_lines (item_id,quantity,line_id,tenant_id) values (?,?,?,?)")) {
                            for (int i = 0; i < 60; i++) {
                                Transcript.set(insert, i, i, new UUID(n, i), tenant);
                                insert.addBatch();
                                if (i % 50 == 49 || i == 59) {
                                    out.line(insert.executeBatch().length);
                                }
                            }
                        }
                        connection.commit();
                    }
                    try (Connection connection = pool.getConnection()) {
                        connection.setReadOnly(true);
                        out.query(connection, "select ji1_0.tenant_id,ji1_0.item_id,ji1_0.amount,ji1_0.name,ji1_0.version from jdbc_items ji1_0"
                            + " where (ji1_0.tenant_id,ji1_0.item_id) in ((?,?))", tenant, 3);
                        out.query(connection, "select i1_0.item_id,l1_0.line_id,l1_0.quantity from jdbc_items i1_0 left join jdbc_lines l1_0"
                            + " on i1_0.tenant_id=l1_0.tenant_id and i1_0.item_id=l1_0.item_id where i1_0.tenant_id=? and i1_0.item_id in (?,?,?,?)"
                            + " order by 1", tenant, 58, 59, 60, 60);
                        out.query(connection, "select i1_0.name from jdbc_items i1_0 where i1_0.tenant_id=? order by i1_0.item_id desc"
                            + " offset ? rows fetch first ? rows only", tenant, 5, 3);
                        out.query(connection, "select count(i1_0.item_id) from jdbc_items i1_0 where i1_0.tenant_id=? and (i1_0.name like ?"
                            + " escape '' or ? is null)", tenant, "n1%", "n1");
                        connection.commit();
                    }
                    try (Connection connection = pool.getConnection()) {
                        out.query(connection, "select i1_0.item_id,i1_0.version from jdbc_items i1_0 where i1_0.tenant_id=? and i1_0.item_id=?"
                            + " for no key update of i1_0", tenant, 7);
                        try (PreparedStatement update = connection.prepareStatement(
                            "update jdbc_items set amount=?,name=?,version=? where tenant_id=? and item_id=? and version=?")) {
                            for (int i = 0; i < 50; i++) {
                                // The last two were changed by somebody else: the count says so.
                                Transcript.set(update, new java.math.BigDecimal("2.5"), "m" + i, 1, tenant, i, i < 48 ? 0 : 9);
                                update.addBatch();
                            }
                            out.line(Arrays.stream(update.executeBatch()).sum());
                        }
                        try (PreparedStatement delete = connection.prepareStatement(
                            "delete from jdbc_lines where tenant_id=? and line_id=?")) {
                            for (int i = 0; i < 60; i++) {
                                Transcript.set(delete, tenant, new UUID(n, i));
                                delete.addBatch();
                            }
                            out.line(Arrays.stream(delete.executeBatch()).sum());
                        }
                        connection.commit();
                        out.query(connection, "select sum(amount), count(*) filter (where version = 1) from jdbc_items where tenant_id = ?", tenant);
                    }
                }
            }
        });

        suite.add("jpa_statement_cache", (target, out) -> {
            // In-clause padding gives 1, 2, 4, ... 64 parameters, each its own server-prepared statement.
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                UUID tenant = out.tenant(0);
                for (int i = 0; i < 64; i++) {
                    Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, ?)", tenant, i);
                }
                for (int round = 0; round < 3; round++) {
                    for (int size = 1; size <= 64; size *= 2) {
                        String sql = "select item_id from jdbc_items where tenant_id=? and item_id in (" + "?,".repeat(size - 1) + "?)";
                        try (PreparedStatement select = connection.prepareStatement(sql)) {
                            select.setObject(1, tenant);
                            for (int i = 0; i < size; i++) {
                                select.setInt(i + 2, Math.min(i, size - 2));
                            }
                            int count = 0;
                            for (ResultSet rows = select.executeQuery(); rows.next();) {
                                count++;
                            }
                            out.line(size, count);
                        }
                    }
                }
            }
        });
    }
}
