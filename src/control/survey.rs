//! What no stage publishes and is looked up now and then: consumers and size of a stream, tables that nobody captures, sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::model::Sequence;
use crate::apply::sequences;
use crate::capture::publication_name;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Body, QueueOffset, Record, RecordNumber};
use crate::postgres::sql::{Side, connect};
use crate::preflight::init::resolve;
use crate::preflight::tables::TablePatterns;
use crate::queue::{CONSUMER_PREFIX, ConsumerProgress, Queue};

/// Pause between two looks at the queue.
const QUEUE_EVERY: Duration = Duration::from_secs(5);
/// Looks at the queue for each look at the source's catalog: what `init` has taken in, or a table that is new, is seen within ten seconds.
const CATALOG_EACH: u32 = 2;
/// The last record is there; a queue that does not hand it out in this time is asked again later.
const LAST_WAIT: Duration = Duration::from_secs(3);
/// A look that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(10);

/// The last look at a source and its stream.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The stream's registry.
    pub consumers: BTreeMap<String, ConsumerProgress>,
    /// Bytes on disk.
    pub stored_bytes: Option<u64>,
    /// The stream's end, where no capture of this process knows it.
    pub end: Option<End>,
    /// Tables that match the patterns and are not in the publication.
    pub not_captured: Vec<String>,
    /// Of those, what each needs first.
    pub to_mend: BTreeMap<String, String>,
    /// Sequences of captured tables.
    pub sequences: Vec<Sequence>,
}

/// The stream's end, from its last record. That one may be void: good enough to show, not to decide.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its number.
    pub number: RecordNumber,
    /// Bytes of all records.
    pub bytes_total: u64,
    /// Changes of all records before the last one.
    pub changes_total: u64,
}

/// Looks until cancelled. A look that fails keeps what was seen before: the stages say louder what is wrong.
///
/// # Errors
/// None; the type is that of a task.
pub async fn run(
    config: SourceConfig,
    queue: Arc<dyn Queue>,
    captured_here: bool,
    out: watch::Sender<Survey>,
    cancel: CancellationToken,
) -> Result<()> {
    let mut round = 0_u32;
    loop {
        let look = async {
            look(&config, &queue, &out, round.is_multiple_of(CATALOG_EACH)).await;
            if !captured_here {
                match deadline(look_at_end(&config.name, &queue)).await {
                    Ok(end) => out.send_modify(|survey| survey.end = end),
                    Err(error) => tracing::debug!(source = config.name, %error, "the stream's end could not be looked at"),
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = look => {}
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(QUEUE_EVERY) => {}
        }
    }
}

async fn look(config: &SourceConfig, queue: &Arc<dyn Queue>, out: &watch::Sender<Survey>, catalog: bool) {
    match deadline(look_at_queue(&config.name, queue)).await {
        Ok((consumers, stored_bytes)) => out.send_modify(|survey| {
            survey.consumers = consumers;
            survey.stored_bytes = stored_bytes;
        }),
        Err(error) => tracing::debug!(source = config.name, %error, "the queue's registry could not be looked at"),
    }
    if !catalog {
        return;
    }
    match deadline(look_at_catalog(config)).await {
        Ok((tables, to_mend, sequences)) => {
            let before = out.borrow().not_captured.clone();
            if let Some(table) = tables.iter().find(|table| !before.contains(table)) {
                tracing::warn!(
                    source = config.name,
                    table,
                    count = tables.len(),
                    "not captured until `millstream init` runs again"
                );
            }
            out.send_modify(|survey| (survey.not_captured, survey.to_mend, survey.sequences) = (tables, to_mend, sequences));
        }
        Err(error) => tracing::debug!(source = config.name, %error, "the source's catalog could not be looked at"),
    }
}

async fn deadline<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::new(ErrorKind::Connection, "no answer in time");
    tokio::time::timeout(DEADLINE, work).await.map_err(late)?
}

async fn look_at_queue(stream: &str, queue: &Arc<dyn Queue>) -> Result<(BTreeMap<String, ConsumerProgress>, Option<u64>)> {
    let Some(bounds) = queue.bounds(stream).await? else { return Ok(Default::default()) };
    let mut consumers = BTreeMap::new();
    for (key, value) in queue.registry(stream).await? {
        let Some(name) = key.strip_prefix(CONSUMER_PREFIX) else { continue };
        // A newer version's entry may not be readable; its consumer still holds the queue.
        if let Ok(progress) = serde_json::from_slice(&value) {
            consumers.insert(name.to_owned(), progress);
        }
    }
    Ok((consumers, bounds.stored_bytes))
}

async fn look_at_end(stream: &str, queue: &Arc<dyn Queue>) -> Result<Option<End>> {
    let Some(bounds) = queue.bounds(stream).await?.filter(|bounds| !bounds.is_empty()) else { return Ok(None) };
    let mut reader = queue.reader(stream, QueueOffset(bounds.end.0.saturating_sub(1))).await?;
    let Some(last) = reader.read(1, LAST_WAIT).await?.pop() else { return Ok(None) };
    let bytes = last.bytes.len() as u64;
    let Record { header, body } = Record::decode(last.bytes)?;
    if matches!(body, Body::Fence(_)) {
        return Ok(None);
    }
    let (bytes_total, changes_total) = (header.bytes_before + bytes, header.changes_before + body.changes()?);
    Ok(Some(End { number: header.number, bytes_total, changes_total }))
}

const PUBLISHED: &str = "
    SELECT ARRAY(SELECT r.prrelid::int8 FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid)
      FROM pg_catalog.pg_publication p WHERE p.pubname = $1";

/// Tables that match, as `init` reads the patterns, and are not in the publication; none where there is no publication yet.
async fn look_at_catalog(config: &SourceConfig) -> Result<(Vec<String>, BTreeMap<String, String>, Vec<Sequence>)> {
    let patterns = TablePatterns::parse(&config.tables)?;
    let mut connection = connect(&config.connect, Side::Source, "millstream status").await?;
    let failed = |error: sqlx::Error| Error::new(ErrorKind::Connection, "cannot list the source's tables").with_source(error);
    let publication = publication_name(&config.name);
    let published: Option<Vec<i64>> =
        sqlx::query_scalar(PUBLISHED).bind(&publication).fetch_optional(&mut connection).await.map_err(failed)?;
    let (mut found, mut to_mend) = (BTreeSet::new(), BTreeMap::new());
    if let Some(published) = published {
        let resolved = resolve(&mut connection, &patterns).await?;
        let missing = resolved.tables.iter().filter(|table| !published.contains(&i64::from(table.oid)));
        found.extend(missing.map(|table| table.name.to_string()));
        found.extend(resolved.refused.iter().map(|(name, _)| name.to_string()));
        to_mend.extend(resolved.refused.into_iter().map(|(name, remedy)| (name.to_string(), remedy)));
    }
    let sequences = sequences::list(&mut connection, &config.name).await?;
    let sequences = sequences.into_iter().map(|s| Sequence { name: s.name.to_string(), statement: s.statement }).collect();
    sqlx::Connection::close(connection).await.map_err(failed)?;
    Ok((found.into_iter().collect(), to_mend, sequences))
}
