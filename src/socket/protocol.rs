//! What is said over the socket: one line of JSON, an order; one line of JSON, the answer.
//!
//! Both ends are the same program as a rule, and may differ over an upgrade: unknown fields are passed over, an unknown order is refused.

use serde::{Deserialize, Serialize};

/// Source or replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A captured database.
    Source,
    /// A database applied to.
    Replica,
}

impl Kind {
    /// As people read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Replica => "replica",
        }
    }
}

/// Whom an order is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its configured name.
    pub name: String,
    /// Needed where a source and a replica have the same name.
    #[serde(default)]
    pub kind: Option<Kind>,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Request {
    /// Stand still until [`Request::Resume`].
    Pause(Subject),
    /// Go on.
    Resume(Subject),
    /// Read the configuration again.
    Reload {
        /// Only say what would change.
        dry_run: bool,
    },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// A pause or its end.
    Pause(PauseReport),
    /// A reload, or what it would do.
    Reload(ReloadReport),
    /// Nothing was changed, or not all of it.
    Refused {
        /// The command's exit code.
        exit: u8,
        /// What the command says.
        message: String,
    },
}

/// How a source or replica stands after `pause` or `resume`. `--json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseReport {
    /// Source or replica.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// It is paused now.
    pub paused: bool,
    /// It was not so before.
    pub changed: bool,
    /// Since when it is paused, RFC 3339 in UTC.
    pub since: Option<String>,
    /// What was in hand has ended; false while this daemon still waits for that.
    pub at_rest: bool,
    /// What else there is to know: a sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What a reload changes. `--json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// It was carried out; false for a dry run.
    pub done: bool,
    /// One line for each key, source or replica that differs.
    pub changes: Vec<String>,
    /// What is started anew for it, or stopped: a line each.
    pub restarts: Vec<String>,
    /// What to know: places in the queue that are kept, what `init` has to do.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_as_it_is_documented() {
        let order: Request = serde_json::from_str(r#"{"order":"pause","name":"reports","later":1}"#).expect("an order");
        assert_eq!(order, Request::Pause(Subject { name: "reports".to_owned(), kind: None }));
        let order: Request = serde_json::from_str(r#"{"order":"resume","name":"shop","kind":"source"}"#).expect("an order");
        assert_eq!(order, Request::Resume(Subject { name: "shop".to_owned(), kind: Some(Kind::Source) }));
        assert!(serde_json::from_str::<Request>(r#"{"order":"dance"}"#).is_err());
    }
}
