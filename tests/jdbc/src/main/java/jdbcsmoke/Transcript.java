package jdbcsmoke;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.UUID;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

/** What one check saw at one target, line by line. Has nothing in it that differs from run to run. */
final class Transcript {
    /** Marks errors of the proxy's own making. */
    private static final String OWN = "; routine=shard_proxy";

    private final String check;
    private final List<String> lines = new ArrayList<>();
    private boolean failed;
    private boolean refused;

    Transcript(String check) {
        this.check = check;
    }

    void line(Object... parts) {
        StringBuilder line = new StringBuilder();
        for (Object part : parts) {
            line.append(line.isEmpty() ? "" : " ").append(part instanceof int[] counts ? Arrays.toString(counts) : part);
        }
        lines.add(line.toString());
    }

    /** The n-th tenant of this check: the same at both targets, of no other check. Any eight are on several shards. */
    UUID tenant(int n) {
        return UUID.nameUUIDFromBytes((check + " " + n).getBytes(StandardCharsets.UTF_8));
    }

    /** What must hold at both targets. */
    void expect(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    /** Every row, as text; the query orders them. */
    void rows(ResultSet rows) throws SQLException {
        int columns = rows.getMetaData().getColumnCount();
        int count = 0;
        while (rows.next()) {
            StringBuilder line = new StringBuilder("  ");
            for (int column = 1; column <= columns; column++) {
                line.append(column > 1 ? " | " : "").append(rows.getString(column));
            }
            lines.add(line.toString());
            count++;
        }
        lines.add("  " + count + " rows");
    }

    /** Runs a query and writes its rows. */
    void query(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            set(statement, parameters);
            try (ResultSet rows = statement.executeQuery()) {
                rows(rows);
            }
        }
    }

    /** Runs a statement and writes its update count. */
    void update(Connection connection, String sql, Object... parameters) throws SQLException {
        line("count", run(connection, sql, parameters));
    }

    /** Runs a statement that must succeed; the count is the caller's. */
    static int run(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            set(statement, parameters);
            return statement.executeUpdate();
        }
    }

    static void set(PreparedStatement statement, Object... parameters) throws SQLException {
        for (int i = 0; i < parameters.length; i++) {
            statement.setObject(i + 1, parameters[i]);
        }
    }

    interface Action {
        void run() throws Exception;
    }

    /** Runs what must fail, and writes the fields of the error that an application may look at. */
    void error(String what, Action action) throws Exception {
        try {
            action.run();
        } catch (SQLException error) {
            line(what + ":", describe(error));
            return;
        }
        line(what + ": no error");
    }

    static String describe(SQLException error) {
        StringBuilder text = new StringBuilder();
        if (error instanceof BatchUpdateException batch) {
            int[] counts = batch.getUpdateCounts();
            text.append(counts.length).append(" counts, different ones ")
                .append(Arrays.toString(Arrays.stream(counts).distinct().toArray())).append(' ');
        }
        text.append(error.getSQLState());
        Throwable cause = error instanceof BatchUpdateException ? error.getCause() : error;
        ServerErrorMessage server = cause instanceof PSQLException pg ? pg.getServerErrorMessage() : null;
        if (server == null) {
            return text.append(' ').append(error.getMessage()).toString();
        }
        field(text, "severity", server.getSeverity());
        field(text, "message", server.getMessage());
        field(text, "detail", server.getDetail());
        field(text, "hint", server.getHint());
        field(text, "where", server.getWhere());
        field(text, "schema", server.getSchema());
        field(text, "table", server.getTable());
        field(text, "column", server.getColumn());
        field(text, "type", server.getDatatype());
        field(text, "constraint", server.getConstraint());
        field(text, "position", server.getPosition() == 0 ? null : String.valueOf(server.getPosition()));
        field(text, "routine", server.getRoutine());
        return text.toString();
    }

    private static void field(StringBuilder text, String name, String value) {
        if (value != null) {
            text.append("; ").append(name).append('=').append(value);
        }
    }

    /** The check ended with the proxy saying that it does not support this. */
    boolean refused() {
        return refused;
    }

    void failure(Throwable problem) {
        failed = true;
        refused = problem instanceof SQLException error && "0A000".equals(error.getSQLState()) && describe(error).endsWith(OWN);
        StringWriter trace = new StringWriter();
        problem.printStackTrace(new PrintWriter(trace));
        String where = trace.toString().lines().filter(line -> line.contains("jdbcsmoke.")).limit(4)
            .reduce("", (all, line) -> all + "\n      " + line.strip());
        lines.add((problem instanceof SQLException error ? describe(error) : problem.toString()) + where);
    }

    /**
     * Some errors are found by the proxy before any server sees the statement: a wrong password, bad syntax, an unknown
     * table, a statement in an aborted transaction. They must look the same, but for hints and the like.
     */
    private static boolean sameError(String expected, String actual) {
        return actual.endsWith(OWN) && essence(expected).equals(essence(actual));
    }

    private static String essence(String error) {
        return error.replaceAll("(?s); (detail|hint|where|routine)=.*?(?=; [a-z]+=|$)", "");
    }

    /** Null when {@code other} is equal and neither failed; else what an engineer needs to see. */
    String differenceTo(Transcript other) {
        if (failed) {
            return "   at the plain PostgreSQL: " + lines.get(lines.size() - 1)
                + (other.failed ? "\n   at the proxy: " + other.lines.get(other.lines.size() - 1) : "");
        }
        for (int i = 0; i < Math.max(lines.size(), other.lines.size()); i++) {
            String expected = i < lines.size() ? lines.get(i) : "(nothing more)";
            String actual = i < other.lines.size() ? other.lines.get(i) : "(nothing more)";
            if (!expected.equals(actual) && !sameError(expected, actual)) {
                return "   line " + (i + 1) + " single: " + expected + "\n   line " + (i + 1) + " proxy:  " + actual
                    + (other.failed ? "\n   and then: " + other.lines.get(other.lines.size() - 1) : "");
            }
        }
        return null;
    }
}
