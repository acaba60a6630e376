//! What a record says, as JSON for people and other languages. 64-bit numbers are text; bytes are text where they are UTF-8, otherwise hex.

use millstream::event::{Body, Cell, Change, OldImage, Part, Record, Row, Transaction, TransactionHeader};
use millstream::{Error, ErrorKind};
use serde_json::{Value, json};

/// A record, or how it is refused.
pub fn outcome(decoded: Result<Record, Error>) -> Value {
    match decoded.and_then(|record| try_record(&record)) {
        Ok(value) => value,
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &Error) -> Value {
    let kind = match error.kind() {
        ErrorKind::TooNew => "too_new",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Malformed => "malformed",
        other => panic!("{other:?}"),
    };
    json!({ "error": kind })
}

fn try_record(record: &Record) -> Result<Value, Error> {
    let header = &record.header;
    Ok(json!({
        "kind": format!("{:?}", header.kind),
        "stream": header.stream.to_string(),
        "number": header.number.to_string(),
        "epoch": header.epoch.to_string(),
        "nonce": header.nonce.to_string(),
        "base": header.base.to_string(),
        "bytes_before": header.bytes_before.to_string(),
        "changes_before": header.changes_before.to_string(),
        "written_at_us": header.written_at_us.to_string(),
        "payload": payload(&record.body)?,
    }))
}

fn payload(body: &Body) -> Result<Value, Error> {
    Ok(match body {
        Body::Fence(body) => serde_json::to_value(body).unwrap(),
        Body::Genesis(body) => serde_json::to_value(body).unwrap(),
        Body::SlotStart(body) => serde_json::to_value(body).unwrap(),
        Body::History(body) => serde_json::to_value(body).unwrap(),
        Body::Schema(body) => serde_json::to_value(body).unwrap(),
        Body::Transactions(batch) => {
            let transactions: Result<Vec<Value>, Error> = batch.iter().map(|t| transaction(&t?)).collect();
            Value::Array(transactions?)
        }
        Body::Part(part) => described_part(part),
        Body::Progress(body) => json!({
            "position": body.position.to_string(),
            "source_time_us": body.source_time_us.to_string(),
            "heartbeat": body.heartbeat,
        }),
        Body::Message(body) => json!({"lsn": body.lsn.to_string(), "prefix": body.prefix, "content": bytes(&body.content)}),
    })
}

fn header(header: &TransactionHeader) -> Value {
    json!({
        "xid": header.xid.to_string(),
        "position": header.position.to_string(),
        "commit_lsn": header.commit_lsn.to_string(),
        "commit_time_us": header.commit_time_us.to_string(),
        "origin": header.origin,
    })
}

fn transaction(transaction: &Transaction) -> Result<Value, Error> {
    let changes: Result<Vec<Value>, Error> = transaction.changes().map(|c| c.map(|c| change(&c))).collect();
    Ok(json!({"header": header(&transaction.header), "change_count": transaction.change_count, "changes": changes?}))
}

fn described_part(part: &Part) -> Value {
    json!({
        "header": header(&part.header),
        "index": part.index,
        "last": part.last,
        "change_count": part.change_count,
        "total_bytes": part.total_bytes,
        "bytes": hex(&part.bytes),
    })
}

fn change(change: &Change) -> Value {
    match change {
        Change::Insert { table, new } => json!({"insert": {"table": table.0, "new": row(new)}}),
        Change::Update { table, old, new } => {
            json!({"update": {"table": table.0, "old": old.as_ref().map(old_image), "new": row(new)}})
        }
        Change::Delete { table, old } => json!({"delete": {"table": table.0, "old": old_image(old)}}),
        Change::Truncate { tables, cascade, restart_identity } => {
            let tables: Vec<u32> = tables.iter().map(|t| t.0).collect();
            json!({"truncate": {"tables": tables, "cascade": cascade, "restart_identity": restart_identity}})
        }
        Change::Schema { content } => json!({"schema": bytes(content)}),
        Change::Message { prefix, content } => json!({"message": {"prefix": prefix, "content": bytes(content)}}),
    }
}

fn old_image(old: &OldImage) -> Value {
    match old {
        OldImage::Key(key) => json!({"key": row(key)}),
        OldImage::Full(full) => json!({"full": row(full)}),
    }
}

fn row(row: &Row) -> Value {
    row.iter()
        .map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => json!({"unchanged": true}),
            Cell::Value(value) => bytes(value),
        })
        .collect()
}

fn bytes(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| json!({"hex": hex(bytes)}), |text| json!(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
