package jdbcsmoke;

import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;

/** A database under test. */
final class Target {
    final String name;
    final String url;
    private final Properties login = new Properties();

    /** Takes a libpq URL or a jdbc: URL. */
    Target(String name, String url) {
        this.name = name;
        if (url.startsWith("jdbc:")) {
            this.url = url;
            return;
        }
        URI uri = URI.create(url);
        this.url = "jdbc:postgresql://" + uri.getHost() + ":" + uri.getPort() + uri.getPath();
        if (uri.getRawUserInfo() != null) {
            String[] parts = uri.getRawUserInfo().split(":", 2);
            login.setProperty("user", URLDecoder.decode(parts[0], StandardCharsets.UTF_8));
            if (parts.length > 1) {
                login.setProperty("password", URLDecoder.decode(parts[1], StandardCharsets.UTF_8));
            }
        }
    }

    /** A new connection with pgjdbc's defaults and these options: name, value, name, value, ... */
    Connection connect(String... options) throws SQLException {
        return DriverManager.getConnection(url, properties(options));
    }

    Properties properties(String... options) {
        Properties properties = new Properties();
        properties.putAll(login);
        // A server that hangs fails the check instead of stopping the run.
        properties.setProperty("socketTimeout", "30");
        for (int i = 0; i < options.length; i += 2) {
            properties.setProperty(options[i], options[i + 1]);
        }
        return properties;
    }
}
