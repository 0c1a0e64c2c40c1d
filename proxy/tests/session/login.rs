use crate::cluster::cluster;
use crate::raw::{Raw, field, startup};

#[test]
fn encryption_is_declined_and_login_goes_on() {
    let mut raw = Raw::dial();
    for code in [80_877_103_u32, 80_877_104] {
        raw.send(&[&8_u32.to_be_bytes()[..], &code.to_be_bytes()].concat());
        let mut answer = [0];
        std::io::Read::read_exact(&mut raw.stream, &mut answer).expect("one byte");
        assert_eq!(answer, *b"N");
    }
    raw.send(&startup(0x0003_0000, &[("user", "app"), ("database", "db")]));
    assert_eq!(raw.message().expect("an answer").0, b'R');
}

#[test]
fn wrong_password_and_unknown_user_look_alike() {
    // The raw client uses the user's name as its password.
    for user in ["postgres", "nobody"] {
        let error = Raw::login_with(0x0003_0000, &[("user", user)]).err().expect("refused");
        assert_eq!(field(&error, b'C'), "28P01");
        assert_eq!(field(&error, b'M'), format!("password authentication failed for user \"{user}\""));
    }
}

#[test]
fn an_unknown_database_is_refused_after_login() {
    let error = Raw::login_with(0x0003_0000, &[("database", "other")]).err().expect("refused");
    assert_eq!((field(&error, b'C').as_str(), field(&error, b'R').as_str()), ("3D000", "shard_proxy"));
}

#[test]
fn protocol_versions_are_negotiated() {
    let old = Raw::login();
    assert_eq!(old.secret.len(), 4);
    let new = Raw::login_with(0x0003_0002, &[]).expect("3.2");
    assert_eq!(new.secret.len(), 32);
    assert!(new.greeting.iter().all(|(tag, _)| *tag != b'v'));
    let newer = Raw::login_with(0x0003_270f, &[("_pq_.test", "on")]).expect("3.9999");
    let (_, body) = newer.greeting.iter().find(|(tag, _)| *tag == b'v').expect("NegotiateProtocolVersion");
    assert_eq!(body, b"\0\x03\0\x02\0\0\0\x01_pq_.test\0");
    let status =
        |name: &str| old.greeting.iter().any(|(tag, body)| *tag == b'S' && body.starts_with(name.as_bytes()));
    assert!(status("server_version\0") && status("integer_datetimes\0") && status("TimeZone\0"));
}

#[test]
fn startup_settings_reach_every_server() {
    let settings = [
        ("options", "-c statement_timeout=7s -c search_path=app_x,public"),
        ("TimeZone", "Asia/Tokyo"),
        ("extra_float_digits", "2"),
    ];
    let mut raw = Raw::login_with(0x0003_0000, &settings).expect("logged in");
    assert!(raw.greeting.contains(&(b'S', b"TimeZone\0Asia/Tokyo\0".to_vec())), "reported as a server would");
    for shard in ["1", "2"] {
        raw.query(&format!("SET shard.target = '{shard}'"));
        assert_eq!(raw.value("SHOW timezone"), "Asia/Tokyo");
        assert_eq!(raw.value("SHOW statement_timeout"), "7s");
        assert_eq!(raw.value("SHOW extra_float_digits"), "2");
        assert_eq!(raw.value("SELECT current_setting('search_path')"), "app_x,public");
    }
    let error = Raw::login_with(0x0003_0000, &[("TimeZone", "Nowhere")]).err().expect("refused");
    assert_eq!(field(&error, b'C'), "22023");
}

#[test]
fn malformed_bytes_end_one_connection_only() {
    let sasl = |body: &[u8]| [&[b'p'][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat();
    let before_login: [Vec<u8>; 6] = [
        b"\0\0\0\x03".to_vec(),
        b"\xff\xff\xff\xff\0\x03\0\0".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [8_u32.to_be_bytes(), 0x0003_0000_u32.to_be_bytes()].concat(),
        startup(0x0002_0000, &[("user", "app")]),
        [startup(0x0003_0000, &[("user", "app")]), sasl(b"SCRAM-SHA-256\0\0\0\0\x7f")].concat(),
    ];
    for bytes in before_login {
        let mut raw = Raw::dial();
        raw.send(&bytes);
        let mut last = None;
        while let Some((tag, body)) = raw.message() {
            last = Some((tag, body));
        }
        let (tag, body) = last.unwrap_or_else(|| panic!("no error for {bytes:?}"));
        assert_eq!((tag, field(&body, b'S').as_str()), (b'E', "FATAL"), "{bytes:?}");
    }
    for sasl_body in [
        &b"SCRAM-SHA-256"[..],
        b"SCRAM-SHA-256\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"",
        b"SCRAM-SHA-256\0\0\0\0\x03n,,",
    ] {
        let mut raw = Raw::dial();
        raw.send(&[startup(0x0003_0000, &[("user", "app")]), sasl(sasl_body)].concat());
        assert_eq!(raw.message().expect("SASL").0, b'R');
        assert_eq!(raw.message().expect("an error").0, b'E');
    }
    let after_login: [&[u8]; 8] = [
        b"Q\0\0\0\x03",
        b"Q\0\0\0\x05x",
        b"Q\xff\xff\xff\xff",
        b"z\0\0\0\x04",
        b"P\0\0\0\x06\0\0",
        b"B\0\0\0\x0e\0\0\0\0\0\x01\0\0\xff\xff",
        b"D\0\0\0\x04",
        b"E\0\0\0\x04",
    ];
    for bytes in after_login {
        let mut raw = Raw::login();
        raw.send(bytes);
        let (tag, body) = raw.message().unwrap_or_else(|| panic!("no error for {bytes:?}"));
        assert_eq!((tag, field(&body, b'C').as_str()), (b'E', "08P01"), "{bytes:?}");
        assert!(raw.message().is_none(), "closed after {bytes:?}");
    }
    assert_eq!(Raw::login().value("SELECT 42"), "42");
}

#[test]
fn an_idle_client_costs_little() {
    let count = 1000;
    let _warm: Vec<Raw> = (0..50).map(|_| Raw::login()).collect();
    let before = cluster().proxy_rss_kib();
    let clients: Vec<Raw> = (0..count)
        .map(|_| {
            let mut raw = Raw::login();
            assert_eq!(raw.value("SELECT 1"), "1");
            raw
        })
        .collect();
    let each = cluster().proxy_rss_kib().saturating_sub(before) as f64 / count as f64;
    println!("{each:.2} KiB for each of {} idle clients", clients.len());
    assert!(each < 12.0, "{each} KiB");
}
