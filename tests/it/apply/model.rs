//! Random histories over tables of every kind, in random batches, with the applier killed now and then: the replica ends as the model.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::event::{Change, TableSchema};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::rig::{NULL, Rig, SAME, delete, insert, update, update_from, v};

const DDL: &str = "CREATE TABLE plain (id int PRIMARY KEY, a text, u int, w text);
    CREATE TABLE second (id int PRIMARY KEY, a text, u int UNIQUE, w text);
    CREATE TABLE deferred (id int PRIMARY KEY, a text, u int UNIQUE DEFERRABLE, w text);
    CREATE TABLE whole (id int, a text, u int, w text);
    CREATE TABLE noisy (id int PRIMARY KEY, a text, u int, w text);
    CREATE FUNCTION noise() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER noise AFTER INSERT OR UPDATE OR DELETE ON noisy FOR EACH ROW EXECUTE FUNCTION noise();
    ALTER TABLE noisy ENABLE ALWAYS TRIGGER noise";

/// id to the other cells: a may be NULL, u is unique, w is wide.
type Model = BTreeMap<u32, (Option<String>, u32, String)>;

struct Table {
    schema: TableSchema,
    whole: bool,
    rows: Model,
}

impl Table {
    fn used(&self, u: u32) -> bool {
        self.rows.values().any(|row| row.1 == u)
    }
}

struct Cells {
    id: String,
    row: (Option<String>, u32, String),
    u: String,
}

impl Cells {
    fn of(id: u32, row: &(Option<String>, u32, String)) -> Self {
        Self { id: id.to_string(), row: row.clone(), u: row.1.to_string() }
    }

    fn all(&self, wide: bool) -> [millstream::event::Cell<'_>; 4] {
        [v(&self.id), self.row.0.as_deref().map_or(NULL, v), v(&self.u), if wide { v(&self.row.2) } else { SAME }]
    }

    fn old(&self, whole: bool) -> [millstream::event::Cell<'_>; 4] {
        if whole { self.all(true) } else { [v(&self.id), NULL, NULL, NULL] }
    }
}

/// One valid change of a table, played on its model.
fn step(random: &mut StdRng, table: &mut Table, serial: &mut u32) -> Option<Change> {
    *serial += 1;
    let keys: Vec<u32> = table.rows.keys().copied().collect();
    let fresh = |random: &mut StdRng| {
        (random.random_bool(0.8).then(|| format!("a{serial}")), random.random_range(0..60), format!("w{serial}"))
    };
    match random.random_range(0..10) {
        0..3 => {
            let (id, row) = (random.random_range(0..40), fresh(random));
            if table.rows.contains_key(&id) || table.used(row.1) {
                return None;
            }
            table.rows.insert(id, row.clone());
            Some(insert(&table.schema, &Cells::of(id, &row).all(true)))
        }
        3..7 => {
            let id = *keys.choose(random)?;
            let before = table.rows[&id].clone();
            let mut row = fresh(random);
            let wide = random.random_bool(0.5);
            if !wide {
                row.2.clone_from(&before.2);
            }
            if row.1 != before.1 && table.used(row.1) {
                row.1 = before.1;
            }
            table.rows.insert(id, row.clone());
            let (old, new) = (Cells::of(id, &before), Cells::of(id, &row));
            Some(match table.whole {
                true => update_from(&table.schema, &old.old(true), &new.all(wide)),
                false => update(&table.schema, &new.all(wide)),
            })
        }
        7..9 => {
            let id = *keys.choose(random)?;
            let before = table.rows.remove(&id)?;
            Some(delete(&table.schema, &Cells::of(id, &before).old(table.whole)))
        }
        _ => {
            let (from, to) = (*keys.choose(random)?, random.random_range(0..40));
            if table.rows.contains_key(&to) {
                return None;
            }
            let before = table.rows.remove(&from)?;
            table.rows.insert(to, before.clone());
            let wide = random.random_bool(0.5);
            Some(update_from(&table.schema, &Cells::of(from, &before).old(table.whole), &Cells::of(to, &before).all(wide)))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_end_as_the_model() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut rig = Rig::new(DDL).await;
    let mut tables = Vec::new();
    for (name, whole) in [("plain", false), ("second", false), ("deferred", false), ("whole", true), ("noisy", false)] {
        let schema = if whole { rig.full(name).await } else { rig.table(name).await };
        tables.push(Table { schema, whole, rows: Model::new() });
    }
    let (mut serial, mut changes, mut transactions) = (0, 0, 0);
    let mut end = rig.log.position();
    for round in 0..25 {
        rig.config.merge_max_changes = [1, 20, 20_000][round % 3];
        for _ in 0..random.random_range(1..6) {
            let mut batch = Vec::new();
            for _ in 0..random.random_range(1..30) {
                let mut transaction = Vec::new();
                for _ in 0..random.random_range(1..8) {
                    let table = random.random_range(0..tables.len());
                    transaction.extend(step(&mut random, &mut tables[table], &mut serial));
                }
                if random.random_ratio(1, 100) {
                    let table = random.random_range(0..tables.len());
                    tables[table].rows.clear();
                    let ids = vec![tables[table].schema.id];
                    transaction.push(Change::Truncate { tables: ids, cascade: false, restart_identity: false });
                }
                changes += transaction.len();
                transactions += 1;
                batch.push(transaction);
            }
            end = rig.log.transactions(&batch).await;
        }
        rig.start();
        if random.random_bool(0.5) {
            // Killed somewhere on the way; nothing is waited for.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
            rig.kill();
        } else {
            rig.applied(end).await;
            rig.stop().await;
        }
    }
    rig.drain(end).await;
    for table in &tables {
        let name = &table.schema.table.name;
        let expected: Vec<_> =
            table.rows.iter().map(|(id, row)| format!("{id}|{}|{}|{}", row.0.as_deref().unwrap_or("~"), row.1, row.2)).collect();
        let found = rig.rows(&format!("SELECT * FROM {name} ORDER BY id")).await;
        assert_eq!(found, expected.join("\n"), "table {name}, SEED={seed}");
    }
    assert_eq!(
        rig.rows("SELECT transactions, changes FROM millstream.replica").await,
        format!("{transactions}|{changes}"),
        "SEED={seed}"
    );
}
