use super::*;
use crate::apply::compact::Shape;
use crate::apply::runs::RunRules;
use crate::event::{Column, Identity, OldImage, TableName, TableSchema};
use crate::replica::postgres::tables::TableColumn;
use std::sync::Arc;

/// Columns `a`, `b` and `note`; the first two are the key.
fn table(exact: bool, keyed: bool) -> Table {
    let column = |name: &str, key: bool| Column {
        name: name.to_owned(),
        type_name: "pg_catalog.text".to_owned(),
        type_oid: 25,
        type_modifier: -1,
        identity: key,
        primary_key: key,
    };
    let written =
        |name: &str| TableColumn { name: name.to_owned(), cast: "text".to_owned(), written: true, identity_always: false, exact };
    let schema = TableSchema {
        id: SchemaId(1),
        table: TableName::new("public", "t"),
        source_oid: 7,
        identity: Identity::Default,
        columns: vec![column("a", true), column("b", true), column("note", false)],
    };
    Table {
        place: schema.table.clone(),
        schema: Arc::new(schema),
        relation: 1,
        definition: 1,
        name: "t".to_owned(),
        columns: ["a", "b", "note"].map(written).into(),
        rules: RunRules { finders: vec![0, 1], keyed, single_updates: false },
        operators: Vec::new(),
        shape: Shape { columns: 3, key: vec![0, 1], extra: false },
        deferrable: false,
        second_unique: false,
        ordered: false,
        cascades: false,
        entangled: false,
        row_security: false,
        partitioned: false,
        extra: Vec::new(),
        key_indexes: Vec::new(),
    }
}

fn row(cells: [Cell<'_>; 3]) -> Row {
    cells.into_iter().collect()
}

const fn v(text: &str) -> Cell<'_> {
    Cell::Value(text.as_bytes())
}

fn keys(pairs: &[(&str, &str)]) -> Rows {
    Rows::Keys(pairs.iter().map(|(a, b)| vec![a.as_bytes().to_vec(), b.as_bytes().to_vec()]).collect())
}

fn update(old: Option<[Cell<'_>; 3]>, new: [Cell<'_>; 3]) -> Change {
    Change::Update { table: SchemaId(1), old: old.map(|old| OldImage::Key(row(old))), new: row(new) }
}

#[test]
fn a_change_is_about_the_old_key_and_the_new_one() {
    let t = table(true, true);
    let moved = update(Some([v("1"), v("x"), Cell::Null]), [v("2"), Cell::Unchanged, v("n")]);
    assert_eq!(rows_of(&moved, &t), keys(&[("1", "x"), ("2", "x")]));
    assert_eq!(rows_of(&update(None, [v("2"), v("x"), v("n")]), &t), keys(&[("2", "x")]));
    let gone = Change::Delete { table: SchemaId(1), old: OldImage::Key(row([v("1"), v("x"), Cell::Null])) };
    assert_eq!(rows_of(&gone, &t), keys(&[("1", "x")]));
}

#[test]
fn what_text_cannot_tell_is_every_row() {
    let insert = Change::Insert { table: SchemaId(1), new: row([v("1"), v("x"), v("n")]) };
    assert_eq!(rows_of(&insert, &table(true, true)), keys(&[("1", "x")]));
    assert!(matches!(rows_of(&insert, &table(false, true)), Rows::All(_)));
    assert!(matches!(rows_of(&insert, &table(true, false)), Rows::All(_)));
    let unsent = update(None, [v("1"), Cell::Unchanged, v("n")]);
    assert!(matches!(rows_of(&unsent, &table(true, true)), Rows::All(_)));
}

#[test]
fn a_row_is_found_under_its_own_columns_and_a_table_whose_key_is_another_counts_whole() {
    let t = table(true, true);
    let at = |position: &str| position.to_owned();
    let key = vec![b"1".to_vec(), b"x".to_vec()];
    let held = |columns: Vec<String>| TouchedTable {
        whole: None,
        keys: HashMap::from([(columns, HashMap::from([(key.clone(), at("0/1"))]))]),
    };
    let of = |a, b| Change::Insert { table: SchemaId(1), new: row([v(a), v(b), v("n")]) };
    let same = held(key_columns(&t));
    assert_eq!(same.by(&of("1", "x"), &t), Some((Some(key.clone()), at("0/1"))));
    // Bytes of neighbouring cells are not run together.
    assert_eq!(same.by(&of("1x", ""), &t), None);
    assert_eq!(same.by(&of("2", "x"), &t), None);
    let truncate = Change::Truncate { tables: vec![SchemaId(1)], cascade: false, restart_identity: false };
    assert_eq!(same.by(&truncate, &t), Some((None, at("0/1"))));
    let other = held(vec!["a pg_catalog.text".to_owned(), "c pg_catalog.text".to_owned()]);
    assert_eq!(other.by(&of("2", "x"), &t), Some((None, at("0/1"))));
}

#[test]
fn a_parent_counts_where_foreign_keys_are_enforced_and_its_key_changes() {
    let t = Arc::new(table(true, true));
    let tables: Tables = [(SchemaId(1), Arc::clone(&t))].into_iter().collect();
    let touched = |updates| Touched {
        tables: HashMap::new(),
        parents: HashMap::from([(t.relation, Parent { position: "0/1".to_owned(), updates })]),
    };
    let same = [update(None, [v("1"), v("x"), v("n")])];
    let moved = [update(Some([v("1"), v("x"), Cell::Null]), [v("2"), v("x"), v("n")])];
    let gone = [Change::Delete { table: SchemaId(1), old: OldImage::Key(row([v("1"), v("x"), Cell::Null])) }];
    let made = [Change::Insert { table: SchemaId(1), new: row([v("1"), v("x"), v("n")]) }];
    let halts = |updates, changes: &[Change]| touched(updates).check(changes, &tables, true).is_err();
    assert_eq!([&same[..], &moved, &gone, &made].map(|changes| halts(Follow::None, changes)), [false, false, true, false]);
    assert_eq!([&same[..], &moved, &gone, &made].map(|changes| halts(Follow::OfKey, changes)), [false, true, true, false]);
    assert_eq!([&same[..], &moved, &gone, &made].map(|changes| halts(Follow::Any, changes)), [true, true, true, false]);
    assert!(touched(Follow::Any).check(&gone, &tables, false).is_ok());
}
