package jdbcsmoke;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Statement;
import java.util.concurrent.CompletableFuture;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

/** What belongs to a session: settings, schema, cancel, temporary tables, notifications. */
final class SessionChecks {
    private SessionChecks() {}

    private static final String INSERT = "INSERT INTO jdbc_items (tenant_id, item_id, name) VALUES (?, ?, ?)";

    static void add(Suite suite) {
        suite.add("query_timeout", (target, out) -> {
            try (Connection connection = target.connect(); Statement statement = connection.createStatement()) {
                Transcript.run(connection, INSERT, out.tenant(0), 1, "x");
                statement.setQueryTimeout(1);
                for (String sql : new String[] {
                    "SELECT pg_sleep(20)",
                    "SELECT pg_sleep(20) FROM jdbc_items WHERE tenant_id = '" + out.tenant(0) + "'",
                }) {
                    long start = System.nanoTime();
                    out.error("timeout", () -> statement.executeQuery(sql));
                    out.expect(System.nanoTime() - start < 5_000_000_000L, "cancelled within 5 s");
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", out.tenant(0));
                }
            }
        });

        suite.add("cancel_from_another_thread", (target, out) -> {
            try (Connection connection = target.connect(); Connection bystander = target.connect()) {
                connection.setAutoCommit(false);
                Transcript.run(connection, INSERT, out.tenant(0), 1, "x");
                try (PreparedStatement sleep = connection.prepareStatement(
                    "SELECT pg_sleep(20) FROM jdbc_items WHERE tenant_id = ?")) {
                    sleep.setObject(1, out.tenant(0));
                    CompletableFuture<Void> cancel = CompletableFuture.runAsync(() -> {
                        try {
                            Thread.sleep(300);
                            sleep.cancel();
                        } catch (InterruptedException | SQLException problem) {
                            throw new IllegalStateException(problem);
                        }
                    });
                    out.error("cancelled", sleep::executeQuery);
                    cancel.get();
                    out.query(bystander, "SELECT 1");
                }
                out.error("next", () -> out.query(connection, "SELECT 1"));
                connection.rollback();
                out.query(connection, "SELECT count(*) FROM jdbc_items WHERE tenant_id = ?", out.tenant(0));
                connection.commit();
                // A cancel that comes too late hits nothing, not the connection's next user's statement either.
                try (Statement idle = connection.createStatement()) {
                    idle.cancel();
                    idle.cancel();
                }
                for (int n = 0; n < 20; n++) {
                    Transcript.run(bystander, INSERT, out.tenant(1), n, "row " + n);
                }
                out.query(bystander, "SELECT count(*) FROM jdbc_items WHERE tenant_id = ?", out.tenant(1));
            }
        });

        suite.add("settings_follow_the_session", (target, out) -> {
            try (Connection connection = target.connect("ApplicationName", "smoke"); Connection other = target.connect()) {
                out.query(connection, "SHOW application_name");
                Transcript.run(connection, "SET TimeZone = 'Asia/Tokyo'");
                Transcript.run(connection, "SET IntervalStyle = 'iso_8601'");
                Transcript.run(connection, "SET extra_float_digits = 0");
                Transcript.run(connection, "SET work_mem TO '7MB'");
                connection.setClientInfo("ApplicationName", "renamed");
                for (int n = 0; n < 8; n++) {
                    Transcript.run(connection, INSERT, out.tenant(n), 1, "x");
                    String sql = "SELECT current_setting('TimeZone'), current_setting('work_mem'), current_setting('application_name'),"
                        + " interval '90 min' FROM jdbc_items WHERE tenant_id = ?";
                    out.query(connection, sql, out.tenant(n));
                    // The same servers, with nothing of it.
                    out.query(other, "SELECT current_setting('work_mem'), interval '90 min' FROM jdbc_items WHERE tenant_id = ?",
                        out.tenant(n));
                }
                connection.setAutoCommit(false);
                Transcript.run(connection, "SET LOCAL work_mem = '9MB'");
                out.query(connection, "SELECT current_setting('work_mem') FROM jdbc_items WHERE tenant_id = ?", out.tenant(3));
                Transcript.run(connection, "SET work_mem = '11MB'");
                connection.rollback();
                out.query(connection, "SELECT current_setting('work_mem') FROM jdbc_items WHERE tenant_id = ?", out.tenant(3));
                connection.commit();
                connection.setAutoCommit(true);
                Transcript.run(connection, "RESET work_mem");
                out.query(connection, "SELECT current_setting('work_mem') = (SELECT reset_val FROM pg_settings WHERE name = 'work_mem')");
                out.error("no such setting", () -> Transcript.run(connection, "SET work_memory = '1MB'"));
                out.error("bad value", () -> Transcript.run(connection, "SET work_mem = 'lots'"));
                Transcript.run(connection, "RESET ALL");
                out.query(connection, "SELECT interval '90 min'");
            }
        });

        suite.add("statement_timeout_by_set", (target, out) -> {
            try (Connection connection = target.connect("options", "-c statement_timeout=10s")) {
                out.query(connection, "SHOW statement_timeout");
                Transcript.run(connection, "SET statement_timeout = '200ms'");
                out.error("timeout", () -> out.query(connection, "SELECT pg_sleep(5)"));
                Transcript.run(connection, "SET statement_timeout = 0");
                out.query(connection, "SELECT pg_sleep(0.3)::text");
            }
        });

        suite.add("set_schema", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                for (int n = 0; n < 4; n++) {
                    connection.setSchema("public");
                    out.line(connection.getSchema());
                    Transcript.run(connection, INSERT, out.tenant(n), 1, "public");
                    connection.setSchema("jdbc_other");
                    out.line(connection.getSchema());
                    Transcript.run(connection, INSERT, out.tenant(n), 2, "other");
                    out.query(connection, "SELECT name FROM jdbc_items WHERE tenant_id = ?", out.tenant(n));
                    out.query(connection, "SELECT name FROM public.jdbc_items WHERE tenant_id = ?", out.tenant(n));
                }
                out.error("not in the path", () -> out.query(connection, "SELECT * FROM jdbc_lines WHERE tenant_id = ?", out.tenant(0)));
            }
            try (Connection connection = target.connect("currentSchema", "jdbc_other,public")) {
                out.query(connection, "SELECT name FROM jdbc_items WHERE tenant_id = ?", out.tenant(0));
                out.query(connection, "SELECT * FROM jdbc_lines WHERE tenant_id = ?", out.tenant(0));
            }
        });

        suite.add("warnings", (target, out) -> {
            try (Connection connection = target.connect(); Statement statement = connection.createStatement()) {
                statement.execute("DROP TABLE IF EXISTS jdbc_not_there");
                for (SQLWarning warning = statement.getWarnings(); warning != null; warning = warning.getNextWarning()) {
                    out.line(warning.getSQLState(), warning.getMessage());
                }
                statement.clearWarnings();
                statement.execute("ROLLBACK");
                for (SQLWarning warning = statement.getWarnings(); warning != null; warning = warning.getNextWarning()) {
                    out.line(warning.getSQLState(), warning.getMessage());
                }
            }
        });

        suite.add("temporary_tables", (target, out) -> {
            try (Connection connection = target.connect(); Connection other = target.connect()) {
                Transcript.run(connection, "CREATE TEMPORARY TABLE jdbc_temp (id int PRIMARY KEY, v text)");
                Transcript.run(connection, "INSERT INTO jdbc_temp VALUES (1, 'a'), (2, 'b')");
                out.error("of another session", () -> out.query(other, "SELECT * FROM jdbc_temp"));
                out.query(connection, "SELECT * FROM jdbc_temp ORDER BY id");
                connection.setAutoCommit(false);
                Transcript.run(connection, "DELETE FROM jdbc_temp WHERE id = 1");
                connection.rollback();
                out.query(connection, "SELECT * FROM jdbc_temp ORDER BY id");
                connection.commit();
                connection.setAutoCommit(true);
                Transcript.run(connection, "DROP TABLE jdbc_temp");
                out.error("dropped", () -> out.query(connection, "SELECT * FROM jdbc_temp"));
            }
        });

        suite.add("session_advisory_locks", (target, out) -> {
            try (Connection connection = target.connect(); Connection other = target.connect()) {
                out.query(connection, "SELECT pg_try_advisory_lock(4711)");
                out.query(other, "SELECT pg_try_advisory_lock(4711)");
                out.query(connection, "SELECT pg_advisory_unlock(4711)");
                out.query(other, "SELECT pg_try_advisory_lock(4711)");
                out.query(other, "SELECT pg_advisory_unlock(4711)");
            }
        });

        suite.add("listen_and_notify", (target, out) -> {
            try (Connection listener = target.connect(); Connection sender = target.connect()) {
                Transcript.run(listener, "LISTEN jdbc_channel");
                Transcript.run(sender, "NOTIFY jdbc_channel, 'hello'");
                out.query(sender, "SELECT pg_notify('jdbc_channel', 'again')::text");
                PGConnection notified = listener.unwrap(PGConnection.class);
                int seen = 0;
                for (int tries = 0; tries < 20 && seen < 2; tries++) {
                    PGNotification[] all = notified.getNotifications(250);
                    for (PGNotification one : all == null ? new PGNotification[0] : all) {
                        out.line(one.getName(), one.getParameter());
                        seen++;
                    }
                }
                Transcript.run(listener, "UNLISTEN *");
            }
        });

        suite.add("login_errors", (target, out) -> {
            out.error("password", () -> target.connect("password", "wrong").close());
            out.error("role", () -> target.connect("user", "jdbc_nobody").close());
        });
    }
}
