//! What the daemon does about a failure, and what its operator should do: one table.
//!
//! A *halt* stops one stream or replica and never the process. Its code is stable: the same in the log, in status, as the
//! metric's label, in exit messages and for `millstream explain`. A halt whose cause can be mended is tried again every
//! [`RETRY_HALTED_SECONDS`] and at restart; one that means loss stays until a new copy.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// A mendable halt is tried again after this many seconds.
pub const RETRY_HALTED_SECONDS: u64 = 10;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Try again with growing pauses; nothing is lost by waiting.
    Retry,
    /// Stop this stream or replica, say so, and see [`HaltCode::mendable`].
    Halt(HaltCode),
    /// The task was asked to end.
    Stop,
}

/// The one table from error kind to action.
#[must_use]
pub fn disposition(error: &Error) -> Disposition {
    match error.kind() {
        ErrorKind::Connection | ErrorKind::Busy | ErrorKind::Held | ErrorKind::Fenced => Disposition::Retry,
        ErrorKind::Cancelled => Disposition::Stop,
        ErrorKind::Halt(code) => Disposition::Halt(code),
        ErrorKind::Config => Disposition::Halt(HaltCode::Misconfigured),
        ErrorKind::Malformed => Disposition::Halt(HaltCode::Malformed),
        ErrorKind::Corrupt => Disposition::Halt(HaltCode::QueueCorrupt),
        ErrorKind::TooNew => Disposition::Halt(HaltCode::FormatTooNew),
        ErrorKind::NoSpace => Disposition::Halt(HaltCode::NoSpace),
        ErrorKind::Io => Disposition::Halt(HaltCode::StorageFailed),
        ErrorKind::Unexpected => Disposition::Halt(HaltCode::Unexpected),
    }
}

/// What a code means to its operator.
#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    /// What has happened, and why going on would be wrong.
    pub meaning: &'static str,
    /// What to do, in order.
    pub remedy: &'static str,
}

macro_rules! halt_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $mendable:literal, $meaning:literal, $remedy:literal;)*) => {
        /// A reason to halt. Stable: codes are added, never renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum HaltCode {
            $($(#[$doc])* #[doc = $meaning] $name,)*
        }

        impl HaltCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// True when the cause can be mended without a new copy, so that the daemon tries again.
            #[must_use]
            pub fn mendable(self) -> bool {
                match self { $(Self::$name => $mendable,)* }
            }

            /// Meaning and remedy.
            #[must_use]
            pub fn explain(self) -> Explanation {
                match self { $(Self::$name => Explanation { meaning: $meaning, remedy: $remedy },)* }
            }
        }
    };
}

halt_codes! {
    SlotMissing = "slot_missing", false,
        "The source no longer has the replication slot that this stream reads. Changes since then cannot be read, so the replica would miss rows.",
        "Find out who dropped it: the daemon itself past retain_max_bytes where on_retain_limit is drop_slot, a failover without slot synchronisation, a cleanup. Then start over: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it; the tables are copied again.";
    SlotInvalidated = "slot_invalidated", false,
        "The source invalidated the slot, because it retained more WAL than max_slot_wal_keep_size allows, or its rows were removed. Changes are lost to the stream.",
        "Raise max_slot_wal_keep_size or retain_max_bytes to the longest outage to survive, then copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    SlotAhead = "slot_ahead", false,
        "The slot's confirmed_flush_lsn lies beyond the end of the queue: somebody else consumed from it, it was made anew, or the queue lost its tail. The changes between are lost to the stream.",
        "Make sure that nothing else reads the slot and that the queue's storage is sound, then copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    SlotUnknown = "slot_unknown", false,
        "A slot of this name exists on the source, but the queue has no record of having made it. Its start cannot be trusted.",
        "If the queue was emptied or changed by mistake, point [queue] url back to it. Otherwise stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    HistoryChanged = "history_changed", false,
        "Behind the source's address is another history: another cluster, a restored one, or a promoted server that left the old timeline before the queue's end. Positions of one history mean nothing in another.",
        "If the address is wrong, mend it. If the source was really restored or lost changes at a failover, the replica has rows that the source lost: copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    QueueLost = "queue_lost", false,
        "The queue no longer holds the record that the replica's ledger names: the topic was deleted or recreated, retention passed the reader, or another queue is behind the address.",
        "If [queue] url points to the wrong place, mend it. On Kafka set retention.ms=-1 and retention.bytes=-1 (`millstream check` prints the command). Then copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    QueueGap = "queue_gap", false,
        "Record numbers in the queue are not contiguous: records between two others are missing, as after an unclean leader election. What they held is lost.",
        "On Kafka use replication.factor >= 3, min.insync.replicas >= 2 and unclean.leader.election.enable=false. Then copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    QueueCorrupt = "queue_corrupt", false,
        "A record in the queue does not match its checksum. It is not read past.",
        "Check the disk or the broker's storage. If the record can be restored from a good copy, put it back and restart; otherwise copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    QueueDenied = "queue_denied", true,
        "Kafka refused the connection, the user, the password or a right.",
        "Run `millstream check`: it prints the kafka-acls.sh command. Mend the sasl.* and ssl.* properties under [queue.kafka] where they are wrong. The daemon goes on by itself after that.";
    StorageFailed = "storage_failed", true,
        "Reading or writing a local file failed, or an fsync did. What was not confirmed as durable is not treated as such.",
        "Look at the error beside this code and at the kernel's log, and mend the disk or the rights; the daemon goes on by itself.";
    NoSpace = "no_space", true,
        "A disk is full, or a configured limit was reached.",
        "Make room, and the daemon goes on by itself; or raise the limit that the message names in the configuration, and restart the daemon.";
    TransactionTooLarge = "transaction_too_large", true,
        "A source transaction is larger than the spill space or the whole queue may hold.",
        "Raise spill_max_bytes of the source or max_bytes of the queue above the size in the message, and restart the daemon.";
    FormatTooNew = "format_too_new", true,
        "The queue or ledger holds something written by a newer Millstream.",
        "Upgrade this daemon to at least the version that wrote it.";
    Malformed = "malformed", true,
        "A peer sent bytes, or the queue holds a record, that cannot be understood though nothing is damaged. Reading on would skip something.",
        "Keep the message and the position beside this code and report it; an upgraded daemon tries again by itself.";
    SourceMisconfigured = "source_misconfigured", true,
        "The source lacks a setting, a publication or a table property that capture needs.",
        "Run `millstream check`: it prints the statement. The daemon goes on by itself after that.";
    PublicationAltered = "publication_altered", false,
        "Somebody altered the publication that this stream reads, or made it anew. PostgreSQL judges each change by the publication as it stood then: what it left out meanwhile is in no log, and putting the publication back brings none of it.",
        "Find out who altered it, then copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    SourceDenied = "source_denied", true,
        "The source refused the connection, the password or a right.",
        "Run `millstream check`: it prints the grant, or the pg_hba.conf line. The daemon goes on by itself after that; a password file is read again for every connection; a variable and a systemd credential are taken at the daemon's next start (systemctl restart millstream).";
    NotInitialized = "not_initialized", true,
        "The stream, its slot or the replica's ledger has not been made yet.",
        "Run `millstream init`. The daemon goes on by itself after that.";
    ReplicaDenied = "replica_denied", true,
        "The replica refused the connection, the password or a right.",
        "Run `millstream check`: it prints the grant, or the pg_hba.conf line. The daemon goes on by itself after that; a password file is read again for every connection; a variable and a systemd credential are taken at the daemon's next start (systemctl restart millstream).";
    ReplicaConflict = "replica_conflict", true,
        "A row to update or delete is not on the replica, or one to insert is already there: somebody else wrote to the replica.",
        "Put the row named in the message back as the source had it before this transaction, or remove the one that stands in the way; where more of the table may be wrong, `millstream table recopy REPLICA TABLE` copies it again while the others go on. The daemon tries again by itself. Where none of it can be: `millstream quarantine add REPLICA POSITION` keeps this one transaction aside, and the replica is not whole until it is applied or its tables are copied again.";
    ReplicaConstraint = "replica_constraint", true,
        "The replica refused a row that the source accepted: a constraint, a trigger or a type that the source does not have.",
        "Drop or change the constraint named in the message so that it accepts what the source accepts; where a value is not of its column's type, `millstream check` compares types and enum labels. The daemon tries again by itself. Where none of it can be: `millstream quarantine add REPLICA POSITION` keeps this one transaction aside, and the replica is not whole until it is applied or its tables are copied again.";
    QuarantinedKey = "quarantined_key", true,
        "A transaction changes a row (or may change one) that an earlier transaction changes as well, and that one is in quarantine: it was never applied here.",
        "Mend what the replica refused the earlier one for, then `millstream quarantine retry REPLICA`; or `millstream table recopy REPLICA TABLE` for the table in the message. The daemon tries again by itself. Where none of it can be: `millstream quarantine clear REPLICA POSITION`, with the earlier one's position, once its rows were mended by hand; or `millstream quarantine add REPLICA POSITION` keeps this transaction aside as well.";
    SchemaMismatch = "schema_mismatch", true,
        "A table on the replica does not fit the version that the next changes were made under: a column or the table is missing, or a type differs.",
        "Change the replica's table as the message says; `millstream check` names each live table that does not fit, was renamed or is gone, with what mends it. The daemon tries again by itself.";
    SchemaChangeRefused = "schema_change_refused", true,
        "The source changed its schema, and the replica refused to make the same change: something depends on what goes, a type is not there, a right is missing.",
        "Take away what stands in the way, or make the change that the message names by hand on the replica: what is there already is not made twice. Only a table's owner may change it. The daemon tries again by itself.";
    TableRewritten = "table_rewritten", false,
        "The source wrote a table's rows anew (a type changed that is stored otherwise, a default that is not constant). What they became is not in the log.",
        "Copy the table again: `millstream table recopy REPLICA TABLE`. Where that is refused it says why, and what to do.";
    SchemaChangeUnknown = "schema_change_unknown", false,
        "The source's event trigger saw that the schema changes, and failed to say how; the message has its error. Going on might miss the change.",
        "Mend the cause, then copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it; `init` says what to change where the replica's table does not fit.";
    LedgerDamaged = "ledger_damaged", false,
        "The ledger in the replica is missing, was changed by hand, or belongs to another stream.",
        "Restore the replica's millstream schema from the same moment as its tables, or copy again: stop the daemon, `millstream teardown`, empty the replicated tables on the replica (TRUNCATE), `millstream init`, start it.";
    Misconfigured = "misconfigured", true,
        "The configuration cannot work as it stands.",
        "Mend what the message names: a key of the file (then `millstream reload`, or restart the daemon), or what a server lacks, which is noticed by itself.";
    Unexpected = "unexpected", true,
        "Something happened that Millstream has no rule for. Going on might be wrong, so it does not.",
        "Read the message; mend the cause if it names one. If it stays, report it with the log around it. The daemon tries again by itself.";
}

impl fmt::Display for HaltCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HaltCode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or_else(|| {
            let known = Self::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
            Error::new(ErrorKind::Config, format!("unknown code '{text}'; the codes are {known}"))
        })
    }
}

impl serde::Serialize for HaltCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
