package jdbcsmoke;

import java.util.ArrayList;
import java.util.List;

/**
 * Runs every check against a proxy and against one plain PostgreSQL and compares what an application sees: rows,
 * update counts, generated keys, error fields. The files beside this one are the checks, one topic each.
 */
public final class JdbcSmoke {
    private JdbcSmoke() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments.length == 2 && arguments[0].equals("--loop")) {
            System.exit(Looping.run(new Target("proxy", arguments[1])) ? 0 : 1);
        }
        List<String> urls = new ArrayList<>();
        List<String> only = new ArrayList<>();
        List<String> into = urls;
        for (String argument : arguments) {
            if (argument.equals("--")) {
                into = only;
            } else {
                into.add(argument);
            }
        }
        String proxyUrl = urls.size() > 0 ? urls.get(0) : System.getenv("PROXY_URL");
        String singleUrl = urls.size() > 1 ? urls.get(1) : System.getenv("SINGLE_URL");
        if (proxyUrl == null || singleUrl == null || urls.size() > 2) {
            System.err.println("usage: run [PROXY_URL [SINGLE_URL]] [-- CHECK ...]");
            System.exit(2);
        }

        Suite suite = new Suite();
        PoolChecks.add(suite);
        TransactionChecks.add(suite);
        PreparedChecks.add(suite);
        BatchChecks.add(suite);
        ResultChecks.add(suite);
        TypeChecks.add(suite);
        MetaDataChecks.add(suite);
        SessionChecks.add(suite);
        ErrorChecks.add(suite);
        StatementChecks.add(suite);
        JpaChecks.add(suite);
        System.exit(suite.run(new Target("proxy", proxyUrl), new Target("single", singleUrl), only) ? 0 : 1);
    }
}
