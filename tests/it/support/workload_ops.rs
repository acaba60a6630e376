//! The tables of the workload and the transactions made over them.
//!
//! Keys come from small ranges, so that rows are made, changed, moved and deleted again and again and the tables stay small.

use rand::Rng;
use rand::rngs::StdRng;

/// Tables, and the rows that the chain starts with.
pub const SCHEMA: &str = r#"
CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL, price numeric(14,4), tags text[], data jsonb, seen timestamptz, flag boolean);
CREATE INDEX item_price ON item (price);
CREATE TABLE seat (id int PRIMARY KEY, code text NOT NULL UNIQUE, note text);
INSERT INTO seat SELECT n, 'seat ' || n, NULL FROM generate_series(1, 40) n;
CREATE TABLE shift (id int PRIMARY KEY, was int NOT NULL);
INSERT INTO shift SELECT n, n FROM generate_series(1, 60) n;
CREATE TABLE document (id int PRIMARY KEY, title text, body text, revision int NOT NULL DEFAULT 0);
ALTER TABLE document ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE bulk (id bigint PRIMARY KEY, owner int NOT NULL, filler text NOT NULL);
CREATE TABLE event (kind text, payload text, n int);
ALTER TABLE event REPLICA IDENTITY FULL;
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE child (id bigint PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE, amount int NOT NULL);
CREATE TABLE scratch_a (id int PRIMARY KEY, v text);
CREATE TABLE scratch_b (id int PRIMARY KEY, v text);
CREATE TABLE "odd ""name;--" (a int, "b c" text, "Müller" date, PRIMARY KEY ("b c", a));
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT n, 1000 FROM generate_series(1, 50) n;
CREATE TABLE chain (id int PRIMARY KEY, n bigint NOT NULL);
INSERT INTO chain VALUES (1, 0);
CREATE TABLE chain_left (slot int PRIMARY KEY, n bigint NOT NULL, amount bigint NOT NULL);
INSERT INTO chain_left SELECT n, 0, 0 FROM generate_series(0, 9) n;
CREATE TABLE chain_right (slot int PRIMARY KEY, n bigint NOT NULL, amount bigint NOT NULL);
INSERT INTO chain_right SELECT n, 0, 0 FROM generate_series(0, 9) n;
CREATE TABLE chain_log (n bigint PRIMARY KEY, amount bigint NOT NULL);
"#;

/// Balances of [`SCHEMA`]'s accounts, which every transaction leaves as they are in sum.
pub const TOTAL_BALANCE: i64 = 50_000;

/// A transaction of a chain writer: the row lock makes the counter's order the commit order, and every table names the counter.
pub fn chain(random: &mut StdRng) -> Vec<String> {
    let (left, right, amount) = (random.random_range(0..10), random.random_range(0..10), random.random_range(1..100));
    let n = "(SELECT n FROM chain WHERE id = 1)";
    let mut statements = vec![
        "BEGIN".into(),
        "UPDATE chain SET n = n + 1 WHERE id = 1".into(),
        format!("UPDATE chain_left SET n = {n}, amount = amount + {amount} WHERE slot = {left}"),
        format!("INSERT INTO chain_log SELECT n, {amount} FROM chain WHERE id = 1"),
        format!("UPDATE chain_right SET n = {n}, amount = amount - {amount} WHERE slot = {right}"),
        format!("DELETE FROM chain_log WHERE n <= {n} - 200"),
    ];
    statements.push(if random.random_ratio(1, 20) { "ROLLBACK".into() } else { "COMMIT".into() });
    statements
}

/// A transaction of a free writer.
pub fn free(random: &mut StdRng, large_rows: u64) -> Vec<String> {
    let body = match random.random_range(0..100) {
        0..26 => (0..random.random_range(1..6)).map(|_| item(random)).collect(),
        26..36 => transfer(random),
        36..44 => document(random),
        44..54 => event(random),
        54..62 => family(random),
        62..68 => seats(random),
        68..72 => shift(random),
        72..78 => odd(random),
        78..90 => savepoints(random),
        90..94 => vec![item(random), document(random).remove(0), item(random), "ROLLBACK".into()],
        94..96 => scratch(random),
        96 if random.random_ratio(1, 3) => large(random, large_rows),
        _ => medium(random),
    };
    let mut statements = vec!["BEGIN".to_owned()];
    statements.extend(body);
    if statements.last().is_some_and(|last| last != "ROLLBACK") {
        statements.push("COMMIT".into());
    }
    statements
}

fn item(random: &mut StdRng) -> String {
    let id = random.random_range(1..400);
    match random.random_range(0..10) {
        0..4 => format!(
            "INSERT INTO item VALUES ({id}, {}, {}, {}, {}, {}, {}) ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = excluded.price, data = excluded.data",
            text(random),
            pick(random, &["NULL", "'NaN'", "0.1000", "-123456789.5", "99999999.9999"]),
            pick(random, &["NULL", "'{}'", r#"'{a,"b c",NULL,"\"q\""}'"#]),
            pick(random, &["NULL", r#"'{"k": [1, null, "x\\y"]}'"#, "'[]'", "'\"text\"'"]),
            pick(random, &["NULL", "'infinity'", "'2024-02-29 23:59:59.999999+00'", "'0044-03-15 BC'", "clock_timestamp()"]),
            pick(random, &["NULL", "true", "false"]),
        ),
        4..8 => format!("UPDATE item SET name = {}, seen = clock_timestamp() WHERE id = {id}", text(random)),
        8 => format!("DELETE FROM item WHERE id = {id}"),
        // The key moves; where the place is taken the transaction fails, as an application's would.
        _ => format!("UPDATE item SET id = {} WHERE id = {id}", random.random_range(1..4000)),
    }
}

fn transfer(random: &mut StdRng) -> Vec<String> {
    let (a, b, amount) = (random.random_range(1..=50), random.random_range(1..=50), random.random_range(1..50));
    // In the order of keys, so that two of these never wait for each other.
    let mut steps = [(a, -amount), (b, amount)];
    steps.sort_unstable();
    steps.iter().map(|(id, change)| format!("UPDATE account SET balance = balance + {change} WHERE id = {id}")).collect()
}

fn document(random: &mut StdRng) -> Vec<String> {
    let id = random.random_range(1..60);
    let body = format!(
        "(SELECT string_agg(md5((n * {})::text), '') FROM generate_series(1, {}) n)",
        random.random::<u16>(),
        random.random_range(70..3000)
    );
    vec![match random.random_range(0..10) {
        0..3 => format!(
            "INSERT INTO document VALUES ({id}, {}, {body}) ON CONFLICT (id) DO UPDATE SET body = excluded.body, revision = document.revision + 1",
            text(random)
        ),
        // The wide column stays where it is: the stream says "unchanged".
        3..8 => format!("UPDATE document SET revision = revision + 1, title = {} WHERE id = {id}", text(random)),
        8 => format!(
            "UPDATE document SET id = id + 100, title = NULL WHERE id = {id} AND NOT EXISTS (SELECT FROM document WHERE id = {id} + 100)"
        ),
        _ => format!("DELETE FROM document WHERE id IN ({id}, {id} + 100)"),
    }]
}

fn event(random: &mut StdRng) -> Vec<String> {
    let (kind, n) = (random.random_range(0..6), random.random_range(0..4));
    let one = format!("ctid = (SELECT ctid FROM event WHERE kind = 'k{kind}' LIMIT 1 FOR UPDATE SKIP LOCKED)");
    match random.random_range(0..10) {
        0..4 => vec![format!(
            "INSERT INTO event SELECT 'k{kind}', {}, {n} FROM generate_series(1, {})",
            pick(random, &["NULL", "''", "'same'"]),
            random.random_range(1..4)
        )],
        4..7 => vec![format!("UPDATE event SET n = {n} WHERE {one}")],
        7..9 => vec![format!("DELETE FROM event WHERE {one}")],
        _ => vec![
            format!("DELETE FROM event WHERE {one}"),
            format!("INSERT INTO event VALUES ('k{kind}', 'same', {n})"),
            format!("UPDATE event SET payload = payload || 'x' WHERE {one} AND length(payload) < 9"),
        ],
    }
}

fn family(random: &mut StdRng) -> Vec<String> {
    let parent = random.random_range(1..80);
    match random.random_range(0..10) {
        0..5 => {
            let children = random.random_range(1..6);
            vec![
                format!(
                    "INSERT INTO parent VALUES ({parent}, {}) ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                    text(random)
                ),
                format!(
                    "INSERT INTO child SELECT {parent} * 1000 + n, {parent}, n FROM generate_series(1, {children}) n ON CONFLICT (id) DO UPDATE SET amount = child.amount + 1"
                ),
            ]
        }
        5..8 => vec![format!("UPDATE child SET amount = amount + 1 WHERE parent = {parent}")],
        _ => vec![format!("DELETE FROM parent WHERE id = {parent}")],
    }
}

/// A unique value moves: two rows swap theirs, or one takes another's that goes.
fn seats(random: &mut StdRng) -> Vec<String> {
    let (a, b) = (random.random_range(1..=40), random.random_range(1..=40));
    if a == b {
        return vec![format!("UPDATE seat SET note = {} WHERE id = {a}", text(random))];
    }
    // Locked in the order of keys first.
    let lock = format!("SELECT FROM seat WHERE id IN ({a}, {b}) ORDER BY id FOR UPDATE");
    if random.random_ratio(1, 2) {
        let swap = |id: i32, from: String| format!("UPDATE seat SET code = (SELECT {from}) WHERE id = {id}");
        let mine = format!("current_setting('swap.a{a}')");
        vec![
            lock,
            format!("SELECT set_config('swap.a{a}', (SELECT code FROM seat WHERE id = {a}), true)"),
            format!("UPDATE seat SET code = 'moving {a} ' || txid_current() WHERE id = {a}"),
            format!("SELECT set_config('swap.b{b}', (SELECT code FROM seat WHERE id = {b}), true)"),
            swap(b, mine),
            swap(a, format!("current_setting('swap.b{b}')")),
        ]
    } else {
        vec![
            lock,
            format!("SELECT set_config('swap.a{a}', (SELECT code FROM seat WHERE id = {a}), true)"),
            format!("DELETE FROM seat WHERE id = {a}"),
            format!("INSERT INTO seat VALUES ({a}, 'new {a} ' || txid_current(), NULL)"),
            format!("UPDATE seat SET code = current_setting('swap.a{a}') WHERE id = {b}"),
        ]
    }
}

/// Every key moves onto its neighbour's place.
fn shift(random: &mut StdRng) -> Vec<String> {
    let step = pick(random, &["1", "7", "-1"]);
    vec![
        "SELECT pg_advisory_xact_lock(77)".into(),
        format!("UPDATE shift SET id = -100000 - (id + {step})"),
        "UPDATE shift SET id = -id - 100000".into(),
    ]
}

fn odd(random: &mut StdRng) -> Vec<String> {
    let (a, b) = (random.random_range(1..30), random.random_range(0..3));
    let table = r#""odd ""name;--""#;
    vec![match random.random_range(0..4) {
        0 | 1 => format!(
            r#"INSERT INTO {table} VALUES ({a}, 'k''{b}\', '2020-01-01'::date + {a}) ON CONFLICT ("b c", a) DO UPDATE SET "Müller" = NULL"#
        ),
        2 => format!(r#"UPDATE {table} SET a = a + 30 WHERE a = {a} AND NOT EXISTS (SELECT FROM {table} WHERE a = {a} + 30)"#),
        _ => format!("DELETE FROM {table} WHERE a IN ({a}, {a} + 30)"),
    }]
}

fn savepoints(random: &mut StdRng) -> Vec<String> {
    let mut statements = vec![item(random)];
    for number in 0..random.random_range(1..5) {
        statements.push(format!("SAVEPOINT s{number}"));
        statements.push(item(random));
        statements.extend(document(random));
        match random.random_range(0..3) {
            0 => statements.push(format!("ROLLBACK TO s{number}")),
            1 => statements.push(format!("RELEASE s{number}")),
            _ => {}
        }
        statements.push(item(random));
    }
    statements
}

fn scratch(random: &mut StdRng) -> Vec<String> {
    let n = random.random_range(1..200);
    let fill = format!("INSERT INTO scratch_a SELECT n, 'v' FROM generate_series(1, {n}) n ON CONFLICT DO NOTHING");
    let lock = "SELECT pg_advisory_xact_lock(78)".to_owned();
    match random.random_range(0..4) {
        0 => vec![lock, "TRUNCATE scratch_a, scratch_b".into()],
        1 => vec![
            lock,
            fill.clone(),
            "TRUNCATE scratch_a".into(),
            fill,
            "INSERT INTO scratch_b SELECT * FROM scratch_a ON CONFLICT DO NOTHING".into(),
        ],
        _ => vec![lock, fill, format!("DELETE FROM scratch_b WHERE id % 3 = {}", n % 3)],
    }
}

/// One owner's rows come, change or go together: thousands of rows, some past what the source keeps in memory.
fn large(random: &mut StdRng, rows: u64) -> Vec<String> {
    let owner = random.random_range(0..4);
    let first = owner * 10_000_000;
    match random.random_range(0..4) {
        0 | 1 => vec![
            format!("DELETE FROM bulk WHERE owner = {owner}"),
            format!("INSERT INTO bulk SELECT {first} + n, {owner}, repeat(md5(n::text), 3) FROM generate_series(1, {rows}) n"),
            "SAVEPOINT half".into(),
            format!("UPDATE bulk SET filler = 'half' WHERE owner = {owner} AND id % 2 = 0"),
            pick(random, &["ROLLBACK TO half", "RELEASE half"]).into(),
        ],
        2 => vec![format!("UPDATE bulk SET filler = filler || '.' WHERE owner = {owner} AND length(filler) < 100")],
        _ => vec![format!("DELETE FROM bulk WHERE owner = {owner}")],
    }
}

fn medium(random: &mut StdRng) -> Vec<String> {
    let owner = random.random_range(4..8);
    let first = owner * 10_000_000 + random.random_range(0..50) * 100;
    vec![
        format!("DELETE FROM bulk WHERE id BETWEEN {first} AND {first} + 99"),
        format!("INSERT INTO bulk SELECT {first} + n, {owner}, md5(n::text) FROM generate_series(0, 99) n"),
    ]
}

fn text(random: &mut StdRng) -> String {
    let n = random.random_range(0..1000);
    match random.random_range(0..6) {
        0 => "''".into(),
        1 => format!("'Ω ''{n}'' \\ \t \"x\"'"),
        2 => format!("E'line {n}\\nline\\r'"),
        _ => format!("'name {n}'"),
    }
}

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}
