//! Where `millstream log tail` begins, and a reader that has every schema by then.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{Position, QueueOffset, TransactionHeader};
use crate::halt::HaltCode;
use crate::queue::log::{LogReader, Start};
use crate::queue::{CONSUMER_PREFIX, ConsumerProgress, Queue, WRITER_PREFIX};

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the log's present end.
    Now,
    /// At the first record kept.
    Beginning,
    /// With what committed after a position.
    Position(Position),
    /// With what committed at a time or later, microseconds since 1970-01-01 UTC.
    Time(i64),
}

impl From {
    /// From the command line.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "now" => Ok(Self::Now),
            "beginning" => Ok(Self::Beginning),
            _ => {
                let position = text.parse().map(Self::Position);
                let time = || text.parse::<jiff::Timestamp>().map(|time| Self::Time(time.as_microsecond()));
                position.or_else(|_| time()).map_err(|_| {
                    "neither 'now', 'beginning', a position such as 16/B374D848 nor a time such as 2026-11-01T12:00:00Z"
                        .to_owned()
                })
            }
        }
    }

    /// True for a transaction that lies behind the place.
    pub fn wants(self, transaction: &TransactionHeader) -> bool {
        match self {
            Self::Time(from) => transaction.commit_time_us >= from,
            _ => self.wants_position(transaction.position),
        }
    }

    /// True for a position that lies behind the place, as far as a position tells.
    pub fn wants_position(self, position: Position) -> bool {
        match self {
            Self::Position(from) => position > from,
            Self::Now | Self::Beginning | Self::Time(_) => true,
        }
    }
}

/// A reader, and what to make of its records.
pub struct Begun {
    /// Opened at a base.
    pub reader: LogReader,
    /// Records before this offset are only read for their schemas.
    pub first_offset: QueueOffset,
    /// The log's end when it was opened.
    pub end: QueueOffset,
    /// The log no longer holds its beginning.
    pub trimmed: bool,
}

/// Opens a stream at the latest known base that lies before the place.
pub async fn begin(queue: &Arc<dyn Queue>, stream: &str, from: &From) -> Result<Begun> {
    let Some(bounds) = queue.bounds(stream).await? else {
        let message = format!("the queue has no stream '{stream}'; run `millstream init`");
        return Err(Error::halt(HaltCode::NotInitialized, message));
    };
    let registry = queue.registry(stream).await?;
    let base = match from {
        From::Beginning | From::Time(_) => None,
        From::Now => registry
            .iter()
            .filter(|(key, _)| key.starts_with(WRITER_PREFIX))
            .filter_map(|(_, value)| serde_json::from_slice::<Hint>(value).ok())
            .map(|hint| hint.base_offset)
            .max(),
        From::Position(position) => registry
            .iter()
            .filter(|(key, _)| key.starts_with(CONSUMER_PREFIX))
            .filter_map(|(_, value)| serde_json::from_slice::<ConsumerProgress>(value).ok())
            .filter(|progress| progress.position.is_some_and(|at| at <= *position))
            .map(|progress| progress.keep_from)
            .max(),
    };
    let base = base.filter(|base| *base >= bounds.start && *base < bounds.end);
    let start = base.map_or(Start::First, Start::Base);
    let reader = match LogReader::open(queue, stream, start).await {
        // Trimmed between the question and the answer: the first record kept is still a base.
        Err(error) if error.kind() == ErrorKind::Halt(HaltCode::QueueLost) => {
            LogReader::open(queue, stream, Start::First).await?
        }
        opened => opened?,
    };
    let first_offset = if *from == From::Now { bounds.end } else { QueueOffset(0) };
    Ok(Begun { reader, first_offset, end: bounds.end, trimmed: base.is_none() && bounds.start > QueueOffset(0) })
}

/// A writer's hint in the registry.
#[derive(serde::Deserialize)]
struct Hint {
    base_offset: QueueOffset,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Lsn;

    #[test]
    fn places_are_told_apart() {
        assert_eq!(From::parse("now"), Ok(From::Now));
        assert_eq!(From::parse("16/B374D848"), Ok(From::Position(Position::Lsn(Lsn(0x16_B374_D848)))));
        assert_eq!(From::parse("1970-01-01T00:00:01Z"), Ok(From::Time(1_000_000)));
        assert_eq!(From::parse("1970-01-01T02:00:01+02:00"), Ok(From::Time(1_000_000)));
        for text in ["", "yesterday", "2026-11-01", "G/1"] {
            assert!(From::parse(text).is_err(), "{text}");
        }
    }
}
