//! The payloads of records.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::change::{Transaction, TransactionHeader};
use super::position::{Epoch, Lsn, Nonce, Position};
use super::record::RecordKind;
use super::schema::TableSchema;
use super::wire::{self, Input};
use crate::error::{Error, ErrorKind, Result};

/// A record's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A writer took over.
    Fence(Fence),
    /// The stream's first record.
    Genesis(Genesis),
    /// The stream's second record.
    SlotStart(SlotStart),
    /// The source's history went on (a promotion that lost nothing).
    History(History),
    /// A table's version, before its first use or repeated for readers that begin here.
    Schema(TableSchema),
    /// Whole transactions.
    Transactions(TransactionBatch),
    /// A piece of a large transaction.
    Part(Part),
    /// The source stood here and had nothing to say.
    Progress(Progress),
    /// A non-transactional logical message.
    Message(Message),
}

/// A writer's claim. Payload: JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The epoch claimed.
    pub epoch: Epoch,
    /// The claimant.
    #[serde(with = "super::text::number")]
    pub nonce: Nonce,
    /// Host and process, for people.
    pub holder: String,
    /// The claimant's Millstream version.
    pub version: String,
}

/// The identity of a source. Payload: JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// PostgreSQL's system identifier, from `IDENTIFY_SYSTEM`.
    #[serde(with = "super::text::number")]
    pub system_identifier: u64,
    /// The timeline in force.
    pub timeline: u32,
    /// Earlier timelines: number and the LSN at which the next one left it, oldest first.
    #[serde(with = "super::text::lineage")]
    pub lineage: Vec<(u32, u64)>,
    /// Database that the slot decodes.
    pub database: String,
    /// Slot name, with the incarnation's nonce in it.
    pub slot: String,
}

/// First record of a stream, written before the slot is made (I1). Payload: JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The source's configured name.
    pub source: String,
    /// The source's identity, with the slot that is about to be made.
    pub history: History,
}

/// Second record of a stream: the slot stands. Payload: JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStart {
    /// The slot's consistent point: everything that commits after it is in the log.
    pub position: Position,
}

/// Whole transactions, in commit order. Payload: transactions back to back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionBatch {
    /// The encoded transactions.
    pub bytes: Bytes,
}

impl TransactionBatch {
    /// The transactions, decoded one by one.
    pub fn iter(&self) -> impl Iterator<Item = Result<Transaction>> + use<> {
        let mut input = Input::new(self.bytes.clone());
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed || input.is_empty() {
                return None;
            }
            let item = Transaction::decode(&mut input);
            failed = item.is_err();
            Some(item)
        })
    }
}

/// A piece of one large transaction's change stream. Its parts stand side by side in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The transaction; the same in every part, so that each can be judged alone.
    pub header: TransactionHeader,
    /// 0 for the first.
    pub index: u32,
    /// True for the last: the transaction is complete.
    pub last: bool,
    /// Changes in the whole transaction.
    pub change_count: u64,
    /// Bytes of the whole change stream.
    pub total_bytes: u64,
    /// This piece of it, cut at any byte.
    pub bytes: Bytes,
}

/// The source stood at a position with nothing to capture before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where.
    pub position: Position,
    /// The source's clock there, microseconds since 1970-01-01 UTC.
    pub source_time_us: i64,
    /// True when a heartbeat travelled through the source's own log to here; false for a mere keepalive.
    pub heartbeat: bool,
}

/// A non-transactional logical message of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it stood in the source's log.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: String,
    /// What it says.
    pub content: Bytes,
}

impl Body {
    /// How many changes are complete with it: those of a large transaction are with its last part.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Malformed`].
    pub fn changes(&self) -> Result<u64> {
        match self {
            Self::Transactions(batch) => batch.iter().map(|transaction| Ok(transaction?.change_count)).sum(),
            Self::Part(part) if part.last => Ok(part.change_count),
            _ => Ok(0),
        }
    }

    /// The kind that goes into the header.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match self {
            Self::Fence(_) => RecordKind::Fence,
            Self::Genesis(_) => RecordKind::Genesis,
            Self::SlotStart(_) => RecordKind::SlotStart,
            Self::History(_) => RecordKind::History,
            Self::Schema(_) => RecordKind::Schema,
            Self::Transactions(_) => RecordKind::Transactions,
            Self::Part(_) => RecordKind::Part,
            Self::Progress(_) => RecordKind::Progress,
            Self::Message(_) => RecordKind::Message,
        }
    }

    /// Writes the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Fence(body) => put_json(out, body),
            Self::Genesis(body) => put_json(out, body),
            Self::SlotStart(body) => put_json(out, body),
            Self::History(body) => put_json(out, body),
            Self::Schema(body) => put_json(out, body),
            Self::Transactions(body) => out.put_slice(&body.bytes),
            Self::Part(body) => {
                body.header.encode(out);
                wire::put_varint(out, u64::from(body.index));
                out.put_u8(u8::from(body.last));
                wire::put_varint(out, body.change_count);
                wire::put_varint(out, body.total_bytes);
                out.put_slice(&body.bytes);
            }
            Self::Progress(body) => {
                wire::put_position(out, body.position);
                out.put_i64_le(body.source_time_us);
                out.put_u8(u8::from(body.heartbeat));
            }
            Self::Message(body) => {
                out.put_u64_le(body.lsn.0);
                wire::put_text(out, &body.prefix);
                out.put_slice(&body.content);
            }
        }
    }

    /// Reads a payload of a kind.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`]; [`ErrorKind::TooNew`] for a kind inside that a later version brought. Transactions and changes inside are checked when they are read.
    pub fn decode(kind: RecordKind, payload: Bytes) -> Result<Self> {
        let mut input = Input::new(payload.clone());
        let body = match kind {
            RecordKind::Fence => return json(&payload).map(Self::Fence),
            RecordKind::Genesis => return json(&payload).map(Self::Genesis),
            RecordKind::SlotStart => return json(&payload).map(Self::SlotStart),
            RecordKind::History => return json(&payload).map(Self::History),
            RecordKind::Schema => return json(&payload).map(Self::Schema),
            RecordKind::Transactions => return Ok(Self::Transactions(TransactionBatch { bytes: payload })),
            RecordKind::Part => Self::Part(Part {
                header: TransactionHeader::decode(&mut input)?,
                index: u32::try_from(input.varint()?).map_err(|_| input.malformed("a part's index beyond 32 bits"))?,
                last: flag(&mut input)?,
                change_count: input.varint()?,
                total_bytes: input.varint()?,
                bytes: input.rest(),
            }),
            RecordKind::Progress => Self::Progress(Progress {
                position: input.position_value()?,
                source_time_us: input.i64()?,
                heartbeat: flag(&mut input)?,
            }),
            RecordKind::Message => {
                Self::Message(Message { lsn: Lsn(input.u64()?), prefix: input.text()?, content: input.rest() })
            }
        };
        if input.is_empty() { Ok(body) } else { Err(input.malformed("bytes behind the end of a payload")) }
    }
}

fn flag(input: &mut Input) -> Result<bool> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(input.malformed(&format!("a flag of {other}"))),
    }
}

fn put_json<T: Serialize>(out: &mut BytesMut, body: &T) {
    // These structs hold only strings, numbers and lists of them; serde_json cannot fail on those.
    out.put_slice(&serde_json::to_vec(body).unwrap_or_default());
}

fn json<T: for<'de> Deserialize<'de>>(payload: &Bytes) -> Result<T> {
    serde_json::from_slice(payload)
        .map_err(|e| Error::new(ErrorKind::Malformed, "a payload that is not the JSON it should be").with_source(e))
}
