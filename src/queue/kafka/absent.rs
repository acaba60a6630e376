//! A topic that metadata do not know: deleted, or not known yet to a broker that has just come up.
//!
//! Invariant: a topic counts as deleted only when every look-up over [`super::KafkaSettings::gone_after`] has missed it. Deleted means loss, which is
//! for ever; until then the answer is [`ErrorKind::Connection`], which is tried again.
//!
//! In memory only, one per [`super::KafkaQueue`]: readers are made anew with every attempt of their owners, so none of them could count that long.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::halt::HaltCode;

/// Topics that were missed.
pub(super) struct Absences {
    gone_after: Duration,
    missed: Mutex<HashMap<String, Absence>>,
}

#[derive(Clone, Copy)]
struct Absence {
    since: Instant,
    last: Instant,
}

impl Absences {
    pub(super) fn new(gone_after: Duration) -> Self {
        Self { gone_after, missed: Mutex::default() }
    }

    /// The topic is there.
    pub(super) fn seen(&self, topic: &str) {
        self.lock().remove(topic);
    }

    /// The topic was not there just now. True when it counts as deleted.
    pub(super) fn missed(&self, topic: &str) -> bool {
        self.missed_at(topic, Instant::now())
    }

    fn missed_at(&self, topic: &str, now: Instant) -> bool {
        let mut missed = self.lock();
        let absence = missed.entry(topic.to_owned()).or_insert(Absence { since: now, last: now });
        // Nobody looked for as long: that was another absence, or is the first look of this one.
        if now.duration_since(absence.last) > self.gone_after {
            absence.since = now;
        }
        absence.last = now;
        now.duration_since(absence.since) >= self.gone_after
    }

    /// As [`Self::missed`], as the error to return.
    pub(super) fn error(&self, topic: &str, beside: &str) -> Error {
        if self.missed(topic) {
            Error::halt(HaltCode::QueueLost, format!("topic '{topic}' is no longer there{beside}"))
        } else {
            Error::new(ErrorKind::Connection, format!("Kafka does not know topic '{topic}' at present{beside}"))
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Absence>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absence_without_a_gap_counts_as_deleted() {
        let absences = Absences::new(Duration::from_secs(30));
        let begin = Instant::now();
        let missed = |after: u64| absences.missed_at("t", begin + Duration::from_secs(after));
        assert!(!missed(0) && !missed(29));
        absences.seen("t");
        assert!(!missed(31), "it was there between");
        assert!(!missed(100), "nobody looked between");
        assert!(!missed(120) && missed(130) && missed(140));
        assert_eq!(absences.error("u", "").kind(), ErrorKind::Connection);
        assert_eq!(Absences::new(Duration::ZERO).error("u", "").kind(), ErrorKind::Halt(HaltCode::QueueLost));
    }
}
