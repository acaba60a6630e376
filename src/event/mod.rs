//! The event model: what happened at a source, whatever its engine, and how the log writes it down.
//!
//! A stream is a sequence of [`Record`]s ([`record`] has the frame, [`body`] the payloads, `docs/record-format.md` the
//! format for other languages). Transactions are whole and in commit order; a change names its table by
//! [`SchemaId`], whose [`TableSchema`] came earlier in the stream.

pub mod body;
mod change;
mod encode;
mod position;
pub mod record;
mod schema;
#[cfg(test)]
mod tests;
mod text;
mod value;
pub(crate) mod wire;

pub use body::{Body, Fence, Genesis, History, Message, Part, Progress, SlotStart, TransactionBatch};
pub use change::{Change, ChangeReader, OldImage, Transaction, TransactionHeader, write_change, write_transaction};
pub use encode::{ChangeEncoder, OldCells};
pub use position::{ApplyEpoch, Epoch, Lsn, Nonce, Position, QueueOffset, RecordNumber, StreamId, Xid};
pub use record::{FORMAT_VERSION, Record, RecordHeader, RecordKind};
pub use schema::{Column, Identity, SchemaId, TableName, TableSchema};
pub use value::{Cell, Cells, Row, RowBuilder, put_cell};
