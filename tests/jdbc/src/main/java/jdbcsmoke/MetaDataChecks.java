package jdbcsmoke;

import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.ResultSet;
import java.util.TreeSet;

/** DatabaseMetaData, which the driver answers with joins over the catalogs. */
final class MetaDataChecks {
    private MetaDataChecks() {}

    interface Question {
        ResultSet ask(DatabaseMetaData data) throws Exception;
    }

    private static void ask(Suite suite, String name, Question question) {
        suite.add("metadata_" + name, (target, out) -> {
            try (Connection connection = target.connect(); ResultSet rows = question.ask(connection.getMetaData())) {
                out.rows(rows);
            }
        });
    }

    static void add(Suite suite) {
        ask(suite, "tables", data -> data.getTables(null, null, "jdbc\\_%", new String[] {"TABLE", "VIEW", "SEQUENCE"}));
        ask(suite, "tables_of_a_schema", data -> data.getTables(null, "jdbc_other", "%", null));
        ask(suite, "columns", data -> data.getColumns(null, "public", "jdbc\\_%", "%"));
        ask(suite, "primary_keys", data -> data.getPrimaryKeys(null, "public", "jdbc_items"));
        ask(suite, "imported_keys", data -> data.getImportedKeys(null, "public", "jdbc_lines"));
        ask(suite, "exported_keys", data -> data.getExportedKeys(null, "public", "jdbc_items"));
        ask(suite, "cross_reference", data -> data.getCrossReference(null, null, "jdbc_items", null, null, "jdbc_lines"));
        ask(suite, "best_row_identifier", data ->
            data.getBestRowIdentifier(null, "public", "jdbc_items", DatabaseMetaData.bestRowSession, false));
        ask(suite, "table_privileges", data -> data.getTablePrivileges(null, "public", "jdbc_items"));
        ask(suite, "table_types", DatabaseMetaData::getTableTypes);
        ask(suite, "functions", data -> data.getFunctions(null, "pg_catalog", "uuid\\_%"));
        ask(suite, "function_columns", data -> data.getFunctionColumns(null, "pg_catalog", "uuid\\_hash%", "%"));
        ask(suite, "schemas", data -> data.getSchemas(null, "jdbc\\_%"));
        ask(suite, "catalogs", DatabaseMetaData::getCatalogs);

        suite.add("metadata_index_info", (target, out) -> {
            try (Connection connection = target.connect();
                ResultSet rows = connection.getMetaData().getIndexInfo(null, "public", "jdbc_lines", false, true)) {
                // Without CARDINALITY and PAGES, which are estimates.
                while (rows.next()) {
                    out.line(rows.getString("INDEX_NAME"), rows.getBoolean("NON_UNIQUE"), rows.getShort("TYPE"),
                        rows.getShort("ORDINAL_POSITION"), rows.getString("COLUMN_NAME"), rows.getString("ASC_OR_DESC"),
                        rows.getString("FILTER_CONDITION"));
                }
            }
        });

        suite.add("metadata_type_info", (target, out) -> {
            try (Connection connection = target.connect(); ResultSet rows = connection.getMetaData().getTypeInfo()) {
                // The driver sorts by DATA_TYPE only; several types share one.
                TreeSet<String> types = new TreeSet<>();
                while (rows.next()) {
                    String name = rows.getString("TYPE_NAME");
                    // Types of other applications' tables are none of ours.
                    if (name.matches("bool|bytea|char|int[248]|float[48]|numeric|text|varchar|uuid|json|jsonb|timestamp|timestamptz|date|_uuid|bigserial")) {
                        types.add(name + " " + rows.getInt("DATA_TYPE") + " " + rows.getInt("PRECISION") + " "
                            + rows.getBoolean("AUTO_INCREMENT"));
                    }
                }
                types.forEach(out::line);
                out.expect(types.size() == 19, types.size() + " types");
            }
        });

        suite.add("metadata_facts", (target, out) -> {
            try (Connection connection = target.connect()) {
                DatabaseMetaData data = connection.getMetaData();
                out.line(data.getDatabaseProductName(), data.getDatabaseProductVersion(), data.getUserName(),
                    data.getMaxColumnNameLength(), data.getDefaultTransactionIsolation(), data.supportsSavepoints(),
                    data.getSQLKeywords().length() > 0, data.getNumericFunctions().length() > 0);
                out.line(connection.getCatalog(), connection.getSchema());
                out.query(connection, "SELECT current_database(), current_schema(), current_user, session_user");
                out.query(connection, "SELECT table_name, column_name, data_type FROM information_schema.columns"
                    + " WHERE table_schema = 'public' AND table_name = 'jdbc_items' ORDER BY ordinal_position");
                out.query(connection, "SELECT to_regclass('jdbc_items') IS NOT NULL, 'jdbc_items'::regclass::text,"
                    + " format_type('uuid'::regtype, NULL), obj_description('jdbc_items'::regclass)");
                out.query(connection, "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                    + " WHERE n.nspname = 'public' AND c.relname IN ('jdbc_items', 'jdbc_lines')");
            }
        });
    }
}
