package jdbcsmoke;

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

/**
 * An application that never pauses: transactions of one tenant, batches over several, and selects, until its standard input
 * ends. A transaction that is refused with 40001 is made again, as every PostgreSQL application must be able to; everything
 * else that fails is an error. Each thread has tenants of its own, so it knows what every row must say.
 */
final class Looping {
    private static final int THREADS = 4;
    private static final int TENANTS = 24;
    private static final int BATCH = 5;
    private static final int RETRIES_MOST = 100;
    /** Between two transactions of a thread, from begin to begin: a rate of its own, and not whatever the machine has left. */
    private static final long EVERY_MS = 100;
    private static final long RETRY_MS = 5;
    private static final String UPDATE = "UPDATE jdbc_loop SET n = n + 1 WHERE tenant_id = ?";

    private final HikariDataSource pool;
    private volatile boolean stop;

    private Looping(Target target) {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(target.url);
        config.setDataSourceProperties(target.properties());
        config.setMaximumPoolSize(THREADS);
        pool = new HikariDataSource(config);
    }

    /** The statements of one transaction. */
    private interface Work {
        void run(Connection connection) throws SQLException;
    }

    /** One thread, its tenants and what their rows must say. */
    private final class Worker {
        final Random random;
        final List<UUID> tenants = new ArrayList<>();
        final Map<UUID, Long> expected = new TreeMap<>();
        final Map<String, Long> errors = new TreeMap<>();
        final Map<String, Long> done = new TreeMap<>();
        final List<String> wrong = new ArrayList<>();
        long retries;
        double longestMs;

        Worker(int seed) {
            random = new Random(seed);
        }

        Worker loop() throws InterruptedException {
            while (!stop) {
                long next = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(EVERY_MS);
                switch (random.nextInt(4)) {
                    case 0 -> batch();
                    case 1 -> select();
                    default -> transaction();
                }
                TimeUnit.NANOSECONDS.sleep(next - System.nanoTime());
            }
            return this;
        }

        UUID tenant() {
            return tenants.get(random.nextInt(tenants.size()));
        }

        void transaction() throws InterruptedException {
            UUID tenant = tenant();
            Map<UUID, Long> after = new TreeMap<>(Map.of(tenant, expected.get(tenant) + 1));
            run("transactions", after, connection -> {
                try (PreparedStatement update = connection.prepareStatement(UPDATE)) {
                    update.setObject(1, tenant);
                    update.executeUpdate();
                }
                check(tenant, read(connection, tenant), after.get(tenant));
            });
        }

        /** One round trip, usually over several shards, and one commit. */
        void batch() throws InterruptedException {
            Map<UUID, Long> after = new TreeMap<>();
            while (after.size() < BATCH) {
                UUID tenant = tenant();
                after.put(tenant, expected.get(tenant) + 1);
            }
            run("batches", after, connection -> {
                try (PreparedStatement update = connection.prepareStatement(UPDATE)) {
                    // In one order everywhere.
                    for (UUID tenant : after.keySet()) {
                        update.setObject(1, tenant);
                        update.addBatch();
                    }
                    update.executeBatch();
                }
            });
        }

        void select() throws InterruptedException {
            UUID tenant = tenant();
            run("selects", Map.of(), connection -> {
                check(tenant, read(connection, tenant), expected.get(tenant));
                try (PreparedStatement all = connection.prepareStatement("SELECT count(*), count(DISTINCT tenant_id) FROM jdbc_loop");
                    ResultSet rows = all.executeQuery()) {
                    rows.next();
                    long count = rows.getLong(1);
                    if (count != THREADS * TENANTS || rows.getLong(2) != count) {
                        wrong.add(count + " rows of " + rows.getLong(2) + " tenants instead of " + THREADS * TENANTS);
                    }
                }
            });
        }

        /** Every row once more: what was acknowledged is there. */
        void last() throws InterruptedException {
            run("selects", Map.of(), connection -> {
                for (UUID tenant : tenants) {
                    check(tenant, read(connection, tenant), expected.get(tenant));
                }
            });
        }

        long read(Connection connection, UUID tenant) throws SQLException {
            try (PreparedStatement select = connection.prepareStatement("SELECT n FROM jdbc_loop WHERE tenant_id = ?")) {
                select.setObject(1, tenant);
                try (ResultSet rows = select.executeQuery()) {
                    return rows.next() ? rows.getLong(1) : -1;
                }
            }
        }

        void check(UUID tenant, long found, long right) {
            if (found != right) {
                wrong.add(tenant + " says " + found + " instead of " + right);
                expected.put(tenant, found);
            }
        }

        /** A transaction, again while it is refused with 40001. */
        void run(String kind, Map<UUID, Long> after, Work work) throws InterruptedException {
            long begun = System.nanoTime();
            for (int attempt = 0; attempt <= RETRIES_MOST; attempt++) {
                try (Connection connection = pool.getConnection()) {
                    connection.setAutoCommit(false);
                    try {
                        work.run(connection);
                        connection.commit();
                    } catch (SQLException failed) {
                        undo(connection);
                        throw failed;
                    }
                    expected.putAll(after);
                    done.merge(kind, 1L, Long::sum);
                    longestMs = Math.max(longestMs, (System.nanoTime() - begun) / 1e6);
                    return;
                } catch (SQLException failed) {
                    SQLException first = failed;
                    // A batch wraps what the server said.
                    while (first.getNextException() != null) {
                        first = first.getNextException();
                    }
                    if ("40001".equals(first.getSQLState()) && attempt < RETRIES_MOST) {
                        retries++;
                        TimeUnit.MILLISECONDS.sleep(RETRY_MS);
                        continue;
                    }
                    errors.merge(String.valueOf(first.getSQLState()), 1L, Long::sum);
                    System.err.println(kind + ": " + first.getSQLState() + " " + first.getMessage());
                    settle(after);
                    return;
                }
            }
        }

        /** A connection that cannot even roll back is thrown away by the pool. */
        void undo(Connection connection) {
            try {
                connection.rollback();
            } catch (SQLException gone) {
                errors.merge("rollback " + gone.getSQLState(), 1L, Long::sum);
            }
        }

        /** After an error the update is there or not, which is no mistake of anybody's. */
        void settle(Map<UUID, Long> after) {
            try (Connection connection = pool.getConnection()) {
                for (Map.Entry<UUID, Long> entry : after.entrySet()) {
                    long found = read(connection, entry.getKey());
                    if (found != entry.getValue() && found != entry.getValue() - 1) {
                        wrong.add(entry.getKey() + " says " + found + " after an error, instead of " + entry.getValue() + " or one less");
                    }
                    expected.put(entry.getKey(), found);
                }
            } catch (SQLException failed) {
                errors.merge("settling " + failed.getSQLState(), 1L, Long::sum);
            }
        }
    }

    private void statement(String sql) throws SQLException {
        try (Connection connection = pool.getConnection(); var statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    /** Prints "ready" when everything is there, and one line of JSON at the end; false when something failed. */
    static boolean run(Target target) throws Exception {
        Looping application = new Looping(target);
        try (HikariDataSource pool = application.pool) {
            application.statement("CREATE TABLE IF NOT EXISTS jdbc_loop (tenant_id uuid PRIMARY KEY, n bigint NOT NULL)");
            application.statement("DELETE FROM jdbc_loop");
            List<Worker> workers = new ArrayList<>();
            try (Connection connection = pool.getConnection();
                PreparedStatement insert = connection.prepareStatement("INSERT INTO jdbc_loop VALUES (?, 0)")) {
                for (int thread = 0; thread < THREADS; thread++) {
                    Worker worker = application.new Worker(thread);
                    for (int n = 0; n < TENANTS; n++) {
                        UUID tenant = UUID.randomUUID();
                        insert.setObject(1, tenant);
                        insert.executeUpdate();
                        worker.tenants.add(tenant);
                        worker.expected.put(tenant, 0L);
                    }
                    workers.add(worker);
                }
            }
            ExecutorService threads = Executors.newFixedThreadPool(THREADS);
            List<Future<Worker>> running = new ArrayList<>();
            workers.forEach(worker -> running.add(threads.submit(worker::loop)));
            System.out.println("ready");
            while (System.in.read() >= 0) {
                // Only its end says something.
            }
            application.stop = true;
            threads.shutdown();
            for (Future<Worker> one : running) {
                one.get();
            }
            for (Worker worker : workers) {
                worker.last();
            }
            boolean well = print(workers);
            application.statement("DELETE FROM jdbc_loop");
            return well;
        }
    }

    private static boolean print(List<Worker> workers) {
        Map<String, Long> done = new TreeMap<>(Map.of("transactions", 0L, "batches", 0L, "selects", 0L));
        Map<String, Long> errors = new TreeMap<>();
        List<String> wrong = new ArrayList<>();
        long retries = 0;
        double longestMs = 0;
        for (Worker worker : workers) {
            worker.done.forEach((kind, count) -> done.merge(kind, count, Long::sum));
            worker.errors.forEach((state, count) -> errors.merge(state, count, Long::sum));
            wrong.addAll(worker.wrong);
            retries += worker.retries;
            longestMs = Math.max(longestMs, worker.longestMs);
        }
        long ok = done.values().stream().mapToLong(Long::longValue).sum();
        String kinds = done.entrySet().stream().map(Looping::member).collect(Collectors.joining(","));
        String states = errors.entrySet().stream().map(Looping::member).collect(Collectors.joining(","));
        String first = wrong.stream().limit(5).map(text -> '"' + text + '"').collect(Collectors.joining(","));
        System.out.printf("{\"ok\":%d,%s,\"errors\":{%s},\"retries_40001\":%d,\"wrong\":%d,\"wrong_first\":[%s],\"longest_ms\":%.1f}%n",
            ok, kinds, states, retries, wrong.size(), first, longestMs);
        return ok > 0 && errors.isEmpty() && wrong.isEmpty();
    }

    private static String member(Map.Entry<String, Long> entry) {
        return '"' + entry.getKey() + "\":" + entry.getValue();
    }
}
