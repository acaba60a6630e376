use millstream::preflight::init::{Adopt, InitOptions, Line, Outcome};
use millstream::preflight::teardown::{TeardownOptions, look, teardown};

use super::Pair;

const TABLE: &str = "CREATE TABLE a (id serial PRIMARY KEY, v text UNIQUE)";
const COLUMNS: &str = "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns \
     WHERE table_schema = 'millstream' ORDER BY table_name, ordinal_position";

/// What is printed for the replica runs there, once what is only known later stands for its placeholders, and makes what `init` makes.
#[tokio::test]
async fn the_printed_ledger_and_tables_can_be_run() {
    let pair = Pair::new().await;
    pair.source.execute(TABLE).await;
    let (outcome, lines) = pair.init_with(InitOptions { dry_run: true, ..InitOptions::default() }).await;
    assert_eq!(outcome.unwrap(), Outcome::Changed);
    let all: Vec<&str> =
        lines.iter().filter_map(|l| if let Line::Sql { statement, .. } = l { Some(statement.as_str()) } else { None }).collect();
    for part in [
        "CREATE SCHEMA IF NOT EXISTS millstream",
        "CREATE TABLE millstream.copied_table",
        "INSERT INTO millstream.replica",
        "INSERT INTO millstream.deferred_ddl",
    ] {
        assert!(all.iter().any(|statement| statement.contains(part)), "{part}: {all:#?}");
    }
    assert!(lines.iter().any(|l| matches!(l, Line::Note(text) if text.contains("consumer reports"))), "{lines:#?}");
    for line in &lines {
        let Line::Sql { place, statement } = line else { continue };
        if place.starts_with("replica") {
            let known = statement.replace("'<the source''s identity>'", "'{}'").replace("'<its place in the log>'", "NULL");
            pair.replica.execute(&known).await;
        }
    }
    let made = Pair::new().await;
    made.source.execute(TABLE).await;
    made.init().await;
    for query in [
        COLUMNS,
        "SELECT table_name, state, copy_group, live_at FROM millstream.copied_table",
        "SELECT * FROM millstream.deferred_ddl",
    ] {
        assert_eq!(pair.replica.query(query).await.unwrap(), made.replica.query(query).await.unwrap(), "{query}");
    }
    assert_eq!(
        pair.replica.value("SELECT count(*) FROM pg_constraint WHERE conrelid = 'a'::regclass AND contype <> 'n'").await,
        "2"
    );
}

#[tokio::test]
async fn a_second_dry_run_prints_nothing() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    pair.init().await;
    let (outcome, lines) = pair.init_with(InitOptions { dry_run: true, ..InitOptions::default() }).await;
    assert_eq!((outcome.unwrap(), lines), (Outcome::Unchanged, Vec::new()));
}

/// Whether rows are alike is known after the slot stands, which then retains WAL: that was said nowhere.
#[tokio::test]
async fn a_refused_adoption_says_what_stands_and_what_undoes_it() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    pair.replica.execute("CREATE TABLE a (id int PRIMARY KEY)").await;
    let (outcome, lines) = pair.init_with(InitOptions { adopt: Some(Adopt { at: None }), ..InitOptions::default() }).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused, "{lines:#?}");
    let name = pair.shop().name.clone();
    let undo = format!("millstream teardown --source {name}");
    // What was made, what is refused, what stands and what to do, in this order.
    let kinds: Vec<_> = lines.iter().map(std::mem::discriminant).collect();
    let (done, refused, note) = (Line::Done(String::new()), Line::Refused(String::new()), Line::Note(String::new()));
    let order = [&done, &done, &done, &refused, &note, &note, &note].map(std::mem::discriminant);
    assert_eq!(kinds, order, "{lines:#?}");
    assert!(matches!(&lines[2], Line::Done(text) if text.starts_with("created slot")), "{lines:#?}");
    assert!(matches!(&lines[4], Line::Note(text) if text.contains("was not touched")), "{lines:#?}");
    assert!(matches!(&lines[6], Line::Note(text) if text.ends_with(&undo)), "{lines:#?}");
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'millstream_{name}%'");
    assert_eq!(pair.source.value(&slots).await, "1");
    let options = TeardownOptions { source: Some(name), ..TeardownOptions::default() };
    let quiet = look(&pair.config, &options, &mut |_| {}).await.unwrap().expect("no daemon");
    assert_eq!(teardown(&pair.config, &pair.queue, &options, quiet, &mut |_| {}).await.unwrap(), Outcome::Changed);
    assert_eq!(pair.source.value(&slots).await, "0");
}
