//! Millstream: database change replication through one durable log.
//!
//! # Data path
//!
//! ```text
//!  source ──► capture ──► queue ──► apply ──► replica
//!  PG slot    decode      Kafka     read      rows + ledger
//!             assemble    or        filter    in one transaction
//!             append      embedded  merge
//!                                   write
//! ```
//!
//! The path of one change, module by module:
//! [`capture::postgres`] reads the slot and decodes pgoutput → [`capture::assemble`] collects the messages of each transaction
//! (in memory, past a budget in a spill file) until it commits → [`capture::append`] numbers, cuts and appends
//! records → [`queue`] makes them durable ║ [`queue::log`] reads them back, voids what a fence overruled and
//! checks the numbers → [`apply`] drops what the ledger has, merges whole transactions → [`replica`] writes rows and ledger
//! in one transaction.
//!
//! # Map
//!
//! | module | what lives there |
//! |---|---|
//! | [`event`] | the event model and the record format: what the log says. No I/O |
//! | [`queue`] | where the log waits: one narrow trait pair, the embedded queue, Kafka, and the reading rules above both |
//! | [`capture`] | from a source database to the queue |
//! | [`postgres`] | PostgreSQL connections: our own thin client, session settings and error table shared with sqlx |
//! | [`apply`] | from the queue to a replica, whatever its engine |
//! | [`replica`] | what one engine needs to be a replica: writing, ledger, its errors |
//! | [`preflight`] | `check`, `init`, `teardown`: what must hold before a pair runs |
//! | [`config`] | the one TOML file |
//! | [`daemon`] | all wiring, top to bottom in the order that data flows; the only place that matches on backend kinds |
//! | [`control`] | what a running daemon tells, and what it is told to do: status, pauses |
//! | [`pause`] | sources and replicas that stand still because somebody asked for it |
//! | [`socket`] | the local socket that orders come by |
//! | [`http`], [`metrics`], [`systemd`], [`telemetry`] | that, over HTTP, as metrics, to systemd; logs |
//! | [`publish`] | the log as others read it: Debezium's envelope |
//! | [`task`] | named tasks, of which none ends unnoticed |
//! | [`cli`] | the commands |
//! | [`error`], [`halt`] | one error type; one table from kind to retry, halt or stop, with the operator's remedy |
//!
//! # Terms
//!
//! *source* a captured database · *stream* the ordered log of one source · *transaction* the unit of the log · *history* the
//! source's identity: system identifier, timeline lineage and slot incarnation; positions belong to one history and are
//! compared only within it · *position* where the source stood ([`event::Position`]), compared as a number or a set, never as
//! text · *record number* contiguous count of the valid records of a stream · *epoch* incarnation of a stream's writer, for
//! fencing only · *apply epoch* the like for a replica, kept in its ledger · *offset* where the queue keeps a record; gives no
//! order between writers that the fence rule has not confirmed · *base* the record number from which a reader sees every
//! schema that a record may refer to · *ledger* the rows in the replica that say how far it is · *cursor* what the ledger
//! holds of the log: offset, record number, position, fence · *live table* one whose first copy is complete · *halt* a
//! stream or replica that stopped by a rule, with a stable code.
//!
//! # Guarantees
//!
//! Code cites these by number.
//!
//! - **I1** The source is told "flushed" only up to what the queue holds durably; idle streams too: progress is a durable
//!   record first, then feedback. Feedback takes a [`queue::DurablePosition`], which only the queue's acknowledgement makes.
//!   A stream's first record ([`event::Genesis`]) is written before its slot and names the slot; the second
//!   ([`event::SlotStart`]) holds the slot's start. `confirmed_flush_lsn` beyond the queue's end, or a slot beside a queue
//!   without these records, means loss and halts.
//! - **I2** The queue is told "consumed" only up to what the replica has committed ([`queue::ConsumerProgress`]).
//! - **I3** Rows and ledger commit in one replica transaction. Every change has its effect exactly once, whatever was killed,
//!   repeated or re-read. The ledger decides; Kafka's transactions and group offsets never do.
//! - **I4** Readers of live tables see only prefixes of the source's commit order. Source transactions are merged only at
//!   commit boundaries. Tables of one first copy become live together. One that is copied again is not live meanwhile, and shows
//!   its old content ([`apply::copy`]). Excepted, and shown: the rows of a transaction in quarantine ([`replica::postgres::quarantine`]).
//! - **I5** Nothing is skipped in silence: a gap, a lost slot, another history, an unknown event, a row that is not there:
//!   halt, health red, say what to do. Quarantine is asked for by name, keeps what it passes, and is told of for ever.
//! - **I6** Memory and disk are bounded by configured bytes. What a registered consumer has not read is never dropped: a full
//!   queue stops capture.
//! - **I7** The source is never endangered: retained log has a budget and an alarm, idle streams acknowledge, nothing holds a
//!   lock or an old snapshot for long, nothing installed can make the application's statements fail.
//! - **I8** Two writers of one stream, or two appliers of one replica, never both get through ([`queue::log`] has the fence
//!   rule; the ledger's UPDATE checks the apply epoch and holds its lock to COMMIT).
//! - **I9** What is restored is what was archived (no archive yet; the record format carries what it needs).
//!
//! # How a huge transaction travels
//!
//! Capture holds it back until its commit, spilled to disk past a memory budget, then appends it as contiguous *part*
//! records; no other record stands between them. A reader hands the parts on as they come; apply writes them into one
//! replica transaction and commits at the last part. A fence between parts voids those before it, and apply rolls back.
//!
//! # Designs that were rejected
//!
//! - *Parts of transactions in progress in the log, with abort records*: readers would have to hold or undo what never
//!   committed, and every consumer would pay for it. Capture spills instead.
//! - *Schemas kept in the ledger or beside the queue*: schema history that is lost is loss. The log repeats the schemas in
//!   force every few megabytes and each record says from which record number on they can be read ([`event::RecordHeader::base`]).
//! - *Kafka's transactions and consumer groups for safety*: the ledger decides anyway (I3), fencing needs only an ordered
//!   partition (I8), and a fenced transactional producer would still need both.

#![warn(missing_docs)]

pub mod apply;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod error;
pub mod event;
pub mod failpoint;
pub mod halt;
pub mod http;
pub mod metrics;
pub mod pause;
pub mod postgres;
pub mod preflight;
pub mod publish;
pub mod queue;
pub mod replica;
pub mod socket;
pub mod systemd;
pub mod task;
pub mod telemetry;

pub use error::{Error, ErrorKind, Result};
