//! Long-running tasks: named, tracked, and none of them ends unnoticed.
//!
//! A task of a daemon runs until it is cancelled. One that ends before that, with an error, without one or by a panic, ends
//! the daemon with its error: half a daemon is worse than none, because nobody looks. A part of a daemon that is started and
//! stopped while the rest goes on ([`Tasks::part`]) has a token of its own, and may end once that is cancelled.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};

/// The daemon's tasks.
pub struct Tasks {
    set: JoinSet<Result<()>>,
    /// Name, and the token that lets it end.
    names: HashMap<Id, (String, CancellationToken)>,
    token: CancellationToken,
}

/// Tasks that are started and stopped together while the daemon goes on.
pub struct Part {
    token: CancellationToken,
    tasks: Vec<(String, AbortHandle, CancellationToken)>,
}

impl Part {
    /// The token that ends them.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Asks them to end.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Waits for them to end, at most so long; who stays is aborted, which drops what it holds.
    pub async fn ended(self, limit: Duration) {
        self.cancel();
        let deadline = tokio::time::Instant::now() + limit;
        for (name, task, ended) in self.tasks {
            if tokio::time::timeout_at(deadline, ended.cancelled()).await.is_err() {
                tracing::warn!(task = name, "did not end in time; what it had not committed is done again when it is started");
                task.abort();
                ended.cancelled().await;
            }
        }
    }
}

impl Tasks {
    /// None yet; they end when the token is cancelled.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: HashMap::new(), token }
    }

    /// The token that ends them.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Starts a task that runs until the token is cancelled.
    pub fn spawn(&mut self, name: impl Into<String>, work: impl Future<Output = Result<()>> + Send + 'static) {
        let handle = self.set.spawn(work);
        self.names.insert(handle.id(), (name.into(), self.token.clone()));
    }

    /// A part without tasks yet.
    #[must_use]
    pub fn part(&self) -> Part {
        Part { token: self.token.child_token(), tasks: Vec::new() }
    }

    /// Starts a task of a part, which runs until the part's token is cancelled.
    pub fn spawn_in(
        &mut self,
        part: &mut Part,
        name: impl Into<String>,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let (name, ended) = (name.into(), CancellationToken::new());
        let told = ended.clone().drop_guard();
        let handle = self.set.spawn(async move {
            let _told = told;
            work.await
        });
        self.names.insert(handle.id(), (name.clone(), part.token.clone()));
        part.tasks.push((name, handle, ended));
    }

    /// Waits until the token is cancelled, or a task ends before that.
    ///
    /// # Errors
    /// That of the task that ended, or [`ErrorKind::Unexpected`] when it ended without one.
    pub async fn watch(&mut self) -> Result<()> {
        loop {
            tokio::select! {
                biased;
                () = self.token.cancelled() => return Ok(()),
                Some(ended) = self.set.join_next_with_id() => {
                    let (name, token, result) = self.name(ended);
                    if token.is_cancelled() {
                        continue;
                    }
                    let early = || Error::new(ErrorKind::Unexpected, format!("task '{name}' ended though nobody asked it to"));
                    return result.and_then(|()| Err(early()));
                }
            }
        }
    }

    /// Cancels every task and waits for them, at most so long. Gives the names of those that did not end.
    pub async fn stop(mut self, limit: Duration) -> Vec<String> {
        self.token.cancel();
        let drained = tokio::time::timeout(limit, async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let (name, _, result) = self.name(ended);
                match result {
                    Err(error) if error.kind() != ErrorKind::Cancelled => {
                        tracing::warn!(task = %name, %error, "a task ended with an error while stopping");
                    }
                    _ => tracing::debug!(task = %name, "task ended"),
                }
            }
        });
        match drained.await {
            Ok(()) => Vec::new(),
            Err(_) => self.names.into_values().map(|(name, _)| name).collect(),
        }
    }

    fn name(&mut self, ended: Result<(Id, Result<()>), JoinError>) -> (String, CancellationToken, Result<()>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(Error::new(ErrorKind::Unexpected, how_it_ended(&error)))),
        };
        let (name, token) = self.names.remove(&id).unwrap_or_default();
        let result = result.map_err(|error| error.context(format!("task '{name}'")));
        (name, token, result)
    }
}

/// The error for work whose task gave no result.
///
/// Never with the [`JoinError`] as its cause: that one quotes the panic's text, and the text may quote what was being worked on (threat 4).
#[must_use]
pub fn ended_early(work: &str, error: &JoinError) -> Error {
    Error::new(ErrorKind::Unexpected, format!("{work} {}", how_it_ended(error)))
}

fn how_it_ended(error: &JoinError) -> &'static str {
    if error.is_panic() { "panicked" } else { "was aborted" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_early_ends_the_daemon_with_its_error() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("steady", std::future::pending());
        tasks.spawn("weak", async { Err(Error::new(ErrorKind::Io, "no disk")) });
        let error = tasks.watch().await.expect_err("an early end");
        assert_eq!(error.to_string(), "task 'weak': no disk");
    }

    #[tokio::test]
    async fn a_task_that_returns_without_an_error_is_an_error_too() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("short", async { Ok(()) });
        assert!(tasks.watch().await.expect_err("an early end").to_string().contains("'short' ended"));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_with_the_tasks_name() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("clumsy", async { panic!("on purpose") });
        assert_eq!(tasks.watch().await.expect_err("a panic").to_string(), "task 'clumsy': panicked");
    }

    #[tokio::test]
    async fn a_part_may_end_once_it_was_asked_to_and_not_before() {
        let mut tasks = Tasks::new(CancellationToken::new());
        let (mut part, mut other) = (tasks.part(), tasks.part());
        let token = part.token().clone();
        tasks.spawn_in(&mut part, "polite", async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.spawn_in(&mut part, "stubborn", std::future::pending());
        part.ended(Duration::from_millis(20)).await;
        tasks.spawn_in(&mut other, "weak", async { Err(Error::new(ErrorKind::Io, "no disk")) });
        assert_eq!(tasks.watch().await.expect_err("an early end").to_string(), "task 'weak': no disk");
    }

    #[tokio::test]
    async fn of_a_panics_text_nothing_is_kept() {
        let ended = tokio::spawn(async { panic!("row (4111111111111111)") }).await.expect_err("a panic");
        assert!(ended.to_string().contains("4111"), "tokio shows it, which is why it is no cause: {ended}");
        let error = ended_early("a loader", &ended);
        assert_eq!(error.to_string(), "a loader panicked");
        assert!(std::error::Error::source(&error).is_none() && !format!("{error:?}").contains("4111"));
    }

    #[tokio::test]
    async fn stopping_waits_no_longer_than_its_limit_and_names_who_stays() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("stubborn", std::future::pending());
        let token = tasks.token().clone();
        tasks.spawn("polite", async move {
            token.cancelled().await;
            Ok(())
        });
        assert_eq!(tasks.stop(Duration::from_millis(50)).await, ["stubborn"]);
    }
}
