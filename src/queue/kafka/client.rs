//! What every librdkafka client shares: where its logs and errors go, and how its blocking calls and its end stay off the
//! async threads.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::errors;
use crate::error::{Error, ErrorKind, Result};
use crate::halt::HaltCode;
use crate::task::ended_early;

/// A line that repeats is written this often.
const REPEAT_EVERY: Duration = Duration::from_secs(30);

/// librdkafka's context of a client: logs and errors come here.
#[derive(Clone)]
pub(super) struct Context(Arc<Events>);

/// What a client has told of itself.
pub(super) struct Events {
    /// What the client is for, in log lines.
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    trouble: Option<(Code, String)>,
    /// Per kind of line: when it was last written, and how many were left out since.
    written: HashMap<String, (Instant, u64)>,
}

impl Context {
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Events { name: name.into(), state: Mutex::default() }))
    }

    pub(super) fn events(&self) -> &Arc<Events> {
        &self.0
    }
}

impl Events {
    /// The last error since Kafka answered.
    pub(super) fn trouble(&self) -> Option<(Code, String)> {
        self.lock().trouble.clone()
    }

    /// Kafka answered.
    pub(super) fn answered(&self) {
        let mut state = self.lock();
        if state.trouble.take().is_some() {
            state.written.clear();
            drop(state);
            tracing::info!(client = %self.name, "Kafka answers again");
        }
    }

    /// The error when Kafka has refused who we are: no use in waiting for an answer.
    pub(super) fn refused(&self, doing: &str) -> Option<Error> {
        let (code, reason) = self.trouble()?;
        let denied = errors::kind(code) == ErrorKind::Halt(HaltCode::QueueDenied);
        denied.then(|| {
            let error = errors::coded(doing, code);
            Error::new(error.kind(), format!("{} ({reason})", error.message()))
        })
    }

    /// "No answer", with the last reason heard.
    pub(super) fn no_answer(&self, doing: &str, since: Duration) -> Error {
        if let Some(refused) = self.refused(doing) {
            return refused;
        }
        let reason = self.trouble().map_or_else(String::new, |(_, reason)| format!(": {reason}"));
        Error::new(ErrorKind::Connection, format!("{doing}: no answer from Kafka for {} s{reason}", since.as_secs()))
    }

    fn note(&self, code: Code, reason: &str) {
        let mut state = self.lock();
        // Whatever came before says more than "all brokers are down".
        let keeps = code == Code::AllBrokersDown && state.trouble.is_some();
        if !keeps {
            state.trouble = Some((code, reason.to_owned()));
        }
    }

    /// How many lines like this were left out, if it is time to write one.
    fn may_write(&self, kind: &str) -> Option<u64> {
        let mut state = self.lock();
        let now = Instant::now();
        match state.written.get_mut(kind) {
            Some((at, left_out)) if now.duration_since(*at) < REPEAT_EVERY => {
                *left_out += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                state.written.insert(kind.to_owned(), (now, 0));
                Some(0)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        let name = self.0.name.as_str();
        // A property of consumers given to a producer, or the reverse: we give everybody the same.
        if fac == "CONFWARN" || matches!(level, RDKafkaLogLevel::Debug) {
            tracing::debug!(client = name, fac, "{log_message}");
            return;
        }
        let Some(left_out) = self.0.may_write(fac) else { return };
        match level {
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(client = name, fac, left_out, "{log_message}");
            }
            _ => tracing::warn!(client = name, fac, left_out, "{log_message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = errors::code_of(&error).unwrap_or(Code::Unknown);
        self.0.note(code, reason);
        if let Some(left_out) = self.0.may_write(&format!("{code:?}")) {
            tracing::warn!(client = %self.0.name, left_out, "Kafka: {reason}");
        }
    }
}

impl ConsumerContext for Context {}

/// A client that ends on a thread of its own: librdkafka waits for its threads there.
pub(super) struct Reaped<T: Send + Sync + 'static>(Option<Arc<T>>);

impl<T: Send + Sync + 'static> Reaped<T> {
    pub(super) fn new(client: T) -> Self {
        Self(Some(Arc::new(client)))
    }

    /// For a blocking call elsewhere.
    pub(super) fn share(&self) -> Shared<T> {
        Shared(Self(self.0.clone()))
    }
}

/// Another handle of a [`Reaped`] client.
pub(super) struct Shared<T: Send + Sync + 'static>(Reaped<T>);

impl<T: Send + Sync + 'static> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + Sync + 'static> Deref for Reaped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Taken by `drop` only.
        self.0.as_deref().unwrap_or_else(|| unreachable!())
    }
}

impl<T: Send + Sync + 'static> Drop for Reaped<T> {
    fn drop(&mut self) {
        let Some(client) = self.0.take().and_then(Arc::into_inner) else { return };
        let end = std::thread::Builder::new().name("kafka-close".into());
        if let Err(error) = end.spawn(move || drop(client)) {
            // The closure is gone with the client in it: it ended right here, which only cost time.
            tracing::debug!(%error, "no thread to close a Kafka client on");
        }
    }
}

/// Runs a blocking call of librdkafka, which has a deadline of its own.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(ended) => Err(ended_early("a call to librdkafka", &ended)),
    }
}

/// Repeats a question until it is answered, refused, fails for good, or the time is over. Blocking.
pub(super) fn ask<T>(
    events: &Events,
    doing: &str,
    within: Duration,
    mut question: impl FnMut(Duration) -> Result<T, KafkaError>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        let slice = Duration::from_secs(1).min(within);
        let error = match question(slice) {
            Ok(answer) => {
                events.answered();
                return Ok(answer);
            }
            Err(error) => error,
        };
        let code = errors::code_of(&error);
        if !code.is_some_and(errors::passes) {
            return Err(errors::error(doing, &error));
        }
        if let Some(refused) = events.refused(doing) {
            return Err(refused);
        }
        if begin.elapsed() >= within {
            return Err(events.no_answer(doing, begin.elapsed()).with_source(error));
        }
        // Some errors come at once.
        std::thread::sleep(Duration::from_millis(50));
    }
}
