//! What is told of transactions that a replica has kept aside at somebody's word: positions, tables, keys, never values.
//!
//! How they come there and go is the replica's business ([`crate::replica::postgres::quarantine`]).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What became of such a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptState {
    /// It is kept whole, not applied.
    #[default]
    Kept,
    /// `retry` applied it.
    Applied,
    /// `clear` dropped it, never applied.
    Cleared,
    /// Every table of it was copied again since, or is gone.
    Cured,
    /// Every table of it was dropped, or left the replica.
    Dropped,
}

impl KeptState {
    /// As ledger and status write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Applied => "applied",
            Self::Cleared => "cleared",
            Self::Cured => "cured",
            Self::Dropped => "dropped",
        }
    }

    /// From that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Kept, Self::Applied, Self::Cleared, Self::Cured, Self::Dropped].into_iter().find(|state| state.as_str() == text)
    }

    /// The replica lacks what it did.
    #[must_use]
    pub fn is_missing(self) -> bool {
        matches!(self, Self::Kept | Self::Cleared)
    }
}

/// One of its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptTable {
    /// Its name then, with its schema.
    pub table: String,
    /// Changes of it.
    pub changes: u64,
    /// The columns that rows are found by.
    pub key_columns: Vec<String>,
    /// The first of the keys, or all of them: the text of each key column.
    pub keys: Vec<Vec<String>>,
    /// How many there are; 0 where every row counts as changed.
    pub key_count: u64,
    /// Why every row counts as changed.
    pub whole: Option<String>,
    /// When it was copied again since; RFC 3339.
    pub cured_at: Option<String>,
    /// When it was dropped since, or left the replica; RFC 3339.
    pub dropped_at: Option<String>,
}

/// The account of one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// The transaction, as the halt printed it.
    pub position: String,
    /// Its number at the source.
    pub xid: u64,
    /// When it was committed there; RFC 3339.
    pub committed_at: String,
    /// The halt's code.
    pub code: String,
    /// Why the replica refused it.
    pub reason: String,
    /// Changes of it.
    pub changes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What became of it.
    pub state: KeptState,
    /// When it was kept; RFC 3339.
    pub kept_at: String,
    /// When it was applied or cleared, or its tables were cured or dropped; RFC 3339.
    pub ended_at: Option<String>,
    /// Its tables.
    pub tables: Vec<KeptTable>,
}

/// What a replica has in quarantine, and had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quarantine {
    /// Transactions that are kept.
    pub kept: u64,
    /// Transactions that were cleared, and whose tables were not copied again since.
    pub cleared: u64,
    /// Where the replica stood before the first that it lacks; `null` when it lacks none, or stood nowhere.
    pub whole_through: Option<String>,
    /// Every one, the oldest first.
    pub transactions: Vec<Account>,
}

impl Quarantine {
    /// The replica lacks something.
    #[must_use]
    pub fn is_missing_something(&self) -> bool {
        self.kept + self.cleared > 0
    }
}

/// A look at it, for a daemon that works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What there is.
    pub quarantine: Arc<Quarantine>,
    /// What the replica stands at is to be tried at once: somebody ordered it to be kept, or took away what was in its way.
    pub due: bool,
}
