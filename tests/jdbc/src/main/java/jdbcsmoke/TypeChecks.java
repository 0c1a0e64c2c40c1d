package jdbcsmoke;

import java.math.BigDecimal;
import java.sql.Array;
import java.sql.Connection;
import java.sql.Date;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.Time;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.Arrays;
import java.util.Calendar;
import java.util.HexFormat;
import java.util.TimeZone;
import java.util.UUID;
import org.postgresql.util.PGInterval;
import org.postgresql.util.PGobject;

/** Every common type, there and back, in text and in binary. */
final class TypeChecks {
    private TypeChecks() {}

    private static final String INSERT = "INSERT INTO jdbc_types (tenant_id, id, i2, i4, i8, f4, f8, num, b, t, vc, c, bin, d, tm,"
        + " ts, tz, iv, u, j, jb, ia, ta, ua, na) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

    private static PGobject object(String type, String value) throws Exception {
        PGobject object = new PGobject();
        object.setType(type);
        object.setValue(value);
        return object;
    }

    static void add(Suite suite) {
        for (String binary : new String[] {"false", "true"}) {
            suite.add("types_round_trip_" + (binary.equals("true") ? "binary" : "text"), (target, out) -> {
                try (Connection connection = target.connect("prepareThreshold", "1", "binaryTransfer", binary)) {
                    for (int n = 0; n < 8; n++) {
                        try (PreparedStatement insert = connection.prepareStatement(INSERT)) {
                            int i = 0;
                            insert.setObject(++i, out.tenant(n));
                            insert.setInt(++i, n);
                            insert.setShort(++i, (short) (-7 * n));
                            insert.setInt(++i, Integer.MIN_VALUE + n);
                            insert.setLong(++i, Long.MAX_VALUE - n);
                            insert.setFloat(++i, 1.5f * n);
                            insert.setDouble(++i, Math.PI * n);
                            insert.setBigDecimal(++i, new BigDecimal("-12345678901234567890.123456789").multiply(BigDecimal.valueOf(n)));
                            insert.setBoolean(++i, n % 2 == 0);
                            insert.setString(++i, "tab\t, quote ', backslash \\, grün, 漢字, 🦀, ?");
                            insert.setString(++i, "varchar");
                            insert.setString(++i, "abc");
                            insert.setBytes(++i, new byte[] {0, 1, -1, '\\', '\'', (byte) n});
                            insert.setObject(++i, LocalDate.of(2024, 2, 29));
                            insert.setObject(++i, LocalTime.of(23, 59, 59, 999_999_000));
                            insert.setObject(++i, LocalDateTime.of(1999, 12, 31, 23, 59, 59, 123_456_000));
                            insert.setObject(++i, OffsetDateTime.of(2026, 3, 29, 2, 30, 0, 1000, ZoneOffset.ofHours(5)));
                            insert.setObject(++i, new PGInterval("1 year 2 mons -3 days 04:05:06.789"));
                            insert.setObject(++i, new UUID(n, -n));
                            insert.setObject(++i, object("json", "{\"b\": 1, \"a\": [1, 2.50, null]}"));
                            insert.setObject(++i, object("jsonb", "{\"b\": 1, \"a\": [1, 2.50, null]}"));
                            insert.setArray(++i, connection.createArrayOf("int4", new Integer[] {1, null, -3}));
                            insert.setArray(++i, connection.createArrayOf("text", new String[] {"a,b", "\"q\"", null, "", "{}"}));
                            insert.setArray(++i, connection.createArrayOf("uuid", new UUID[] {new UUID(1, 2), out.tenant(n)}));
                            insert.setArray(++i, connection.createArrayOf("numeric", new BigDecimal[] {new BigDecimal("1.10"), BigDecimal.ZERO}));
                            out.line(insert.executeUpdate());
                        }
                        read(connection, out, n);
                    }
                }
            });
        }

        suite.add("types_all_null", (target, out) -> {
            try (Connection connection = target.connect("prepareThreshold", "1")) {
                int[] types = {
                    Types.SMALLINT, Types.INTEGER, Types.BIGINT, Types.REAL, Types.DOUBLE, Types.NUMERIC, Types.BOOLEAN, Types.VARCHAR,
                    Types.VARCHAR, Types.CHAR, Types.BINARY, Types.DATE, Types.TIME, Types.TIMESTAMP, Types.TIMESTAMP_WITH_TIMEZONE,
                    Types.OTHER, Types.OTHER, Types.OTHER, Types.OTHER, Types.ARRAY, Types.ARRAY, Types.ARRAY, Types.ARRAY,
                };
                for (int n = 0; n < 4; n++) {
                    try (PreparedStatement insert = connection.prepareStatement(INSERT)) {
                        insert.setObject(1, out.tenant(n));
                        insert.setInt(2, n);
                        for (int i = 0; i < types.length; i++) {
                            insert.setNull(i + 3, types[i]);
                        }
                        out.line(insert.executeUpdate());
                    }
                    out.query(connection, "SELECT * FROM jdbc_types WHERE tenant_id = ?", out.tenant(n));
                }
            }
        });

        suite.add("types_of_java_sql_with_time_zones", (target, out) -> {
            try (Connection connection = target.connect()) {
                for (String zone : new String[] {"UTC", "Asia/Kolkata", "America/St_Johns"}) {
                    Transcript.run(connection, "SET TimeZone = '" + zone + "'");
                    Calendar calendar = Calendar.getInstance(TimeZone.getTimeZone(zone));
                    int id = zone.length();
                    try (PreparedStatement insert = connection.prepareStatement(
                        "INSERT INTO jdbc_types (tenant_id, id, d, tm, ts, tz) VALUES (?, ?, ?, ?, ?, ?)")) {
                        insert.setObject(1, out.tenant(id));
                        insert.setInt(2, id);
                        insert.setDate(3, Date.valueOf("2026-07-01"), calendar);
                        insert.setTime(4, Time.valueOf("12:34:56"), calendar);
                        insert.setTimestamp(5, new Timestamp(1_790_000_000_123L), calendar);
                        insert.setTimestamp(6, new Timestamp(1_790_000_000_123L), calendar);
                        out.line(insert.executeUpdate());
                    }
                    try (PreparedStatement select = connection.prepareStatement(
                        "SELECT tz, tz::text, ts::text, d::text FROM jdbc_types WHERE tenant_id = ?")) {
                        select.setObject(1, out.tenant(id));
                        ResultSet row = select.executeQuery();
                        row.next();
                        out.line(row.getTimestamp(1).getTime(), row.getString(2), row.getString(3), row.getString(4));
                    }
                }
            }
        });

        suite.add("types_of_the_key", (target, out) -> {
            // The tenant as an application may pass it.
            try (Connection connection = target.connect("prepareThreshold", "1");
                Connection unspecified = target.connect("stringtype", "unspecified")) {
                for (int n = 0; n < 4; n++) {
                    UUID tenant = out.tenant(n);
                    Transcript.run(connection, "INSERT INTO jdbc_items (tenant_id, item_id) VALUES (?, ?)", tenant, n);
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?::uuid", tenant.toString());
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = CAST(? AS uuid)",
                        "{" + tenant.toString().toUpperCase() + "}");
                    out.query(unspecified, "SELECT item_id FROM jdbc_items WHERE ? = tenant_id",
                        tenant.toString().replace("-", ""));
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = '" + tenant + "'");
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = '" + tenant + "'::uuid");
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = uuid '" + tenant + "'");
                    out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ANY (?)",
                        connection.createArrayOf("uuid", new UUID[] {tenant}));
                    out.error("varchar", () -> out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", tenant.toString()));
                    out.error("no uuid", () -> out.query(unspecified, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", "x"));
                }
                out.query(connection, "SELECT item_id FROM jdbc_items WHERE tenant_id = ?", object("uuid", null));
            }
        });
    }

    private static void read(Connection connection, Transcript out, int n) throws Exception {
        // Twice: the driver asks for binary results once it has seen the statement described.
        for (int round = 0; round < 2; round++) {
            try (PreparedStatement select = connection.prepareStatement("SELECT * FROM jdbc_types WHERE tenant_id = ? AND id = ?")) {
                select.setObject(1, out.tenant(n));
                select.setInt(2, n);
                ResultSet row = select.executeQuery();
                out.expect(row.next(), "a row");
                out.line(row.getShort("i2"), row.getInt("i4"), row.getLong("i8"), row.getFloat("f4"), row.getDouble("f8"),
                    row.getBigDecimal("num"), row.getBoolean("b"), row.getString("t"), row.getString("vc"), row.getString("c") + "|");
                out.line(HexFormat.of().formatHex(row.getBytes("bin")), row.getObject("d", LocalDate.class),
                    row.getObject("tm", LocalTime.class), row.getObject("ts", LocalDateTime.class),
                    row.getObject("tz", OffsetDateTime.class).toInstant(), row.getObject("iv"), row.getObject("u", UUID.class));
                out.line(row.getString("j"), row.getString("jb"), array(row.getArray("ia")), array(row.getArray("ta")),
                    array(row.getArray("ua")), array(row.getArray("na")));
            }
        }
    }

    private static String array(Array array) throws Exception {
        return array.getBaseTypeName() + Arrays.toString((Object[]) array.getArray());
    }
}
