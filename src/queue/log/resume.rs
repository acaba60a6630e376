//! Going on behind a cursor, without I/O.

use super::{Cursor, Entry, FenceFilter};
use crate::error::{Error, Result};
use crate::event::{Body, QueueOffset};
use crate::halt::HaltCode;
use crate::queue::StoredRecord;

/// A filter that hands on what lies behind a cursor.
#[derive(Debug)]
pub(super) struct Resume {
    filter: FenceFilter,
    /// The cursor, until its record was found.
    after: Option<Cursor>,
    judged: Vec<Entry>,
}

impl Resume {
    pub(super) fn new(after: Option<Cursor>) -> Self {
        Self { filter: FenceFilter::new(), after, judged: Vec::new() }
    }

    /// Takes the next stored record. Between base and cursor only schemas are handed on; then the cursor's own record, unless it is
    /// a part; then everything.
    pub(super) fn take(&mut self, stored: StoredRecord, out: &mut Vec<Entry>) -> Result<()> {
        let Some(cursor) = &self.after else { return self.filter.judge(stored, out) };
        let offset = stored.offset;
        self.judged.clear();
        self.filter.judge(stored, &mut self.judged)?;
        let valid = self.judged.drain(..).find_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            Entry::PartsVoided => None,
        });
        if valid.as_ref().is_some_and(|r| r.record.header.stream != cursor.stream) {
            return Err(mismatch(cursor, "another stream is there"));
        }
        match (valid, offset) {
            (Some(record), at) if at < cursor.offset => {
                if matches!(record.record.body, Body::Schema(_)) {
                    out.push(Entry::Record(record));
                }
            }
            (None, at) if at < cursor.offset => {}
            (Some(record), at) if at == cursor.offset => {
                let header = &record.record.header;
                if (header.number, header.epoch, header.nonce) != (cursor.number, cursor.epoch, cursor.nonce) {
                    return Err(mismatch(cursor, &format!("record {} of epoch {} is there", header.number, header.epoch)));
                }
                self.after = None;
                if !matches!(record.record.body, Body::Part(_)) {
                    out.push(Entry::Record(record));
                }
            }
            (_, at) if at > cursor.offset => return Err(mismatch(cursor, "it is not there")),
            _ => return Err(mismatch(cursor, "what is there is void")),
        }
        Ok(())
    }
}

pub(super) fn mismatch(cursor: &Cursor, what: &str) -> Error {
    let Cursor { number, offset: QueueOffset(offset), .. } = cursor;
    Error::halt(HaltCode::QueueLost, format!("the queue does not hold record {number} at offset {offset}: {what}"))
}
