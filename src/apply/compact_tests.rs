//! Compaction against naive replay, over random valid histories.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The model: key to the other cells.
type Table = BTreeMap<String, (String, String)>;

/// A step of a history; keys out of a small set, so that they meet.
#[derive(Clone, Debug)]
enum Op {
    Put(u8, u8),
    /// Update: key, value, whether the wide column is unchanged, whether the old image is whole.
    Set(u8, u8, bool, bool),
    Drop(u8),
    /// Key change: from, to, unchanged, whole.
    Move(u8, u8, bool, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..8_u8, any::<u8>()).prop_map(|(k, v)| Op::Put(k, v)),
        (0..8_u8, any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(k, v, u, f)| Op::Set(k, v, u, f)),
        (0..8_u8).prop_map(Op::Drop),
        (0..8_u8, 0..8_u8, any::<bool>(), any::<bool>()).prop_map(|(a, b, u, f)| Op::Move(a, b, u, f)),
    ]
}

#[derive(Debug)]
enum Made {
    Insert(Row),
    Update(Option<OldImage>, Row),
    Delete(OldImage),
}

fn row(key: &str, cells: &(String, String), unchanged: bool) -> Row {
    let wide = if unchanged { Cell::Unchanged } else { Cell::Value(cells.1.as_bytes()) };
    [Cell::Value(cells.0.as_bytes()), Cell::Value(key.as_bytes()), wide].into_iter().collect()
}

fn old(key: &str, cells: &(String, String), whole: bool) -> OldImage {
    if whole {
        OldImage::Full(row(key, cells, false))
    } else {
        OldImage::Key([Cell::Null, Cell::Value(key.as_bytes()), Cell::Null].into_iter().collect())
    }
}

/// Plays an operation on the model when it is valid there, and gives the change that a source would send.
fn play(table: &mut Table, op: &Op) -> Option<Made> {
    let name = |k: &u8| format!("k{k}");
    match op {
        Op::Put(k, v) => {
            if table.contains_key(&name(k)) {
                return None;
            }
            table.insert(name(k), (format!("v{v}"), format!("w{v}")));
            Some(Made::Insert(row(&name(k), &table[&name(k)], false)))
        }
        Op::Set(k, v, unchanged, whole) => {
            let before = table.get(&name(k))?.clone();
            let wide = if *unchanged { before.1.clone() } else { format!("w{v}") };
            table.insert(name(k), (format!("v{v}"), wide));
            let image = whole.then(|| old(&name(k), &before, true));
            Some(Made::Update(image, row(&name(k), &table[&name(k)], *unchanged)))
        }
        Op::Drop(k) => {
            let before = table.remove(&name(k))?;
            Some(Made::Delete(old(&name(k), &before, false)))
        }
        Op::Move(a, b, unchanged, whole) => {
            if table.contains_key(&name(b)) {
                return None;
            }
            let before = table.remove(&name(a))?;
            table.insert(name(b), before.clone());
            Some(Made::Update(Some(old(&name(a), &before, *whole)), row(&name(b), &before, *unchanged)))
        }
    }
}

fn fold<'a>(shape: Shape, made: &'a [Made]) -> Result<Net<'a>, Irregular> {
    let mut compactor = Compactor::new(shape);
    for change in made {
        match change {
            Made::Insert(new) => compactor.insert(new)?,
            Made::Update(old, new) => compactor.update(old.as_ref(), new)?,
            Made::Delete(old) => compactor.delete(old)?,
        }
    }
    Ok(compactor.finish())
}

fn text(cell: Cell<'_>) -> String {
    match cell {
        Cell::Value(value) => String::from_utf8(value.to_vec()).expect("UTF-8"),
        other => panic!("{other:?}"),
    }
}

/// Carries the net effect out; every delete and update must find its row, every insert its place free.
fn carry_out(table: &mut Table, net: &Net<'_>) {
    for &index in &net.deletes {
        table.remove(&text(net.rows.finders(index)[0])).expect("a row to delete");
    }
    for group in &net.updates {
        for &index in &group.rows {
            let row = table.get_mut(&text(net.rows.finders(index)[0])).expect("a row to update");
            for &column in &group.set {
                match column {
                    0 => row.0 = text(net.rows.row(index)[0]),
                    2 => row.1 = text(net.rows.row(index)[2]),
                    other => panic!("sets column {other}"),
                }
            }
        }
    }
    for &index in &net.inserts {
        let row = net.rows.row(index);
        assert_eq!(row[1], net.rows.finders(index)[0]);
        assert!(table.insert(text(row[1]), (text(row[0]), text(row[2]))).is_none(), "a place to insert is taken");
    }
}

fn shape(extra: bool) -> Shape {
    Shape { columns: 3, key: vec![1], extra }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn net_effect_equals_replay(before in prop::collection::btree_set(0..8_u8, 0..8), ops in prop::collection::vec(op(), 0..40), extra: bool) {
        let mut replayed: Table =
            before.iter().map(|k| (format!("k{k}"), (format!("first{k}"), format!("wide{k}")))).collect();
        let mut netted = replayed.clone();
        let made: Vec<Made> = ops.iter().filter_map(|op| play(&mut replayed, op)).collect();
        if let Ok(net) = fold(shape(extra), &made) {
            carry_out(&mut netted, &net);
            prop_assert_eq!(netted, replayed);
        } else {
            let odd = |change: &Made| matches!(change, Made::Update(Some(OldImage::Key(_)), new) if new.iter().any(|c| c == Cell::Unchanged));
            prop_assert!(extra || made.iter().any(odd), "irregular without a reason: {:?}", made);
        }
    }
}

#[test]
fn one_row_updated_deleted_and_inserted_again_is_a_delete_and_an_insert() {
    let cells = |v: &str| (v.to_owned(), v.to_owned());
    let made = [
        Made::Update(None, row("k", &cells("1"), false)),
        Made::Delete(old("k", &cells("1"), false)),
        Made::Insert(row("k", &cells("2"), false)),
        Made::Update(None, row("k", &cells("3"), true)),
    ];
    let net = fold(shape(false), &made).expect("regular");
    assert_eq!((net.deletes.len(), net.updates.len(), net.inserts.len()), (1, 0, 1));
    assert_eq!(text(net.rows.row(net.inserts[0])[0]), "3");
    assert_eq!(text(net.rows.row(net.inserts[0])[2]), "2", "the unchanged cell keeps what the insert brought");
}

#[test]
fn what_does_not_fit_the_source_s_order_is_irregular() {
    let cells = ("1".to_owned(), "1".to_owned());
    let twice = [Made::Insert(row("k", &cells, false)), Made::Insert(row("k", &cells, false))];
    assert_eq!(fold(shape(false), &twice).err(), Some(Irregular));
    let gone = [Made::Delete(old("k", &cells, false)), Made::Update(None, row("k", &cells, false))];
    assert_eq!(fold(shape(false), &gone).err(), Some(Irregular));
    let incomplete = [Made::Insert(row("k", &cells, true))];
    assert_eq!(fold(shape(false), &incomplete).err(), Some(Irregular));
}

#[test]
fn updates_are_grouped_by_what_they_set() {
    let cells = ("1".to_owned(), "1".to_owned());
    let made: Vec<Made> = (0..6).map(|i| Made::Update(None, row(&format!("k{i}"), &cells, i % 2 == 0))).collect();
    let net = fold(shape(false), &made).expect("regular");
    let groups: Vec<_> = net.updates.iter().map(|group| (group.set.clone(), group.rows.len())).collect();
    assert_eq!(groups, [(vec![0], 3), (vec![0, 2], 3)]);
}
