//! The scripts of [`super::rows`].

/// One story.
pub struct Script {
    pub ddl: &'static str,
    /// One transaction each.
    pub transactions: &'static [&'static str],
    /// More of them, applied as one backlog.
    pub again: &'static [&'static str],
}

pub const SCRIPTS: &[Script] = &[
    // FAULTS 29: a unique value moves between rows, within one transaction and from one to the next.
    Script {
        ddl: "CREATE TABLE moving (id int PRIMARY KEY, code text UNIQUE, pair text, UNIQUE (pair, code));",
        transactions: &[
            "INSERT INTO moving VALUES (1, 'x', 'a'), (2, 'y', 'a'), (3, 'z', NULL)",
            "BEGIN; DELETE FROM moving WHERE id = 1; INSERT INTO moving VALUES (4, 'x', 'b'); COMMIT",
            "BEGIN; UPDATE moving SET code = 't' WHERE id = 2; UPDATE moving SET code = 'y' WHERE id = 3; UPDATE moving SET code = 'z' WHERE id = 2; COMMIT",
        ],
        again: &[
            "DELETE FROM moving WHERE id = 4",
            "INSERT INTO moving VALUES (1, 'x', 'c')",
            "UPDATE moving SET code = 'tmp' WHERE id = 1",
            "UPDATE moving SET code = 'x' WHERE id = 2",
            "UPDATE moving SET code = 'z' WHERE id = 1",
        ],
    },
    // FAULTS 30: every key onto its neighbour's place.
    Script {
        ddl: "CREATE TABLE shifting (id int PRIMARY KEY, v int);",
        transactions: &[
            "INSERT INTO shifting SELECT n, n FROM generate_series(100, 1, -1) n",
            "UPDATE shifting SET id = id + 1",
            "BEGIN; UPDATE shifting SET id = -id; UPDATE shifting SET id = -id - 1; COMMIT",
        ],
        again: &["BEGIN; UPDATE shifting SET id = -id; UPDATE shifting SET id = -id + 3; COMMIT", "DELETE FROM shifting WHERE id % 7 = 0"],
    },
    // FAULTS 31: one key, over and over.
    Script {
        ddl: "CREATE TABLE again (id int PRIMARY KEY, v text);",
        transactions: &[
            "BEGIN; INSERT INTO again VALUES (1, 'a'); UPDATE again SET v = 'b'; DELETE FROM again; INSERT INTO again VALUES (1, 'c'); UPDATE again SET id = 2; COMMIT",
            "BEGIN; UPDATE again SET v = 'd' WHERE id = 2; DELETE FROM again WHERE id = 2; INSERT INTO again VALUES (2, NULL); COMMIT",
        ],
        again: &["DELETE FROM again", "INSERT INTO again VALUES (2, 'e')", "UPDATE again SET id = 3", "INSERT INTO again VALUES (2, 'f')", "DELETE FROM again WHERE id = 3"],
    },
    // FAULTS 32: equal rows without a key: exactly one is touched.
    Script {
        ddl: "CREATE TABLE equal_rows (a int, b text, c float8, j json); ALTER TABLE equal_rows REPLICA IDENTITY FULL;",
        transactions: &[
            "INSERT INTO equal_rows SELECT 1, 'same', 0.1, '{\"a\": 1}' FROM generate_series(1, 5)",
            "INSERT INTO equal_rows SELECT NULL, NULL, 'NaN', NULL FROM generate_series(1, 3)",
            "DELETE FROM equal_rows WHERE ctid = (SELECT ctid FROM equal_rows WHERE a = 1 LIMIT 1)",
            "UPDATE equal_rows SET b = 'one' WHERE ctid = (SELECT ctid FROM equal_rows WHERE a = 1 LIMIT 1)",
            "UPDATE equal_rows SET a = 7 WHERE ctid = (SELECT ctid FROM equal_rows WHERE a IS NULL LIMIT 1)",
        ],
        again: &[
            "DELETE FROM equal_rows WHERE ctid = (SELECT ctid FROM equal_rows WHERE a IS NULL LIMIT 1)",
            "BEGIN; INSERT INTO equal_rows VALUES (9, 'n', 1, NULL); INSERT INTO equal_rows VALUES (9, 'n', 1, NULL); DELETE FROM equal_rows WHERE ctid = (SELECT ctid FROM equal_rows WHERE a = 9 LIMIT 1); COMMIT",
        ],
    },
    // FAULTS 39: the wide value stays where it is, also when the key moves and under every identity.
    Script {
        ddl: "CREATE TABLE wide (id int PRIMARY KEY, n int, body text); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
              CREATE TABLE wide_full (id int PRIMARY KEY, n int, body text); ALTER TABLE wide_full ALTER body SET STORAGE EXTERNAL; ALTER TABLE wide_full REPLICA IDENTITY FULL;
              CREATE TABLE wide_index (a int NOT NULL, n int, body text); CREATE UNIQUE INDEX wide_index_a ON wide_index (a); ALTER TABLE wide_index REPLICA IDENTITY USING INDEX wide_index_a; ALTER TABLE wide_index ALTER body SET STORAGE EXTERNAL;",
        transactions: &[
            "INSERT INTO wide SELECT n, 0, repeat('0123456789', 20000) || n FROM generate_series(1, 20) n",
            "INSERT INTO wide_full SELECT * FROM wide; INSERT INTO wide_index SELECT * FROM wide",
            "UPDATE wide SET n = 1; UPDATE wide_full SET n = 1; UPDATE wide_index SET n = 1",
            "UPDATE wide SET id = id + 1000 WHERE id < 5; UPDATE wide_full SET id = id + 1000 WHERE id < 5; UPDATE wide_index SET a = a + 1000 WHERE a < 5",
            "BEGIN; INSERT INTO wide VALUES (50, 0, repeat('abcdefghij', 30000)); UPDATE wide SET n = 5 WHERE id = 50; UPDATE wide SET id = 51 WHERE id = 50; COMMIT",
        ],
        again: &[
            "UPDATE wide SET n = 2 WHERE id > 10; UPDATE wide_full SET n = 2; UPDATE wide_index SET n = 2",
            "UPDATE wide SET n = 3, id = id + 5000 WHERE id IN (11, 12)",
            "UPDATE wide SET n = 4 WHERE id = 5011",
            "BEGIN; INSERT INTO wide VALUES (60, 0, repeat('klmnopqrst', 30000)); UPDATE wide SET id = 61 WHERE id = 60; UPDATE wide SET n = 9 WHERE id = 61; COMMIT",
        ],
    },
    // FAULTS 42: parents and children, in one transaction and in two, and a table that refers to itself.
    Script {
        ddl: "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE);
              CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree DEFERRABLE INITIALLY DEFERRED);",
        transactions: &[
            "BEGIN; INSERT INTO parents VALUES (1), (2), (3); INSERT INTO children SELECT n, 1 + n % 3 FROM generate_series(1, 30) n; COMMIT",
            "UPDATE parents SET id = 10 WHERE id = 1",
            "DELETE FROM parents WHERE id = 2",
            "BEGIN; INSERT INTO tree VALUES (2, 1); INSERT INTO tree VALUES (1, NULL); COMMIT",
        ],
        again: &["DELETE FROM parents", "INSERT INTO parents VALUES (5)", "INSERT INTO children VALUES (1, 5)", "BEGIN; DELETE FROM tree WHERE id = 1; DELETE FROM tree; COMMIT"],
    },
    // FAULTS 18: savepoints past what the source keeps in memory, so that the transaction is streamed; half of them rolled back.
    Script {
        ddl: "CREATE TABLE streamed (id int PRIMARY KEY, v text);",
        transactions: &[
            "BEGIN; SET LOCAL logical_decoding_work_mem = '64kB'; INSERT INTO streamed SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n;
             SAVEPOINT a; INSERT INTO streamed SELECT n, 'gone' FROM generate_series(20001, 40000) n; UPDATE streamed SET v = 'gone' WHERE id < 100; ROLLBACK TO a;
             SAVEPOINT b; DELETE FROM streamed WHERE id % 3 = 0; SAVEPOINT c; DELETE FROM streamed; ROLLBACK TO c; RELEASE b; COMMIT",
            "BEGIN; INSERT INTO streamed SELECT n, 'never' FROM generate_series(50001, 90000) n; ROLLBACK",
        ],
        again: &["BEGIN; SAVEPOINT a; INSERT INTO streamed SELECT n, repeat('y', 200) FROM generate_series(100001, 140000) n; SAVEPOINT b; DELETE FROM streamed WHERE id > 120000; ROLLBACK TO b; COMMIT"],
    },
    // FAULTS 44: one value far beyond any record.
    Script {
        ddl: "CREATE TABLE giant (id int PRIMARY KEY, v text);",
        transactions: &["INSERT INTO giant VALUES (1, repeat('0123456789abcdef', 1310720))", "UPDATE giant SET id = 2"],
        again: &["UPDATE giant SET v = v || 'more'", "INSERT INTO giant VALUES (1, 'small')"],
    },
    // Several tables emptied at once, and filled again.
    Script {
        ddl: "CREATE TABLE empty_a (id serial PRIMARY KEY, v int); CREATE TABLE empty_b (id int PRIMARY KEY REFERENCES empty_a);",
        transactions: &[
            "INSERT INTO empty_a (v) SELECT n FROM generate_series(1, 50) n; INSERT INTO empty_b SELECT id FROM empty_a",
            "BEGIN; TRUNCATE empty_a RESTART IDENTITY CASCADE; INSERT INTO empty_a (v) VALUES (1); COMMIT",
        ],
        again: &["INSERT INTO empty_b SELECT id FROM empty_a", "TRUNCATE empty_a, empty_b", "INSERT INTO empty_a (v) VALUES (3), (4)"],
    },
    // Partitions: rows move between leaves, one leaf is emptied alone.
    Script {
        ddl: "CREATE TABLE parted (id int, region text, v int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
              CREATE TABLE parted_north PARTITION OF parted FOR VALUES IN ('n'); CREATE TABLE parted_south PARTITION OF parted FOR VALUES IN ('s');",
        transactions: &[
            "INSERT INTO parted SELECT n, CASE n % 2 WHEN 0 THEN 'n' ELSE 's' END, n FROM generate_series(1, 40) n",
            "UPDATE parted SET region = 's' WHERE id = 2",
            "TRUNCATE parted_north",
        ],
        again: &["INSERT INTO parted VALUES (100, 'n', 1)", "UPDATE parted SET region = 's' WHERE id = 100", "DELETE FROM parted WHERE v % 5 = 0"],
    },
    // Values as text, in every shape that PostgreSQL's own types have.
    Script {
        ddl: "CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TYPE point3 AS (x int, y text, z numeric);
              CREATE TABLE typed (id int PRIMARY KEY, i2 smallint, i8 bigint, f4 real, f8 float8, n numeric, n2 numeric(20,5), b boolean, c char(5), vc varchar(9), t text, by bytea,
                d date, tm time, tmz timetz, ts timestamp, tsz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml, ia int[], ta text[][], r int4range, mr int4multirange, tr tstzrange,
                inet_ inet, cidr_ cidr, mac macaddr, bits bit(3), vbits bit varying, m mood, ma mood[], p positive, comp point3, pt point, bx box, ln lseg, mon money, oid_ oid, tsv tsvector,
                g int GENERATED ALWAYS AS (id * 2) STORED, ident int GENERATED ALWAYS AS IDENTITY);",
        transactions: &[
            "INSERT INTO typed (id) VALUES (1)",
            "INSERT INTO typed VALUES (2, -32768, -9223372036854775808, '1e-37', 0.1::float8 + 0.2, 'NaN', -12345.67890, true, 'ab', 'vc', E'\\\\ \\t\\n\\'', '\\x00ff5c',
               'infinity', '24:00:00', '23:59:59.999999-12:30', '294276-12-31 23:59:59.999999', '4713-01-01 00:00:00+00 BC', '-1 year 2 mons -3 days 04:05:06.7', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
               '{\"a\":  1, \"a\": 2}', '{\"b\": [1.10, null]}', '<a>&amp;</a>', '[2:4]={1,NULL,3}', '{{a,\"b,c\"},{\"\",NULL}}', '[1,5)', '{[1,2),[4,6)}', '[2020-01-01 00:00+02,)',
               '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', B'101', B'10', 'it''s ok', '{sad,\"it''s ok\"}', 5, '(1,\"a \"\"q\"\" b\",1.50)', '(1.1,-2)', '(3,4),(1,2)', '[(0,0),(1,1)]', '$1,234.56', 42, 'a:1 fat:2')",
            "INSERT INTO typed (id, f4, f8, n, ts, ia, ta, r, t, by) VALUES (3, 'Infinity', '-Infinity', 1e-100, '-infinity', '{}', '{}', 'empty', '', '')",
            "UPDATE typed SET jb = '\"s\"', m = 'happy', iv = '178000000 years', tsz = '2024-03-31 02:30:00 Europe/Berlin' WHERE id = 2",
            "UPDATE typed SET id = 4 WHERE id = 3",
        ],
        again: &["UPDATE typed SET t = 'x', ta = NULL, comp = ROW(NULL, '', 0)", "DELETE FROM typed WHERE id = 1", "INSERT INTO typed (id, vc) VALUES (1, '€ 𝄞')"],
    },
    // Names that hurt (threat 1), and 63 bytes of them.
    Script {
        ddl: "CREATE TABLE \"a\"\"b'; DROP TABLE x;--\" (\"sel ect\" int PRIMARY KEY, \"new\nline\" text, \"\\\" text, \"$1\" int);
              CREATE TABLE aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa (bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb int PRIMARY KEY, v text);",
        transactions: &[
            "INSERT INTO \"a\"\"b'; DROP TABLE x;--\" VALUES (1, 'a', 'b', 1), (2, NULL, '''; --', 2)",
            "UPDATE \"a\"\"b'; DROP TABLE x;--\" SET \"sel ect\" = 3, \"\\\" = $$'$$ WHERE \"sel ect\" = 1",
            "INSERT INTO aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa VALUES (1, 'x')",
        ],
        again: &["DELETE FROM \"a\"\"b'; DROP TABLE x;--\" WHERE \"sel ect\" = 2", "UPDATE aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa SET v = 'y'"],
    },
    // No column but the key; no column at all in the key but a long text.
    Script {
        ddl: "CREATE TABLE only_key (a int, b text, PRIMARY KEY (b, a)); CREATE TABLE collated (k text COLLATE \"C\" PRIMARY KEY, v int);",
        transactions: &[
            "INSERT INTO only_key SELECT n, 'k' || n % 3 FROM generate_series(1, 20) n",
            "UPDATE only_key SET a = a + 100 WHERE a < 4",
            "INSERT INTO collated SELECT repeat(md5(n::text), 20), n FROM generate_series(1, 20) n; INSERT INTO collated VALUES ('a', 1), ('A', 2), ('ä', 3), ('a ', 4)",
        ],
        again: &["DELETE FROM only_key WHERE a % 2 = 0", "UPDATE collated SET k = k || '!' WHERE v < 5"],
    },
];
