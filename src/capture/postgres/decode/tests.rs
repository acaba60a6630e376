//! Hand-made messages after the documentation, then every cut and mutation of them.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::event::{Cell, Lsn};

const RELATION: &[u8] = b"R\0\0\x40\x01public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0na me\0\0\0\x04\x13\0\0\0\x0c";
const INSERT: &[u8] = b"I\0\0\x40\x01N\0\x03t\0\0\0\x0142nut\0\0\0\0";
const UPDATE_KEY: &[u8] = b"U\0\0\x40\x01K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u";
const STREAMED_DELETE: &[u8] = b"D\0\0\x02\xbc\0\0\x40\x01O\0\x01t\0\0\0\x02ab";
const TRUNCATE: &[u8] = b"T\0\0\0\x02\x03\0\0\x40\x01\0\0\x40\x02";
const MESSAGE: &[u8] = b"M\x01\0\0\0\x01\0\0\0\x02app\0\0\0\0\x03a\0b";
const COMMIT: &[u8] = b"C\0\0\0\0\x01\0\0\0\x02\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\0";

fn cells(tuple: TupleData<'_>) -> Vec<Cell<'_>> {
    tuple.cells().collect()
}

#[test]
fn insert_borrows_its_cells() {
    // The first cell's length is 1, so "2" begins no cell: a decoder that trusts wrong lengths stumbles here.
    assert!(decode(INSERT, false).is_err());
    let good = b"I\0\0\x40\x01N\0\x04t\0\0\0\x0242nut\0\0\0\0";
    let PgOutput::Insert { xid: None, relation: 0x4001, new } = decode(good, false).unwrap() else { panic!("not an insert") };
    assert_eq!(new.len(), 4);
    assert_eq!(cells(new), [Cell::Value(b"42"), Cell::Null, Cell::Unchanged, Cell::Value(b"")]);
}

#[test]
fn update_has_key_and_new_row() {
    let PgOutput::Update { old: Some(OldTuple::Key(old)), new, .. } = decode(UPDATE_KEY, false).unwrap() else {
        panic!("not an update")
    };
    assert_eq!(cells(old), [Cell::Value(b"1"), Cell::Null]);
    assert_eq!(cells(new), [Cell::Value(b"2"), Cell::Unchanged]);
}

#[test]
fn streamed_messages_carry_their_transaction() {
    let PgOutput::Delete { xid: Some(ShortXid(700)), relation: 0x4001, old: OldTuple::Full(old) } =
        decode(STREAMED_DELETE, true).unwrap()
    else {
        panic!("not a streamed delete")
    };
    assert_eq!(cells(old), [Cell::Value(b"ab")]);
    assert!(decode(STREAMED_DELETE, false).is_err(), "outside of a block the same bytes are another message");
    let started = decode(b"S\0\0\x02\xbc\x01", false).unwrap();
    assert_eq!(started, PgOutput::StreamStart { xid: ShortXid(700), first: true });
    assert_eq!(decode(b"E", true).unwrap(), PgOutput::StreamStop);
    let aborted = decode(b"A\0\0\x02\xbc\0\0\x02\xbd", false).unwrap();
    assert_eq!(aborted, PgOutput::StreamAbort { xid: ShortXid(700), subxid: ShortXid(701) });
}

#[test]
fn relation_lists_its_columns() {
    let PgOutput::Relation(relation) = decode(RELATION, false).unwrap() else { panic!("not a relation") };
    assert_eq!((relation.oid, relation.namespace, relation.name), (0x4001, "public", "t"));
    assert_eq!(relation.identity, Identity::Default);
    assert_eq!(relation.columns.count_columns(), 2);
    let columns: Vec<_> = relation.columns.collect();
    assert_eq!(columns[0], ColumnDefinition { key: true, name: "id", type_oid: 23, type_modifier: -1 });
    assert_eq!(columns[1], ColumnDefinition { key: false, name: "na me", type_oid: 1043, type_modifier: 12 });
}

#[test]
fn an_empty_namespace_is_pg_catalog() {
    let PgOutput::Type { namespace, name, .. } = decode(b"Y\0\0\0\x01\0box\0", false).unwrap() else { panic!("not a type") };
    assert_eq!((namespace, name), ("pg_catalog", "box"));
}

#[test]
fn truncate_message_commit() {
    let PgOutput::Truncate { relations, cascade: true, restart_identity: true, .. } = decode(TRUNCATE, false).unwrap() else {
        panic!("not a truncate")
    };
    assert_eq!(relations.collect::<Vec<_>>(), [0x4001, 0x4002]);
    let message = decode(MESSAGE, false).unwrap();
    let expected = PgOutput::Message { xid: None, transactional: true, lsn: Lsn(0x1_0000_0002), prefix: "app", content: b"a\0b" };
    assert_eq!(message, expected);
    let commit = Commit { commit_lsn: Lsn(0x1_0000_0002), end_lsn: Lsn(0x1_0000_0003), commit_time_us: 946_684_800_000_000 };
    assert_eq!(decode(COMMIT, false).unwrap(), PgOutput::Commit(commit));
}

#[test]
fn what_cannot_be_is_malformed_and_says_where() {
    for (bytes, what) in [
        (&b""[..], "byte 0 of 0"),
        (b"?", "unknown kind '?' at byte 1"),
        (b"b\0", "unknown kind 'b'"),
        (b"EE", "behind the end"),
        (b"I\0\0\0\x01N\0\x01b\0\0\0\x01x", "binary value"),
        (b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xffx", "announced and not there at byte 13 of 14"),
        (b"D\0\0\0\x01N\0\0", "without an old row"),
        (b"T\xff\xff\xff\xff\0", "announced and not there"),
        (b"Y\0\0\0\x01a\0\xff\0", "not UTF-8"),
    ] {
        let error = decode(bytes, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains(what), "{error}");
    }
}

/// Uses everything that a message gives, as capture would; for tests and the fuzz target alike.
fn walk(bytes: &[u8], in_stream: bool) {
    match decode(bytes, in_stream) {
        Ok(PgOutput::Insert { new, .. }) => assert_eq!(new.cells().count(), new.len()),
        Ok(PgOutput::Update { old, new, .. }) => {
            assert_eq!(new.cells().count(), new.len());
            old.into_iter().for_each(|old| assert_eq!(old.tuple().cells().count(), old.tuple().len()));
        }
        Ok(PgOutput::Delete { old, .. }) => assert_eq!(old.tuple().cells().count(), old.tuple().len()),
        Ok(PgOutput::Relation(relation)) => assert_eq!(relation.columns.count(), relation.columns.count_columns()),
        Ok(PgOutput::Truncate { relations, .. }) => assert_eq!(relations.count(), relations.len()),
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::Malformed),
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), in_stream: bool) {
        walk(&bytes, in_stream);
    }

    #[test]
    fn mutated_messages_never_panic(
        which in 0..7_usize,
        cut in 0..64_usize,
        changes in proptest::collection::vec((0..64_usize, any::<u8>()), 0..4),
        in_stream: bool,
    ) {
        let mut bytes = [RELATION, INSERT, UPDATE_KEY, STREAMED_DELETE, TRUNCATE, MESSAGE, COMMIT][which].to_vec();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        walk(&bytes, in_stream);
    }
}
