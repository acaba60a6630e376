//! From decoded messages to encoded changes, and streamed transactions into the log.
//!
//! A streamed transaction is read twice when it is large: first to resolve its tables and to count (every part says how much the
//! whole is, and schemas stand before the first part), then to encode it part by part. What was resolved is repeated the second time, so that both
//! passes give the same bytes.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::append::LogWriter;
use super::assemble::Streamed;
use super::heartbeat;
use super::postgres::catalog::Catalog;
use super::postgres::decode::{OldTuple, PgOutput, ShortXid, TupleData, decode};
use super::postgres::relations::{Relations, Target};
use super::postgres::schema_change;
use super::spill::{HeldBytes, HeldReader};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{ChangeEncoder, OldCells, SchemaId, TransactionHeader};

/// Input that one step works off before the loop looks at everything else again.
const STEP_BYTES: usize = 1 << 20;

/// Tables that a change touches and that are not resolved yet.
#[must_use]
pub fn unresolved(message: &PgOutput<'_>, relations: &Relations) -> Option<u32> {
    match *message {
        PgOutput::Insert { relation, .. } | PgOutput::Update { relation, .. } | PgOutput::Delete { relation, .. } => {
            relations.target(relation).is_none().then_some(relation)
        }
        PgOutput::Truncate { relations: mut oids, .. } => oids.find(|oid| relations.target(*oid).is_none()),
        _ => None,
    }
}

/// Encodes a change whose tables are resolved. `None` when it is ours, or no change.
///
/// # Errors
/// [`ErrorKind::Malformed`] for a row that does not fit its table.
pub fn encode<'e>(message: &PgOutput<'_>, relations: &Relations, encoder: &'e mut ChangeEncoder) -> Result<Option<&'e [u8]>> {
    match *message {
        PgOutput::Insert { relation, new, .. } => {
            if let Some(Target::SchemaChange(columns)) = relations.target(relation) {
                return schema_change::content(columns, new).map(|content| Some(encoder.schema(&content)));
            }
            let Some(table) = table(relations, relation, new)? else { return Ok(None) };
            Ok(Some(encoder.insert(table, new.cells())))
        }
        PgOutput::Update { relation, old, new, .. } => {
            let Some(table) = table(relations, relation, new)? else { return Ok(None) };
            let old = match old {
                None => OldCells::None,
                Some(old) => {
                    self::table(relations, relation, old.tuple())?;
                    old_cells(old)
                }
            };
            Ok(Some(encoder.update(table, old, new.cells())))
        }
        PgOutput::Delete { relation, old, .. } => {
            let Some(table) = table(relations, relation, old.tuple())? else { return Ok(None) };
            Ok(Some(encoder.delete(table, old_cells(old))))
        }
        PgOutput::Truncate { relations: oids, cascade, restart_identity, .. } => {
            let mut tables = Vec::with_capacity(oids.len());
            for oid in oids {
                if let Target::Table(id, _) = relations.target(oid).ok_or_else(|| undescribed(oid))? {
                    tables.push(id);
                }
            }
            Ok((!tables.is_empty()).then(|| encoder.truncate(&tables, cascade, restart_identity)))
        }
        PgOutput::Message { prefix, content, .. } if prefix != heartbeat::PREFIX => Ok(Some(encoder.message(prefix, content))),
        _ => Ok(None),
    }
}

fn old_cells(old: OldTuple<'_>) -> OldCells<super::postgres::decode::TupleCells<'_>> {
    match old {
        OldTuple::Key(tuple) => OldCells::Key(tuple.cells()),
        OldTuple::Full(tuple) => OldCells::Full(tuple.cells()),
    }
}

fn table(relations: &Relations, oid: u32, tuple: TupleData<'_>) -> Result<Option<SchemaId>> {
    match relations.target(oid).ok_or_else(|| undescribed(oid))? {
        Target::Ours | Target::SchemaChange(_) => Ok(None),
        Target::Table(id, columns) if columns == tuple.len() => Ok(Some(id)),
        Target::Table(_, columns) => {
            let message = format!("pgoutput: a row of {} cells for table {oid}, which has {columns} columns", tuple.len());
            Err(Error::new(ErrorKind::Malformed, message))
        }
    }
}

fn undescribed(oid: u32) -> Error {
    Error::new(ErrorKind::Malformed, format!("pgoutput: a change of table {oid}, which no Relation message described"))
}

/// What resolving a table takes.
pub struct Tools<'t> {
    /// The tables known.
    pub relations: &'t mut Relations,
    /// The source's catalog.
    pub catalog: &'t mut Catalog,
    /// The log.
    pub log: &'t mut LogWriter,
    /// The encoder.
    pub encoder: &'t mut ChangeEncoder,
}

/// Reads framed messages back.
struct Frames {
    reader: HeldReader,
    buffer: BytesMut,
}

impl Frames {
    fn new(held: &mut HeldBytes) -> Self {
        Self { reader: held.reader(), buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = u32::from_le_bytes(*length) as usize;
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            match self.reader.next().await? {
                Some(chunk) if self.buffer.is_empty() => self.buffer = BytesMut::from(chunk),
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Error::new(ErrorKind::Unexpected, "held messages end inside one")),
            }
        }
    }
}

/// A transaction that is too large, or not yet encoded, on its way into the log step by step.
pub struct Emission {
    header: TransactionHeader,
    stage: Stage,
    change_count: u64,
    held: HeldBytes,
}

enum Stage {
    /// First pass over a streamed transaction.
    Survey { frames: Frames, streamed: Box<Survey> },
    /// Everything is known but whether there is room.
    Ready { survey: Option<Box<Survey>>, change_count: u64, total_bytes: u64 },
    /// An encoded change stream is being cut.
    Cut { reader: HeldReader, piece: BytesMut },
    /// Second pass.
    Encode { frames: Frames, survey: Box<Survey>, piece: BytesMut },
    /// Everything was given.
    Done,
}

struct Survey {
    undone: std::collections::HashSet<u32>,
    before: Relations,
    resolved: VecDeque<(u32, Target)>,
    /// The change stream, while it is small.
    small: Option<BytesMut>,
    change_count: u64,
    total_bytes: u64,
    heartbeat: bool,
    /// In the log already: only what its messages say of tables counts.
    known: bool,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    More,
    /// A large transaction of so many bytes wants to begin: [`Emission::begin`].
    WantsRoom(u64),
    /// The transaction is in the log's hands.
    Done,
    /// Nothing of it was for the log; true when it was our heartbeat.
    Empty(bool),
}

impl Emission {
    /// Of a change stream that is encoded already.
    #[must_use]
    pub fn whole(header: TransactionHeader, change_count: u64, held: HeldBytes) -> Self {
        let total_bytes = held.len();
        Self { header, stage: Stage::Ready { survey: None, change_count, total_bytes }, change_count, held }
    }

    /// Of a streamed transaction; `known` when it is in the log already and only what it says of tables counts.
    #[must_use]
    pub fn streamed(header: TransactionHeader, known: bool, mut streamed: Streamed, relations: &Relations) -> Self {
        let survey = Survey {
            undone: streamed.undone,
            before: relations.clone(),
            resolved: VecDeque::new(),
            small: Some(BytesMut::new()),
            change_count: 0,
            total_bytes: 0,
            heartbeat: false,
            known,
        };
        let frames = Frames::new(&mut streamed.held);
        Self { header, stage: Stage::Survey { frames, streamed: Box::new(survey) }, change_count: 0, held: streamed.held }
    }

    /// The transaction.
    #[must_use]
    pub fn header(&self) -> &TransactionHeader {
        &self.header
    }

    /// Changes counted so far; of a whole one, all.
    #[must_use]
    pub fn change_count(&self) -> u64 {
        self.change_count
    }

    /// The bytes it held, to be released.
    #[must_use]
    pub fn into_held(self) -> HeldBytes {
        self.held
    }

    /// Begins the parts. There is room for them.
    pub fn begin(&mut self, tools: &mut Tools<'_>) {
        if let Stage::Ready { survey, change_count, total_bytes } = std::mem::replace(&mut self.stage, Stage::Done) {
            tools.log.begin_parts(self.header.clone(), change_count, total_bytes);
            let piece = BytesMut::with_capacity(tools.log.part_bytes());
            self.stage = match survey {
                None => Stage::Cut { reader: self.held.reader(), piece },
                Some(survey) => {
                    *tools.relations = survey.before.clone();
                    Stage::Encode { frames: Frames::new(&mut self.held), survey, piece }
                }
            };
        }
    }

    /// Works off about a megabyte.
    ///
    /// # Errors
    /// Those of reading back, of resolving, and [`ErrorKind::Malformed`].
    pub async fn step(&mut self, tools: &mut Tools<'_>) -> Result<Step> {
        match &mut self.stage {
            Stage::Survey { frames, streamed } => {
                if survey_step(frames, streamed, tools).await? {
                    return Ok(Step::More);
                }
                Ok(self.surveyed(tools))
            }
            Stage::Ready { total_bytes, .. } => Ok(Step::WantsRoom(*total_bytes)),
            Stage::Cut { reader, piece } => match reader.next().await? {
                Some(chunk) => give(tools.log, piece, &chunk),
                None => finish(tools.log, piece),
            },
            Stage::Encode { frames, survey, piece } => encode_step(frames, survey, piece, tools).await,
            Stage::Done => Ok(Step::Done),
        }
    }

    fn surveyed(&mut self, tools: &mut Tools<'_>) -> Step {
        let Stage::Survey { streamed: mut survey, .. } = std::mem::replace(&mut self.stage, Stage::Done) else {
            return Step::Done;
        };
        self.change_count = survey.change_count;
        if survey.change_count == 0 {
            return Step::Empty(survey.heartbeat);
        }
        if let Some(changes) = survey.small.take() {
            tools.log.give_transaction(&self.header, survey.change_count, &changes);
            return Step::Done;
        }
        let (change_count, total_bytes) = (survey.change_count, survey.total_bytes);
        self.stage = Stage::Ready { survey: Some(survey), change_count, total_bytes };
        Step::WantsRoom(total_bytes)
    }
}

fn is_undone(message: &PgOutput<'_>, undone: &std::collections::HashSet<u32>) -> bool {
    let xid = match *message {
        PgOutput::Insert { xid, .. }
        | PgOutput::Update { xid, .. }
        | PgOutput::Delete { xid, .. }
        | PgOutput::Truncate { xid, .. }
        | PgOutput::Type { xid, .. }
        | PgOutput::Message { xid, .. } => xid,
        PgOutput::Relation(relation) => relation.xid,
        _ => None,
    };
    !undone.is_empty() && xid.is_some_and(|ShortXid(xid)| undone.contains(&xid))
}

/// True while there is more.
async fn survey_step(frames: &mut Frames, survey: &mut Survey, tools: &mut Tools<'_>) -> Result<bool> {
    let mut worked = 0;
    while worked < STEP_BYTES {
        let Some(frame) = frames.next().await? else { return Ok(false) };
        worked += frame.len();
        let message = decode(&frame, true)?;
        if is_undone(&message, &survey.undone) {
            continue;
        }
        match message {
            PgOutput::Relation(relation) => tools.relations.note_relation(relation.oid, &frame, true),
            PgOutput::Type { oid, namespace, name, .. } => tools.relations.note_type(oid, namespace, name),
            PgOutput::Message { prefix, .. } if prefix == heartbeat::PREFIX => survey.heartbeat = true,
            _ if survey.known => {}
            message => {
                while let Some(oid) = unresolved(&message, tools.relations) {
                    let target = tools.relations.resolve(oid, tools.catalog, tools.log).await?;
                    survey.resolved.push_back((oid, target));
                }
                if let Some(change) = encode(&message, tools.relations, tools.encoder)? {
                    survey.count(change, tools.log.whole_bytes());
                }
            }
        }
    }
    Ok(true)
}

impl Survey {
    fn count(&mut self, change: &[u8], whole_bytes: usize) {
        self.change_count += 1;
        self.total_bytes += change.len() as u64;
        if let Some(small) = &mut self.small {
            if small.len() + change.len() > whole_bytes {
                self.small = None;
            } else {
                small.extend_from_slice(change);
            }
        }
    }
}

async fn encode_step(frames: &mut Frames, survey: &mut Survey, piece: &mut BytesMut, tools: &mut Tools<'_>) -> Result<Step> {
    let mut worked = 0;
    while worked < STEP_BYTES {
        let Some(frame) = frames.next().await? else { return finish(tools.log, piece) };
        worked += frame.len();
        let message = decode(&frame, true)?;
        if is_undone(&message, &survey.undone) {
            continue;
        }
        match message {
            PgOutput::Relation(relation) => tools.relations.note_relation(relation.oid, &frame, true),
            PgOutput::Type { oid, namespace, name, .. } => tools.relations.note_type(oid, namespace, name),
            message => {
                while let Some(oid) = unresolved(&message, tools.relations) {
                    match survey.resolved.pop_front() {
                        Some((again, target)) if again == oid => tools.relations.repeat(oid, target),
                        _ => return Err(Error::new(ErrorKind::Unexpected, "two passes over one transaction differ")),
                    }
                }
                if let Some(change) = encode(&message, tools.relations, tools.encoder)? {
                    give(tools.log, piece, change)?;
                }
            }
        }
    }
    Ok(Step::More)
}

/// Adds bytes to the piece in hand and gives every piece that is full. A full one is held until more comes: the last part
/// completes the stream.
fn give(log: &mut LogWriter, piece: &mut BytesMut, mut bytes: &[u8]) -> Result<Step> {
    let size = log.part_bytes();
    while !bytes.is_empty() {
        if piece.len() == size {
            log.give_part(piece.split().freeze())?;
            piece.reserve(size);
        }
        let (now, later) = bytes.split_at(bytes.len().min(size - piece.len()));
        piece.extend_from_slice(now);
        bytes = later;
    }
    Ok(Step::More)
}

fn finish(log: &mut LogWriter, piece: &mut BytesMut) -> Result<Step> {
    if log.give_part(piece.split().freeze())? {
        return Ok(Step::Done);
    }
    Err(Error::new(ErrorKind::Unexpected, "a large transaction's parts are fewer bytes than it was counted to have"))
}
