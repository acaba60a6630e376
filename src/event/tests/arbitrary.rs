//! Any event.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::event::record::RecordHeader;
use crate::event::{
    Body, Cell, Change, Column, Epoch, Fence, Genesis, History, Identity, Lsn, Message, Nonce, OldImage, Part, Position,
    Progress, Record, RecordNumber, Row, RowBuilder, SchemaId, SlotStart, StreamId, TableName, TableSchema, TransactionBatch,
    TransactionHeader, Xid, write_change, write_transaction,
};

pub fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

pub fn row() -> impl Strategy<Value = Row> {
    let cell = prop_oneof![Just(None), Just(Some(None)), bytes(200).prop_map(|value| Some(Some(value)))];
    vec(cell, 0..8).prop_map(|cells| {
        let mut builder = RowBuilder::default();
        for cell in &cells {
            builder.push(match cell {
                None => Cell::Null,
                Some(None) => Cell::Unchanged,
                Some(Some(value)) => Cell::Value(value),
            });
        }
        builder.finish()
    })
}

pub fn change() -> impl Strategy<Value = Change> {
    let table = || any::<u32>().prop_map(SchemaId);
    let old = || prop_oneof![row().prop_map(OldImage::Key), row().prop_map(OldImage::Full)];
    prop_oneof![
        (table(), row()).prop_map(|(table, new)| Change::Insert { table, new }),
        (table(), prop::option::of(old()), row()).prop_map(|(table, old, new)| Change::Update { table, old, new }),
        (table(), old()).prop_map(|(table, old)| Change::Delete { table, old }),
        (vec(table(), 0..5), any::<bool>(), any::<bool>()).prop_map(|(tables, cascade, restart_identity)| Change::Truncate {
            tables,
            cascade,
            restart_identity
        }),
        (".{0,20}", bytes(300)).prop_map(|(prefix, content)| Change::Message { prefix, content }),
        bytes(300).prop_map(|content| Change::Schema { content }),
    ]
}

pub fn position() -> impl Strategy<Value = Position> {
    any::<u64>().prop_map(|lsn| Position::Lsn(Lsn(lsn)))
}

pub fn transaction() -> impl Strategy<Value = TransactionHeader> {
    let origin = prop::option::of(".{1,20}");
    (any::<u64>(), position(), any::<u64>(), any::<i64>(), origin).prop_map(|(xid, position, commit, commit_time_us, origin)| {
        TransactionHeader { xid: Xid(xid), position, commit_lsn: Lsn(commit), commit_time_us, origin }
    })
}

/// A change stream.
pub fn stream(changes: &[Change]) -> Bytes {
    let (mut out, mut scratch) = (BytesMut::new(), BytesMut::new());
    changes.iter().for_each(|change| write_change(change, &mut out, &mut scratch));
    out.freeze()
}

fn history() -> impl Strategy<Value = History> {
    (any::<u64>(), any::<u32>(), vec(any::<(u32, u64)>(), 0..4), ".{0,20}", ".{0,20}").prop_map(
        |(system_identifier, timeline, lineage, database, slot)| History { system_identifier, timeline, lineage, database, slot },
    )
}

fn schema() -> impl Strategy<Value = TableSchema> {
    let column = (".{0,20}", ".{0,20}", any::<u32>(), any::<i32>(), any::<bool>(), any::<bool>()).prop_map(
        |(name, type_name, type_oid, type_modifier, identity, primary_key)| Column {
            name,
            type_name,
            type_oid,
            type_modifier,
            identity,
            primary_key,
        },
    );
    let identity = prop_oneof![Just(Identity::Default), Just(Identity::Nothing), Just(Identity::Full), Just(Identity::Index)];
    (any::<u32>(), ".{0,20}", ".{0,20}", any::<u32>(), identity, vec(column, 0..6)).prop_map(
        |(id, schema, name, source_oid, identity, columns)| TableSchema {
            id: SchemaId(id),
            table: TableName::new(schema, name),
            source_oid,
            identity,
            columns,
        },
    )
}

pub fn batch() -> impl Strategy<Value = TransactionBatch> {
    vec((transaction(), vec(change(), 0..4)), 0..4).prop_map(|transactions| {
        let mut out = BytesMut::new();
        for (header, changes) in &transactions {
            write_transaction(header, changes.len() as u64, &stream(changes), &mut out);
        }
        TransactionBatch { bytes: out.freeze() }
    })
}

fn part() -> impl Strategy<Value = Part> {
    (transaction(), any::<u32>(), any::<bool>(), any::<u64>(), any::<u64>(), bytes(300)).prop_map(
        |(header, index, last, change_count, total_bytes, bytes)| Part { header, index, last, change_count, total_bytes, bytes },
    )
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        (".{0,20}", ".{0,20}").prop_map(|(holder, version)| Body::Fence(Fence {
            epoch: Epoch(0),
            nonce: Nonce(0),
            holder,
            version
        })),
        (".{0,20}", history()).prop_map(|(source, history)| Body::Genesis(Genesis { source, history })),
        position().prop_map(|position| Body::SlotStart(SlotStart { position })),
        history().prop_map(Body::History),
        schema().prop_map(Body::Schema),
        batch().prop_map(Body::Transactions),
        part().prop_map(Body::Part),
        (position(), any::<i64>(), any::<bool>()).prop_map(|(position, source_time_us, heartbeat)| Body::Progress(Progress {
            position,
            source_time_us,
            heartbeat
        })),
        (any::<u64>(), ".{0,20}", bytes(300)).prop_map(|(lsn, prefix, content)| Body::Message(Message {
            lsn: Lsn(lsn),
            prefix,
            content
        })),
    ]
}

/// A record whose header and body fit.
pub fn record() -> impl Strategy<Value = Record> {
    (any::<[u64; 6]>(), 1..u64::MAX, any::<i64>(), body()).prop_map(|(numbers, number, written_at_us, body)| {
        let mut header = RecordHeader {
            kind: body.kind(),
            stream: StreamId(numbers[0]),
            number: RecordNumber(number),
            epoch: Epoch(numbers[1]),
            nonce: Nonce(numbers[2]),
            base: RecordNumber(1 + numbers[3] % number),
            bytes_before: numbers[4],
            changes_before: numbers[5],
            written_at_us,
        };
        let mut body = body;
        if let Body::Fence(fence) = &mut body {
            (header.number, header.base) = (RecordNumber(0), RecordNumber(0));
            (fence.epoch, fence.nonce) = (header.epoch, header.nonce);
        }
        Record { header, body }
    })
}
