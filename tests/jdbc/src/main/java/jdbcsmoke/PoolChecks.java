package jdbcsmoke;

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** HikariCP as applications configure it. */
final class PoolChecks {
    private PoolChecks() {}

    private static HikariConfig config(Target target, int size) {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(target.url);
        config.setDataSourceProperties(target.properties("prepareThreshold", "1"));
        config.setMaximumPoolSize(size);
        config.setMinimumIdle(2);
        config.setConnectionTimeout(10_000);
        config.setValidationTimeout(3_000);
        config.setConnectionTestQuery("SELECT 1");
        config.setLeakDetectionThreshold(10_000);
        return config;
    }

    static void add(Suite suite) {
        suite.add("pool_many_threads", (target, out) -> {
            int threads = 16;
            int rounds = 25;
            try (HikariDataSource pool = new HikariDataSource(config(target, 8))) {
                ExecutorService executor = Executors.newFixedThreadPool(threads);
                List<Future<Integer>> results = new ArrayList<>();
                for (int thread = 0; thread < threads; thread++) {
                    UUID tenant = out.tenant(thread);
                    results.add(executor.submit(() -> {
                        int seen = 0;
                        for (int round = 0; round < rounds; round++) {
                            try (Connection connection = pool.getConnection()) {
                                Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, ?)",
                                    tenant, round);
                            }
                            // Read your writes: from another connection of the pool, outside a transaction.
                            try (Connection connection = pool.getConnection();
                                PreparedStatement statement = connection.prepareStatement(
                                    "SELECT count(*) FROM jdbc_items WHERE tenant_id = ?")) {
                                statement.setObject(1, tenant);
                                ResultSet rows = statement.executeQuery();
                                rows.next();
                                seen += rows.getInt(1);
                            }
                        }
                        return seen;
                    }));
                }
                for (Future<Integer> result : results) {
                    int seen = result.get();
                    out.expect(seen == rounds * (rounds + 1) / 2, "a write was not read: " + seen);
                }
                executor.shutdown();
                out.line("done");
            }
        });

        suite.add("pool_resets_what_a_borrower_changed", (target, out) -> {
            HikariConfig config = config(target, 1);
            config.setAutoCommit(false);
            config.setSchema("public");
            config.setConnectionInitSql("SET application_name = 'from the pool'");
            try (HikariDataSource pool = new HikariDataSource(config)) {
                try (Connection connection = pool.getConnection()) {
                    // The pool set the schema, which began a transaction.
                    connection.rollback();
                    connection.setReadOnly(true);
                    connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
                    connection.setSchema("jdbc_other");
                    out.query(connection, "SHOW transaction_isolation");
                    connection.rollback();
                }
                try (Connection connection = pool.getConnection()) {
                    out.line(connection.isReadOnly(), connection.getTransactionIsolation(), connection.getSchema());
                    out.query(connection, "SHOW transaction_isolation");
                    out.query(connection, "SHOW application_name");
                    out.update(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, 1)", out.tenant(0));
                    connection.commit();
                    Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, 2)", out.tenant(0));
                    // Returned without commit: the pool rolls back.
                }
                try (Connection connection = pool.getConnection()) {
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", out.tenant(0));
                    connection.rollback();
                }
            }
        });

        suite.add("pool_is_valid_and_survives_an_error", (target, out) -> {
            try (HikariDataSource pool = new HikariDataSource(config(target, 1))) {
                for (int i = 0; i < 3; i++) {
                    try (Connection connection = pool.getConnection()) {
                        out.line(connection.isValid(3));
                        out.error("division", () -> out.query(connection, "SELECT 1 / 0"));
                    }
                }
            }
        });
    }
}
