use millstream::ErrorKind;
use millstream::capture::begin::{begin_stream, new_slot_name, publication_name};
use millstream::capture::postgres::publication::mark;
use millstream::event::{Genesis, TableName};
use millstream::halt::HaltCode;
use millstream::preflight::init::{InitOptions, Line, Outcome, slot};

use super::Pair;

const SHOP: &str = r#"
CREATE SCHEMA other;
CREATE TYPE other.mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE DOMAIN public.email AS text COLLATE "C" NOT NULL DEFAULT 'x@y' CONSTRAINT has_at CHECK (VALUE ~ '@');
CREATE TYPE public.point3 AS (x int, y int, mail public.email);
CREATE TYPE public.span AS RANGE (subtype = numeric);
CREATE SEQUENCE other.free_seq INCREMENT 5 START 100;
CREATE TABLE customers (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name varchar(40) COLLATE "C" NOT NULL DEFAULT 'no "name"' CHECK (name <> ''),
  mail public.email, moods other.mood[] , at point3, during span,
  total numeric(12,2) DEFAULT 0.00, twice numeric GENERATED ALWAYS AS (total * 2) STORED,
  free int DEFAULT nextval('other.free_seq'), UNIQUE (name, mail));
CREATE TABLE orders (id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES customers ON DELETE CASCADE, note text);
CREATE INDEX orders_note ON orders (lower(note)) WHERE note IS NOT NULL;
CREATE UNIQUE INDEX orders_once ON orders (customer, note);
CREATE TABLE "other"."We;ird "" name" ("Key;--" text PRIMARY KEY, "v'al" int);
CREATE TABLE log_lines (line text);
ALTER TABLE log_lines REPLICA IDENTITY FULL;
CREATE TABLE by_index (a int NOT NULL, b text NOT NULL, c int PRIMARY KEY);
CREATE UNIQUE INDEX by_index_ab ON by_index (a, b);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_ab;
CREATE TABLE readings (day date NOT NULL, sensor int, v float8, PRIMARY KEY (day, sensor)) PARTITION BY RANGE (day);
CREATE TABLE readings_2025 PARTITION OF readings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE readings_2026 PARTITION OF readings FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY HASH (sensor);
CREATE TABLE readings_2026_a PARTITION OF readings_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE readings_2026_b PARTITION OF readings_2026 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX readings_v ON readings (v);
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
CREATE VIEW seen AS SELECT 1 AS one;
"#;

/// What psql shows of a table, names of partitions' own indexes aside.
const SHAPE: &str = "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text, a.attgenerated::text, \
     pg_get_expr(d.adbin, d.adrelid), co.collname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
     LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum LEFT JOIN pg_collation co ON co.oid = a.attcollation \
     WHERE n.nspname IN ('public', 'other') AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND a.attnum > 0 ORDER BY 1, a.attnum";
const CONSTRAINTS: &str = "SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = conrelid \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('public', 'other') AND c.relpersistence = 'p' AND contype <> 'n' ORDER BY 1, 2";
const INDEXES: &str = "SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE n.nspname IN ('public', 'other') AND c.relpersistence = 'p' ORDER BY 1";

#[tokio::test]
async fn it_makes_the_replica_like_the_source_and_twice_changes_nothing() {
    let pair = Pair::new().await;
    pair.source.execute(SHOP).await;
    let lines = pair.init().await;
    assert!(lines.iter().any(|l| matches!(l, Line::Note(text) if text.contains("public.scratch is left out"))), "{lines:?}");
    assert_eq!(pair.source.query(SHAPE).await.unwrap(), pair.replica.query(SHAPE).await.unwrap());
    let publication = "SELECT schemaname, tablename FROM pg_publication_tables ORDER BY 1, 2";
    assert_eq!(pair.source.query(publication).await.unwrap().len(), 8);
    let pending = "SELECT count(*) FROM millstream.copied_table WHERE state = 'pending'";
    assert_eq!(pair.replica.value(pending).await, "8");
    let unique = "SELECT count(*) FROM pg_index WHERE indisunique AND indrelid IN ('orders'::regclass, 'by_index'::regclass, 'customers'::regclass)";
    assert_eq!(pair.replica.value(unique).await, "3", "only what finds rows is there before the copy");
    // Building what was deferred gives the source's keys and indexes.
    let later = pair.replica.query("SELECT statement FROM millstream.deferred_ddl ORDER BY ordinal").await.unwrap();
    for row in later {
        pair.replica.execute(row[0].as_ref().unwrap()).await;
    }
    assert_eq!(pair.source.query(CONSTRAINTS).await.unwrap(), pair.replica.query(CONSTRAINTS).await.unwrap());
    assert_eq!(pair.source.query(INDEXES).await.unwrap(), pair.replica.query(INDEXES).await.unwrap());

    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Unchanged, "{lines:?}");
}

#[tokio::test]
async fn a_dry_run_prints_sql_and_touches_nothing() {
    let pair = Pair::new().await;
    pair.source.execute(SHOP).await;
    let (outcome, lines) = pair.init_with(InitOptions { dry_run: true, ..InitOptions::default() }).await;
    assert_eq!(outcome.unwrap(), Outcome::Changed);
    let said = |needle: &str| lines.iter().any(|l| matches!(l, Line::Sql { statement, .. } if statement.contains(needle)));
    assert!(said("CREATE PUBLICATION") && said("CREATE TABLE \"public\".\"customers\"") && said("CREATE TYPE"), "{lines:#?}");
    assert_eq!(pair.source.value("SELECT count(*) FROM pg_publication").await, "0");
    assert_eq!(pair.replica.value("SELECT count(*) FROM pg_namespace WHERE nspname IN ('millstream', 'other')").await, "0");
    assert!(pair.queue.bounds(&pair.shop().name).await.unwrap().is_none());
}

#[tokio::test]
async fn a_table_without_a_replica_identity_is_refused_with_the_statement_that_mends_it() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE bare (a int); CREATE TABLE good (a int PRIMARY KEY)").await;
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let refusal = lines.iter().find_map(|l| if let Line::Refused(text) = l { Some(text.clone()) } else { None }).unwrap();
    assert!(refusal.contains("public.bare"), "{refusal}");
    assert_eq!(pair.source.value("SELECT count(*) FROM pg_publication").await, "0", "nothing is done");
    let (_, mend) = refusal.split_once("or: ").unwrap();
    pair.source.execute(mend).await;
    pair.init().await;
}

#[tokio::test]
async fn tables_with_rows_that_refer_to_each_other_are_emptied_by_the_statement_in_the_refusal() {
    let pair = Pair::new().await;
    let tables = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)";
    pair.source.execute(tables).await;
    pair.replica.execute(&format!("{tables}; INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1)")).await;
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let [Line::Refused(text)] = &*lines else { panic!("one refusal: {lines:#?}") };
    assert!(text.contains("public.a, public.b: the replica's tables hold rows"), "{text}");
    let (_, statement) = text.split_once("yourself (").unwrap();
    pair.replica.execute(statement.split_once(';').unwrap().0).await;
    pair.init().await;
}

/// A first copy halted at its end, because only columns' types were asked.
#[tokio::test]
async fn extensions_that_indexes_and_constraints_stand_on_are_made() {
    let pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE SCHEMA ext; CREATE EXTENSION btree_gist; CREATE EXTENSION pg_trgm SCHEMA ext; CREATE EXTENSION earthdistance CASCADE; \
             CREATE TABLE a (id int PRIMARY KEY, v text, r int4range, EXCLUDE USING gist (id WITH =, r WITH &&)); \
             CREATE INDEX ON a USING gin (v ext.gin_trgm_ops); CREATE TABLE b (id int PRIMARY KEY, far float8 DEFAULT earth())",
        )
        .await;
    // Trusted ones are made by whoever may create in the database; the others by a superuser, as `check` says.
    let (outcome, _) = pair.init_with(InitOptions::default()).await;
    let refused = outcome.unwrap_err();
    assert!(
        refused.kind() == ErrorKind::Halt(HaltCode::ReplicaDenied) && refused.to_string().contains("earthdistance"),
        "{refused}"
    );
    pair.replica.execute("CREATE EXTENSION earthdistance CASCADE").await;
    pair.init().await;
    let made = "SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension WHERE extname <> 'plpgsql'";
    assert_eq!(pair.replica.value(made).await, "btree_gist cube earthdistance pg_trgm");
    for statement in pair.replica.query("SELECT statement FROM millstream.deferred_ddl ORDER BY ordinal").await.unwrap() {
        pair.replica.execute(statement[0].as_deref().unwrap()).await;
    }
    assert_eq!(pair.replica.value("SELECT count(*) FROM pg_index WHERE indrelid = 'a'::regclass").await, "3");
}

#[tokio::test]
async fn a_replica_table_with_rows_is_refused_and_an_empty_one_must_fit() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)").await;
    pair.replica
        .execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1); CREATE TABLE b (id int, v int)")
        .await;
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let text = format!("{lines:?}");
    assert!(
        text.contains("public.a: the replica's table holds rows") && text.contains("primary key is not the source's"),
        "{text}"
    );
    assert!(text.contains("ALTER COLUMN \\\\\\\"v\\\\\\\" TYPE text") || text.contains("TYPE text"), "{text}");
    assert_eq!(pair.replica.value("SELECT count(*) FROM a").await, "1");
    pair.replica
        .execute(
            "TRUNCATE a; ALTER TABLE b ALTER v TYPE text; ALTER TABLE b ADD PRIMARY KEY (id); CREATE UNIQUE INDEX b_v ON b (v)",
        )
        .await;
    let said = format!("{:?}", pair.init().await);
    assert!(said.contains("replica reports: ledger, 2 tables that were there (public.a, public.b)"), "{said}");
    assert_eq!(
        pair.replica.value("SELECT count(*) FROM pg_class WHERE relname = 'b_v'").await,
        "0",
        "taken off until the copy is done"
    );
    assert_eq!(
        pair.replica.value("SELECT statement FROM millstream.deferred_ddl").await,
        "CREATE UNIQUE INDEX b_v ON public.b USING btree (v)"
    );
}

#[tokio::test]
async fn a_new_table_is_picked_up_by_the_next_run_and_one_that_no_longer_matches_goes() {
    let mut pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.init().await;
    pair.source.execute("CREATE TABLE b (id int PRIMARY KEY)").await;
    pair.init().await;
    let tables = "SELECT string_agg(table_name, ',' ORDER BY table_name) FROM millstream.copied_table";
    assert_eq!(pair.replica.value(tables).await, "a,b");
    pair.config.sources.values_mut().next().unwrap().tables.push("!public.a".into());
    // As if a daemon had passed the place.
    pair.replica.execute("UPDATE millstream.replica SET position = 'F/0'").await;
    pair.init().await;
    assert_eq!(pair.replica.value(tables).await, "b");
    assert_eq!(pair.source.value("SELECT string_agg(tablename, ',') FROM pg_publication_tables").await, "b");
}

/// The refusal asked for a TRUNCATE, which would have emptied the live replica.
#[tokio::test]
async fn a_second_replica_in_the_same_database_is_refused_by_name() {
    let mut pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    pair.init().await;
    pair.replica.execute("INSERT INTO a VALUES (1)").await;
    let mut second = pair.config.replicas["reports"].clone();
    second.name = "again".into();
    pair.config.replicas.insert("again".into(), second);
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let [Line::Refused(text)] = &*lines else { panic!("one refusal: {lines:#?}") };
    assert!(text.contains("public.a of 'reports'") && !text.contains("TRUNCATE"), "{text}");
}

/// The publication is the source's: the other replica halted at the first change to a table that it did not know.
#[tokio::test]
async fn replicas_that_were_not_asked_for_come_along_when_the_published_tables_change() {
    let mut pair = Pair::new().await;
    let search = crate::support::postgres::shared_replica().await.new_database().await;
    let mut second = pair.config.replicas["reports"].clone();
    second.name = "search".into();
    second.connect = search.connect();
    let mut third = second.clone();
    third.name = "not_begun".into();
    third.connect = crate::support::postgres::shared_replica().await.new_database().await.connect();
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.config.replicas.insert("search".into(), second);
    pair.init().await;
    pair.config.replicas.insert("not_begun".into(), third);
    pair.source.execute("CREATE TABLE b (id int PRIMARY KEY)").await;
    let only = InitOptions { replica: Some("reports".into()), ..InitOptions::default() };
    let (outcome, lines) = pair.init_with(only.clone()).await;
    assert_eq!(outcome.unwrap(), Outcome::Changed, "{lines:?}");
    assert!(lines.iter().any(|l| matches!(l, Line::Note(text) if text.contains("replica search comes along"))), "{lines:?}");
    let tables = "SELECT string_agg(table_name, ',' ORDER BY table_name) FROM millstream.copied_table";
    assert_eq!((pair.replica.value(tables).await, search.value(tables).await), ("a,b".into(), "a,b".into()));
    let (outcome, lines) = pair.init_with(only).await;
    assert_eq!(outcome.unwrap(), Outcome::Unchanged, "{lines:?}");
}

#[tokio::test]
async fn the_index_that_finds_rows_at_the_source_must_be_on_a_table_that_is_there() {
    let pair = Pair::new().await;
    let table = "CREATE TABLE a (k int NOT NULL, v text)";
    pair.source.execute(table).await;
    pair.source.execute("CREATE UNIQUE INDEX a_k ON a (k); ALTER TABLE a REPLICA IDENTITY USING INDEX a_k").await;
    pair.replica.execute(table).await;
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let refusal = lines.iter().find_map(|l| if let Line::Refused(text) = l { Some(text.clone()) } else { None }).unwrap();
    let (_, mend) = refusal.split_once("is missing: ").unwrap_or_else(|| panic!("{refusal}"));
    pair.replica.execute(mend).await;
    pair.init().await;
}

#[tokio::test]
async fn keys_that_were_taken_off_a_table_that_goes_before_it_is_copied_are_said() {
    let mut pair = Pair::new().await;
    let table = "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY)";
    pair.source.execute(table).await;
    pair.replica.execute(table).await;
    pair.replica.execute("CREATE UNIQUE INDEX a_v ON a (v)").await;
    pair.init().await;
    pair.config.sources.values_mut().next().unwrap().tables.push("!public.a".into());
    pair.replica.execute("UPDATE millstream.replica SET position = 'F/0'").await;
    let lines = pair.init().await;
    let statement = "CREATE UNIQUE INDEX a_v ON public.a USING btree (v);";
    assert!(lines.iter().any(|l| matches!(l, Line::Note(text) if text.ends_with(statement))), "{lines:?}");
}

/// A run that was killed behind the publication has marked nothing; the next one took what stood there from the table's first copy for the mark, and the replica halted at changes that the log still held.
#[tokio::test]
async fn a_live_table_leaves_past_the_end_of_its_publication_even_when_init_was_killed() {
    let mut pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").await;
    pair.init().await;
    pair.replica.execute("UPDATE millstream.copied_table SET state = 'live'").await;
    let publication = publication_name(&pair.shop().name);
    let killed = format!("ALTER PUBLICATION {publication} DROP TABLE a; {}; INSERT INTO b VALUES (1)", mark(&publication));
    pair.source.execute(&killed).await;
    pair.config.sources.values_mut().next().unwrap().tables.push("!public.a".into());
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    outcome.unwrap();
    assert!(lines.iter().any(|l| matches!(l, Line::Note(text) if text.contains("public.a leave once"))), "{lines:?}");
    let tables = "SELECT string_agg(table_name, ',' ORDER BY table_name) FROM millstream.copied_table";
    assert_eq!(pair.replica.value(tables).await, "a,b");
    pair.replica.execute("UPDATE millstream.replica SET position = 'F/0'").await;
    pair.init().await;
    assert_eq!(pair.replica.value(tables).await, "b");
}

#[tokio::test]
async fn an_init_that_was_killed_before_the_second_record_drops_the_slot_it_names_and_makes_it_anew() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let shop = pair.shop();
    let name = new_slot_name(&shop.name);
    let history = slot::history(shop, name.clone()).await.unwrap();
    begin_stream(&pair.queue, &shop.name, Genesis { source: shop.name.clone(), history }).await.unwrap();
    let first = slot::create(shop, &name, &mut |_| {}).await.unwrap();
    pair.source.execute("INSERT INTO a VALUES (1)").await;
    pair.init().await;
    let standing = format!(
        "SELECT slot_name || confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name LIKE 'millstream_{}%'",
        shop.name
    );
    let now = pair.source.value(&standing).await;
    assert!(now.starts_with(&name) && now != format!("{name}{first}"), "{now}");
}

#[tokio::test]
async fn the_transaction_that_the_slot_waits_for_is_named() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let mut open = pair.source.connection().await;
    crate::support::sql::query(&mut open, "BEGIN").await.unwrap();
    let pid =
        crate::support::sql::query(&mut open, "INSERT INTO a VALUES (7) RETURNING pg_backend_pid() /* the one */").await.unwrap();
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let run = async {
        let mut report = |line| said.send(line).unwrap();
        millstream::preflight::init::init(&pair.config, &pair.queue, &InitOptions::default(), &mut report).await
    };
    let watch = async {
        loop {
            if let Line::Waiting(text) = heard.recv().await.unwrap()
                && text.contains("waits for")
            {
                let pid = format!("{pid:?}").chars().filter(char::is_ascii_digit).collect::<String>();
                assert!(text.contains(&format!("backend pid {pid}")) && text.contains("the one"), "{text}");
                crate::support::sql::query(&mut open, "COMMIT").await.unwrap();
                return;
            }
        }
    };
    let (outcome, ()) = tokio::join!(run, watch);
    assert_eq!(outcome.unwrap(), Outcome::Changed);
}

#[test]
fn names_are_compared_as_the_catalog_has_them() {
    let patterns = millstream::preflight::tables::TablePatterns::parse(&["public.Orders"]).unwrap();
    assert!(!patterns.matches(&TableName::new("public", "orders")));
}
