//! What a running daemon is told to do, by name.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Control, Reload, ReplicaView, SourceView, Views};
use crate::cli::{Exit, exit};
use crate::config::ByteSize;
use crate::error::{Error, ErrorKind};
use crate::halt::HaltCode;
use crate::pause::Gate;
use crate::socket::protocol::{Answer, Kind, PauseReport, ReloadReport, Request, Subject};

/// What is in hand ends within this time: a batch that has not by then is rolled back by the applier itself.
const REST_WITHIN: Duration = Duration::from_secs(15);

/// Why an order was not carried out.
enum Refusal {
    /// It names nobody.
    Usage(String),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Refusal {
    /// As the command would say it if it had failed itself.
    fn answer(&self) -> Answer {
        match self {
            Self::Usage(message) => Answer::Refused { exit: Exit::Usage as u8, message: format!("millstream: {message}") },
            Self::Failed(error) => Answer::refused(error),
        }
    }
}

impl Answer {
    /// An order that failed.
    pub(crate) fn refused(error: &Error) -> Self {
        Self::Refused { exit: Exit::of(error) as u8, message: exit::message(error) }
    }
}

/// Who was named.
enum Named {
    Source(Arc<SourceView>),
    Replica(Arc<ReplicaView>),
}

impl Control {
    /// Does what was asked for.
    pub async fn carry_out(&self, request: Request) -> Answer {
        let done = match request {
            Request::Pause(subject) => self.pause(&subject).await.map(Answer::Pause),
            Request::Resume(subject) => self.resume(&subject).await.map(Answer::Pause),
            Request::Reload { dry_run } => self.reload(dry_run).await.map(Answer::Reload),
        };
        done.unwrap_or_else(|refusal| refusal.answer())
    }

    async fn pause(&self, subject: &Subject) -> Result<PauseReport, Refusal> {
        let named = self.named(subject)?;
        let (changed, paused) = named.gate().pause().await?;
        let at_rest = named.gate().at_rest(REST_WITHIN).await;
        let since = Some(super::build::time(paused.since_us));
        let report = PauseReport { paused: true, changed, since, at_rest, ..named.report(&subject.name) };
        Ok(PauseReport { notes: named.notes_of_a_pause(), ..report })
    }

    async fn resume(&self, subject: &Subject) -> Result<PauseReport, Refusal> {
        let named = self.named(subject)?;
        let changed = named.gate().resume().await?;
        let notes = named
            .halt()
            .map(|code| format!("it is halted all the same ({code}); `millstream explain {code}` says what to do about that"));
        Ok(PauseReport { changed, notes: notes.into_iter().collect(), ..named.report(&subject.name) })
    }

    fn named(&self, subject: &Subject) -> Result<Named, Refusal> {
        let views = self.views();
        let source = views.sources.get(&subject.name).filter(|_| subject.kind != Some(Kind::Replica));
        let replica = views.replicas.get(&subject.name).filter(|_| subject.kind != Some(Kind::Source));
        match (source, replica) {
            (Some(source), None) => Ok(Named::Source(Arc::clone(source))),
            (None, Some(replica)) => Ok(Named::Replica(Arc::clone(replica))),
            (Some(_), Some(_)) => {
                let message = format!("'{0}' is a source and a replica: say --source or --replica as well", subject.name);
                Err(Refusal::Usage(message))
            }
            (None, None) => Err(Refusal::Usage(views.unknown(subject))),
        }
    }

    /// The daemon's main loop does it; it may be stopping something just now.
    async fn reload(&self, dry_run: bool) -> Result<ReloadReport, Refusal> {
        let gone = || Error::new(ErrorKind::Busy, "the daemon is ending, or has not opened its queue yet");
        let (answer, answered) = oneshot::channel();
        self.reloads.send(Reload { dry_run, answer }).await.map_err(|_| gone())?;
        Ok(answered.await.map_err(|_| gone())??)
    }
}

impl Views {
    fn unknown(&self, subject: &Subject) -> String {
        let list = |kind: &str, names: Vec<&str>| match names.as_slice() {
            [] => format!("there is no {kind}"),
            names => format!("the {kind}s are: {}", names.join(", ")),
        };
        let what = subject.kind.map_or("source or replica", Kind::as_str);
        format!(
            "this daemon has no {what} '{}'; {}; {}",
            subject.name,
            list("source", self.sources.keys().map(String::as_str).collect()),
            list("replica", self.replicas.keys().map(String::as_str).collect())
        )
    }
}

impl Named {
    fn gate(&self) -> &Arc<Gate> {
        match self {
            Self::Source(view) => &view.gate,
            Self::Replica(view) => &view.gate,
        }
    }

    fn halt(&self) -> Option<HaltCode> {
        match self {
            Self::Source(view) => view.capture.as_ref()?.borrow().halt,
            Self::Replica(view) => view.apply.as_ref()?.borrow().halt,
        }
    }

    fn report(&self, name: &str) -> PauseReport {
        let kind = match self {
            Self::Source(_) => Kind::Source,
            Self::Replica(_) => Kind::Replica,
        };
        let name = name.to_owned();
        PauseReport { kind, name, paused: false, changed: false, since: None, at_rest: true, notes: Vec::new() }
    }

    fn notes_of_a_pause(&self) -> Vec<String> {
        match self {
            Self::Replica(view) => {
                let elsewhere = "another daemon applies it, and stops within seconds".to_owned();
                view.apply.is_none().then_some(elsewhere).into_iter().collect()
            }
            Self::Source(view) => {
                let mut notes = Vec::new();
                let Some(capture) = &view.capture else {
                    notes.push("another daemon captures it, and stops within seconds".to_owned());
                    return notes;
                };
                let retention = capture.borrow().retention;
                let (kept, budget) = (ByteSize(retention.retained_bytes), ByteSize(view.retain_max_bytes));
                notes.push(match view.drops_slot {
                    true => format!(
                        "the source keeps its log meanwhile, {kept} of {budget} by now: past that, or past retain_max_age, its slot is dropped \
                         (on_retain_limit = \"drop_slot\"), paused or not"
                    ),
                    false => format!("the source keeps its log meanwhile, {kept} of {budget} by now; past that there is an alarm"),
                });
                notes
            }
        }
    }
}
