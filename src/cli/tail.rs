//! `millstream log tail`: the log as a person or a script reads it, one JSON object a line.
//!
//! It registers nowhere: it holds the queue for nobody, and what it has not read may be trimmed underneath it. A log that begins behind the place asked
//! for is no loss, and is not called one.
//! Changes of a large transaction are held back, on disk past some megabytes, until its last part has come: a fence may void
//! them until then.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tempfile::SpooledTempFile;

use super::Exit;
use super::output::{complain, print};
use super::tail_filter::{Filter, KeyTest};
use super::tail_start::{From, begin};
use crate::config::{Config, ConfigFile, QueueKind, access};
use crate::daemon::open_queue;
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::event::{
    Body, Change, ChangeReader, Lsn, Part, Position, QueueOffset, RecordHeader, SchemaId, TableSchema, Transaction,
    TransactionHeader, Xid,
};
use crate::halt::HaltCode;
use crate::preflight::tables::TablePatterns;
use crate::publish::{Envelope, Event, Origin};
use crate::queue::Queue;
use crate::queue::log::{Entry, LogRecord};

/// For `--help`.
pub const EXAMPLE: &str = "\
Examples:
  millstream log tail shop
  millstream log tail shop --from beginning --no-follow --table 'public.orders' --key id=42
  millstream log tail shop --from 2026-11-01T12:00:00Z --limit 100 | jq -c '[.op, .after]'";

const READ_BYTES: usize = 4 << 20;
const READ_WAIT: Duration = Duration::from_secs(1);
/// Text of a transaction held in memory before it is printed.
const HELD_BYTES: usize = 8 << 20;

/// Arguments of `millstream log tail`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The source whose log is read.
    source: String,
    /// Where to begin: `now`, `beginning`, a position (`16/B374D848`: what committed after it) or a time (RFC 3339: what committed at it or later).
    #[arg(long, value_name = "PLACE", default_value = "now", value_parser = From::parse)]
    from: From,
    /// Only these tables (`public.orders`, `public.*`, `!public.scratch_*`); may be given several times, the last that matches decides.
    #[arg(long, value_name = "PATTERN")]
    table: Vec<String>,
    /// Only rows with this key: `42`, or `COLUMN=VALUE`, several for a key of several columns.
    #[arg(long, value_name = "[COLUMN=]VALUE", value_parser = KeyTest::parse)]
    key: Vec<KeyTest>,
    /// Ends at the log's present end instead of waiting for more.
    #[arg(long, overrides_with = "follow")]
    no_follow: bool,
    /// Waits for more (the default).
    #[arg(long, overrides_with = "no_follow")]
    follow: bool,
    /// Ends after so many objects.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

pub(super) async fn run(config: Config, arguments: Arguments) -> Result<Exit> {
    let source = config.sources.get(&arguments.source).ok_or_else(|| {
        let known = config.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        Error::new(ErrorKind::Config, format!("the configuration has no source '{}'; it has {known}", arguments.source))
    })?;
    let patterns = if arguments.table.is_empty() { None } else { Some(TablePatterns::parse(&arguments.table)?) };
    let begun = async {
        let queue = open_queue(&config.queue)?;
        Ok((begin(&queue, &source.name, &arguments.from).await?, queue))
    };
    let (begun, queue) = begun.await.map_err(|error| as_another_user(&config.queue.kind, error))?;
    let mut tail = Tail {
        name: source.name.clone(),
        database: source.connect.database.clone(),
        from: arguments.from,
        first_offset: begun.first_offset,
        trimmed: begun.trimmed,
        filter: Filter { patterns, key: arguments.key },
        schemas: HashMap::new(),
        large: None,
        left: arguments.limit,
        begun: false,
    };
    let (mut reader, end) = (begun.reader, begun.end);
    loop {
        let entries = match reader.read(READ_BYTES, READ_WAIT).await {
            Err(error) if error.kind() == ErrorKind::Halt(HaltCode::QueueLost) && is_trimmed(&queue, &source.name).await => {
                return Ok(no_longer_there(&config.file, &source.name, "what was to be read next is not in the log any more"));
            }
            read => read?,
        };
        let idle = entries.is_empty();
        for entry in entries {
            let at = match &entry {
                Entry::Record(record) => Some(record.offset),
                Entry::PartsVoided => None,
            };
            if arguments.no_follow && at.is_some_and(|at| at >= end) {
                return Ok(Exit::Good);
            }
            match tail.take(entry)? {
                Step::More => {}
                Step::Enough => return Ok(Exit::Good),
                Step::Trimmed(begins, time_us) => {
                    let time =
                        jiff::Timestamp::from_microsecond(time_us).map(|time| format!(" of {time:.0}")).unwrap_or_default();
                    return Ok(no_longer_there(
                        &config.file,
                        &source.name,
                        &format!("the log begins at about {begins}{time} now"),
                    ));
                }
            }
            if arguments.no_follow && at.is_some_and(|at| at.next() >= end) {
                return Ok(Exit::Good);
            }
        }
        if arguments.no_follow && idle {
            return Ok(Exit::Good);
        }
    }
}

/// The queue's folder is its daemon's alone, and whoever may not read it is told as whom to come.
fn as_another_user(queue: &QueueKind, error: Error) -> Error {
    let QueueKind::Embedded { folder } = queue else { return error };
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if inner.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied) {
            return Error::new(ErrorKind::Config, access::refused(folder));
        }
        cause = inner.source();
    }
    error
}

/// What comes after an entry.
enum Step {
    /// The next one.
    More,
    /// Enough was printed.
    Enough,
    /// The log begins here, behind the place asked for: what lies between cannot be shown (I5).
    Trimmed(Position, i64),
}

impl Step {
    fn enough(enough: bool) -> Self {
        if enough { Self::Enough } else { Self::More }
    }
}

/// Trimming is what a log is kept small by: nothing is wrong with it.
fn no_longer_there(file: &ConfigFile, source: &str, what: &str) -> Exit {
    complain(&file.name_in_commands(&format!(
        "millstream: {what}: what came before was trimmed, as is done once every registered replica has applied it. To read from where it begins: \
         millstream log tail {source} --from beginning"
    )));
    Exit::Bad
}

/// The stream is there and does not begin with its first record: what is missing was trimmed.
async fn is_trimmed(queue: &Arc<dyn Queue>, stream: &str) -> bool {
    matches!(queue.bounds(stream).await, Ok(Some(bounds)) if bounds.start > QueueOffset(0))
}

struct Tail {
    name: String,
    database: String,
    from: From,
    /// Records before this one are only read for their schemas.
    first_offset: QueueOffset,
    /// The log no longer holds its beginning.
    trimmed: bool,
    filter: Filter,
    schemas: HashMap<SchemaId, Arc<TableSchema>>,
    large: Option<Large>,
    /// Objects that may still be printed.
    left: Option<u64>,
    /// A position or progress has been seen.
    begun: bool,
}

/// A transaction whose parts are coming in.
struct Large {
    changes: ChangeReader,
    order: u64,
    text: SpooledTempFile,
}

/// Objects of one transaction, written somewhere.
struct Printed {
    text: String,
    objects: u64,
}

impl Tail {
    fn take(&mut self, entry: Entry) -> Result<Step> {
        let LogRecord { offset, record, .. } = match entry {
            Entry::PartsVoided => {
                self.large = None;
                return Ok(Step::More);
            }
            Entry::Record(record) => record,
        };
        let header = record.header;
        let skip = offset < self.first_offset;
        let done = match record.body {
            Body::Schema(schema) => {
                self.schemas.insert(schema.id, Arc::new(schema));
                Ok(Step::More)
            }
            Body::Transactions(batch) if !skip => self.batch(&header, batch.iter()),
            Body::Part(part) if !skip => self.part(&header, part),
            Body::Progress(progress) if !skip => {
                Ok(self.trimmed_before(progress.position, progress.source_time_us).unwrap_or(Step::More))
            }
            Body::Message(message) if !skip && self.wants_message(message.lsn) => {
                let (xid, position) = (Xid(0), Position::Lsn(message.lsn));
                let transaction = TransactionHeader {
                    xid,
                    position,
                    commit_lsn: message.lsn,
                    commit_time_us: header.written_at_us,
                    origin: None,
                };
                let event = Event::Message { prefix: &message.prefix, content: &message.content };
                self.line(&header, &transaction, 1, event)
                    .and_then(|text| self.print(&Printed { text, objects: 1 }))
                    .map(Step::enough)
            }
            _ => Ok(Step::More),
        };
        done.at(|| format!("record {}", header.number))
    }

    fn batch(&mut self, header: &RecordHeader, transactions: impl Iterator<Item = Result<Transaction>>) -> Result<Step> {
        for transaction in transactions {
            let transaction = transaction?;
            if let Some(step) = self.trimmed_before(transaction.header.position, transaction.header.commit_time_us) {
                return Ok(step);
            }
            if !self.from.wants(&transaction.header) {
                continue;
            }
            let mut printed = Printed { text: String::new(), objects: 0 };
            for (change, order) in transaction.changes().zip(1..) {
                self.change(header, &transaction.header, order, &change?, &mut printed)?;
            }
            if self.print(&printed)? {
                return Ok(Step::Enough);
            }
        }
        Ok(Step::More)
    }

    fn part(&mut self, header: &RecordHeader, part: Part) -> Result<Step> {
        if part.index == 0 {
            if let Some(step) = self.trimmed_before(part.header.position, part.header.commit_time_us) {
                return Ok(step);
            }
            let text = SpooledTempFile::new(HELD_BYTES);
            self.large = Some(Large { changes: ChangeReader::default(), order: 0, text });
        }
        // Parts whose first one lies before the place to begin at belong to a transaction before it.
        let Some(mut large) = self.large.take() else { return Ok(Step::More) };
        if self.from.wants(&part.header) {
            large.changes.push(part.bytes);
            let mut printed = Printed { text: String::new(), objects: 0 };
            while let Some(change) = large.changes.next_change()? {
                large.order += 1;
                self.change(header, &part.header, large.order, &change, &mut printed)?;
                if printed.text.len() > 1 << 20 {
                    large.keep(&mut printed)?;
                }
            }
            large.keep(&mut printed)?;
        }
        if !part.last {
            self.large = Some(large);
            return Ok(Step::More);
        }
        large.changes.finish()?;
        self.print_large(large).map(Step::enough)
    }

    /// Writes one change's objects: none when it is filtered out, several for a TRUNCATE of several tables.
    fn change(
        &self,
        header: &RecordHeader,
        transaction: &TransactionHeader,
        order: u64,
        change: &Change,
        out: &mut Printed,
    ) -> Result<()> {
        let tables = match change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                std::slice::from_ref(table)
            }
            Change::Truncate { tables, .. } => tables,
            Change::Message { prefix, content } => {
                if self.filter.wants_messages() {
                    out.text.push_str(&self.line(header, transaction, order, Event::Message { prefix, content })?);
                    out.objects += 1;
                }
                return Ok(());
            }
            Change::Schema { content } => {
                if self.filter.wants_messages() {
                    out.text.push_str(&self.line(header, transaction, order, Event::SchemaChange { content })?);
                    out.objects += 1;
                }
                return Ok(());
            }
        };
        for table in tables {
            let schema = self.schemas.get(table).ok_or_else(|| {
                Error::halt(HaltCode::QueueGap, format!("a change names table version {}, which the log has not said", table.0))
            })?;
            if self.filter.wants(schema, change) {
                out.text.push_str(&self.line(header, transaction, order, Event::Row { schema, change })?);
                out.objects += 1;
            }
        }
        Ok(())
    }

    fn line(&self, header: &RecordHeader, transaction: &TransactionHeader, order: u64, event: Event<'_>) -> Result<String> {
        let written_ms = header.written_at_us.div_euclid(1000);
        let origin = Origin { name: &self.name, database: &self.database, transaction, order, written_ms };
        let mut text = serde_json::to_string(&Envelope { origin, event })
            .map_err(|error| Error::new(ErrorKind::Unexpected, "a change cannot be written as JSON").with_source(error))?;
        text.push('\n');
        Ok(text)
    }

    fn wants_message(&self, lsn: Lsn) -> bool {
        self.filter.wants_messages() && self.from.wants_position(Position::Lsn(lsn))
    }

    /// A log that was trimmed and now begins behind the place asked for cannot say what was between (I5). Asked of the first position alone.
    fn trimmed_before(&mut self, position: Position, time_us: i64) -> Option<Step> {
        let first = !std::mem::replace(&mut self.begun, true);
        let behind = match self.from {
            From::Position(from) => position > from,
            From::Time(from) => time_us > from,
            From::Now | From::Beginning => false,
        };
        (first && self.trimmed && behind).then_some(Step::Trimmed(position, time_us))
    }

    /// Prints up to the limit; true when that was reached.
    fn print(&mut self, printed: &Printed) -> Result<bool> {
        let Some(left) = &mut self.left else {
            print(&printed.text)?;
            return Ok(false);
        };
        let taken: String = printed.text.split_inclusive('\n').take(usize::try_from(*left).unwrap_or(usize::MAX)).collect();
        print(&taken)?;
        *left = left.saturating_sub(printed.objects);
        Ok(*left == 0)
    }

    fn print_large(&mut self, mut large: Large) -> Result<bool> {
        let failed = |error: std::io::Error| Error::from(error).context("a temporary file");
        large.text.rewind().map_err(failed)?;
        let mut lines = std::io::BufReader::new(large.text);
        let mut text = Vec::new();
        loop {
            text.clear();
            let taken = (&mut lines).take(1 << 20).read_to_end(&mut text).map_err(failed)?;
            if taken == 0 {
                return Ok(false);
            }
            std::io::BufRead::read_until(&mut lines, b'\n', &mut text).map_err(failed)?;
            let text = String::from_utf8_lossy(&text).into_owned();
            let objects = text.matches('\n').count() as u64;
            if self.print(&Printed { text, objects })? {
                return Ok(true);
            }
        }
    }
}

impl Large {
    fn keep(&mut self, printed: &mut Printed) -> Result<()> {
        self.text.write_all(printed.text.as_bytes()).map_err(|error| Error::from(error).context("a temporary file"))?;
        *printed = Printed { text: String::new(), objects: 0 };
        Ok(())
    }
}
