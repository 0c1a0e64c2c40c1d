//! What `fuzz/` calls, and the same on a stable compiler: everything that reads bytes of others, with what must hold of
//! any bytes. Not part of the program: compiled for tests and by `cargo fuzz`.

/// A target's name, also that of its folder of seeds, and the target.
pub const TARGETS: [(&str, fn(&[u8])); 6] = [
    ("messages", crate::wire::fuzz::messages),
    ("lexer", crate::route::fuzz::lexer),
    ("analyser", crate::route::fuzz::analyser),
    ("keys", crate::route::fuzz::keys),
    ("copy", crate::multi::fuzz::copy),
    ("rows", crate::multi::fuzz::rows),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TARGETS;
    use crate::wire::build;

    /// The same bytes at every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            // SplitMix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % n.max(1) as u64) as usize
        }

        /// One small change of the kinds that find most: a byte, a cut, a piece twice, a piece of another text.
        fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
                1 => bytes.truncate(at),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => {
                    let piece = bytes[at..].iter().take(self.below(16)).copied().collect::<Vec<_>>();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let from = self.below(other.len());
                    let piece = other[from..].iter().take(self.below(24)).copied().collect::<Vec<_>>();
                    bytes.splice(at..at, piece);
                }
            }
        }
    }

    /// The oracle's statements, templates as they are: under the search path that they are meant for.
    fn statements() -> Vec<Vec<u8>> {
        let catalog = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/catalog");
        let mut all = Vec::new();
        for entry in std::fs::read_dir(catalog).expect("the oracle's catalogue") {
            let path = entry.expect("an entry").path();
            let set = match path.file_stem().and_then(|name| name.to_str()) {
                Some("tpch") => 2,
                Some("tpcc") => 3,
                Some("tpcb") => 4,
                _ => 0,
            };
            let text = std::fs::read_to_string(path).expect("a file of statements");
            let lines = text.split(";\n").map(str::trim).filter(|sql| !sql.is_empty());
            all.extend(lines.map(|sql| [&[set], sql.as_bytes()].concat()));
        }
        all.sort();
        assert!(all.len() > 500);
        all
    }

    fn seeds(name: &str) -> Vec<Vec<u8>> {
        match name {
            "messages" => messages(),
            "keys" => keys(),
            "copy" => copies(),
            "rows" => rows(),
            _ => statements(),
        }
    }

    fn built(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        build(&mut out);
        out
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        built(|out| {
            let start = build::begin(out, tag);
            out.extend_from_slice(body);
            build::end(out, start);
        })
    }

    fn error() -> Vec<u8> {
        message(b'E', b"SERROR\0VERROR\0C23505\0Mduplicate key\0P17\0Rexec\0\0")
    }

    /// Portal, statement, a format code, a value of two bytes and a NULL, two result codes.
    const BIND: &[u8] =
        &[b'p', 0, b's', 0, 0, 1, 0, 1, 0, 2, 0, 0, 0, 2, 7, 8, 255, 255, 255, 255, 0, 2, 0, 0, 0, 1];

    fn messages() -> Vec<Vec<u8>> {
        let mut seeds = vec![
            built(|out| build::query(out, b"SELECT * FROM t WHERE k = 1")),
            built(|out| build::parse(out, b"s", b"SELECT $1", &[0, 0, 11, 134])),
            message(b'B', BIND),
            built(|out| build::named(out, b'D', b'P', b"p")),
            message(b'E', b"p\0\0\0\0\x05"),
            error(),
            built(|out| build::row_description(out, &[("id", build::INT8), ("note", build::TEXT)])),
            message(b't', &[0, 2, 0, 0, 64, 16, 0, 0, 0, 20]),
            built(|out| build::data_row(out, &["1", "note"])),
            b"\0\0\0\x21\0\x03\0\0user\0app\0database\0d\0\0".to_vec(),
        ];
        seeds.push(seeds.concat());
        seeds
    }

    fn keys() -> Vec<Vec<u8>> {
        let array =
            [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7];
        vec![
            b"\0{7E000000-0000-4000-8000-000000000001}".to_vec(),
            b"\0{7e000000000040008000000000000003,NULL,\"7e000000-0000-4000-8000-000000000001\"}".to_vec(),
            b"\x01 -9223372036854775808 ".to_vec(),
            b"\x02{{1,2},{3,\"4\"}}".to_vec(),
            b"\x04a\\b".to_vec(),
            b"\x011.50e1".to_vec(),
            [&[1][..], &array].concat(),
            [&[33][..], &array].concat(),
        ]
    }

    fn copies() -> Vec<Vec<u8>> {
        let binary = [
            &[3, 0, 7][..],
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0",
            &[0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5, 255, 255, 255, 255, 255, 255],
        ];
        vec![
            b"\0\0\x051\tabc\n2\tx\\ty\\\nz\n\\N\tnull\n\\.\n".to_vec(),
            b"\0\x21\x03a\tb\\x41\r\nc\td\\101\r\n".to_vec(),
            b"\x09\x01\x04k,v\n\"a \"\"q\"\",\n\",2\nb,\n".to_vec(),
            b"\x05\x01\x09\"a\\\"b\",1\n".to_vec(),
            b"\x02\x20\x021|2|3\n4|5".to_vec(),
            binary.concat(),
        ]
    }

    fn rows() -> Vec<Vec<u8>> {
        vec![
            built(|out| build::data_row(out, &["1", "a,b"])),
            error(),
            BIND[4..].to_vec(),
            b"1, 'a,b', f(2, 3), $$x,y$$, ARRAY[1,2]".to_vec(),
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x01x\xff\xff".to_vec(),
        ]
    }

    /// For `fuzz/run`.
    #[test]
    #[ignore = "writes files"]
    fn seeds_are_written() {
        let Some(folder) = std::env::var_os("FUZZ_SEEDS") else { panic!("FUZZ_SEEDS names no folder") };
        for (name, _) in TARGETS {
            let folder = Path::new(&folder).join(name);
            std::fs::create_dir_all(&folder).expect("a folder");
            for (number, bytes) in seeds(name).iter().enumerate() {
                std::fs::write(folder.join(format!("seed{number:05}")), bytes).expect("a seed");
            }
        }
    }

    /// What a fuzzer has found once, whichever target it was for.
    #[test]
    fn what_was_found_stays_mended() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/found");
        for entry in std::fs::read_dir(folder).expect("the folder of what was found") {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
            TARGETS.iter().for_each(|(_, target)| target(&bytes));
        }
    }

    #[test]
    fn no_target_fails_on_its_seeds_and_what_is_close_to_them() {
        for (number, (name, target)) in (1..).zip(TARGETS) {
            let seeds = seeds(name);
            let mut random = Random(number);
            seeds.iter().for_each(|bytes| target(bytes));
            for _ in 0..6000 {
                let mut bytes = seeds[random.below(seeds.len())].clone();
                for _ in 0..=random.below(4) {
                    let other = &seeds[random.below(seeds.len())];
                    random.change(&mut bytes, other);
                }
                target(&bytes);
            }
        }
    }
}
