//! From nothing to streaming: identity, slot, fence, checks, first base (I1, I5, I8).
//!
//! ```text
//!  the log says whose stream it is (slot name, cluster, timeline)
//!    ▼
//!  the server is that cluster; the slot is there and usable        or: halt
//!    ▼
//!  START_REPLICATION: the slot is ours                             or: held by …
//!    ▼
//!  fence durable and read; the log's end is known
//!    ▼
//!  confirmed_flush_lsn ≤ end; the timeline continues ours          or: halt
//!    ▼
//!  a base that is recent, or a new one durable; hint written: streaming
//! ```
//!
//! From START_REPLICATION on the walsender wants to hear from us, however long the queue takes: until the loop of the worker does it, feedback that confirms
//! nothing is repeated beside the work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::append::LogWriter;
use super::assemble::Assembler;
use super::begin::{announce, holder, publication_name};
use super::heartbeat::{self, Pulse};
use super::postgres::catalog::{Catalog, XidClock};
use super::postgres::publication;
use super::postgres::slot::{self, Server, SlotRow};
use super::postgres::stream::{ReplicationStream, StreamOptions};
use super::recover;
use super::silent::Silence;
use super::spill::SpillSpace;
use super::status::{CaptureState, CaptureStatus};
use super::takeover::claim;
use super::upkeep::{Upkeep, Written, trim_before};
use super::worker::{Owned, Parts, Worker};
use crate::config::SourceConfig;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{History, Lsn};
use crate::failpoint;
use crate::halt::HaltCode;
use crate::postgres::{Mode, PgClient, Side};
use crate::queue::Queue;

/// The source's walsender falls silent for as long as it decodes what is not for us; [`Worker`] asks it often itself.
const SILENCE: Duration = Duration::from_secs(120);

/// Between two signs of life while the stream is taken over; the walsender's patience is 30 s.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// What does not change from one connection to the next.
pub(super) struct Site {
    pub source: SourceConfig,
    pub queue: Arc<dyn Queue>,
    pub queue_max_bytes: u64,
    /// Names this process at the source, so that it knows its own earlier connections again.
    pub application_name: String,
    /// What was seen of another process that reads the slot.
    pub silence: Silence,
    pub status: Arc<watch::Sender<CaptureStatus>>,
}

/// A connection that streams.
pub(super) struct Streaming {
    pub worker: Worker,
    pub upkeep: Owned<Result<()>>,
    pub _heartbeat: Owned<Result<()>>,
}

impl Site {
    fn stream(&self) -> &str {
        &self.source.name
    }

    /// Everything up to the first message.
    pub(super) async fn open(&self) -> Result<Streaming> {
        let known = recover::identity(&self.queue, self.stream()).await?;
        self.status.send_modify(|status| status.slot = Some(known.slot.clone()));
        let mut catalog = Catalog::connect(&self.source.connect, &self.application_name).await?;
        let (mut stream, server, lineage) = self.take_slot(&known, &mut catalog).await?;
        super::set_state(&self.status, CaptureState::TakingOver);
        let log = keep_alive(&mut stream, self.take_over(known, server, lineage, &mut catalog)).await?;
        self.start(log, stream, catalog).await
    }

    /// Claims the stream, and judges slot and source by where it ends.
    async fn take_over(
        &self,
        known: History,
        server: Server,
        lineage: Vec<(u32, u64)>,
        catalog: &mut Catalog,
    ) -> Result<LogWriter> {
        failpoint::hit("capture.before_fence")?;
        let claim = claim(&self.queue, self.stream(), &holder()).await?;
        failpoint::hit("capture.after_fence")?;
        let (Some(end), true) = (claim.recovered.position, claim.recovered.started) else {
            return Err(recover::not_initialized(self.stream()));
        };
        let (end, history) = (end.lsn()?, claim.recovered.history.clone().unwrap_or(known));
        let server = Server { flushed: catalog.flushed_lsn().await?, ..server };
        let continued = slot::check_history(&history, server, lineage, end)?;
        let row = slot::check_usable(slot::read(catalog.client(), &history.slot).await?, &history)?;
        slot::check_confirmed(&row, &history.slot, end)?;
        let makes_room = claim.makes_room;
        let mut log = LogWriter::new(claim, self.queue.max_record_bytes());
        if let Some(history) = continued {
            tracing::warn!(timeline = history.timeline, end = %end, "the source was promoted and has everything that the queue has: going on");
            log.set_history(history);
            log.give_base();
        } else if makes_room {
            log.give_base();
        } else {
            log.ensure_base();
        }
        log.drain().await?;
        announce(&self.queue, self.stream(), log.epoch(), log.durable_base()).await?;
        if let Some(base) = log.durable_base().filter(|_| makes_room) {
            log.room_is_made();
            trim_before(&self.queue, self.stream(), base).await?;
        }
        tracing::info!(stream = self.stream(), slot = history.slot, epoch = %log.epoch(), position = %end, "streaming");
        Ok(log)
    }

    /// Takes the slot, by reading from it.
    async fn take_slot(&self, known: &History, catalog: &mut Catalog) -> Result<(ReplicationStream, Server, Vec<(u32, u64)>)> {
        let settings = [("application_name", self.application_name.as_str())];
        let mut replication = PgClient::connect_with(&self.source.connect, Mode::Replication, Side::Source, &settings).await?;
        let server = slot::identify(&mut replication).await?;
        let lineage = slot::lineage(&mut replication, server.timeline).await?;
        // Whether it is the same cluster is known before the slot is; where its timeline left ours is judged against the queue's end.
        slot::check_history(known, server, lineage.clone(), Lsn(0))?;
        let row = slot::read(catalog.client(), &known.slot).await?;
        let row = match slot::check_usable(row, known) {
            Ok(row) => row,
            Err(error) => return Err(self.why_unusable(error, known, server, lineage).await),
        };
        self.check_free(&row, &known.slot, catalog).await?;
        let publication = publication_name(self.stream());
        if let Some(what) = publication::look(catalog.client(), &publication).await? {
            return Err(publication::altered(self.stream(), &what));
        }
        let options = StreamOptions { silence: SILENCE, ..StreamOptions::new(vec![publication]) };
        match ReplicationStream::start(replication, &known.slot, Lsn(0), &options).await {
            Ok(stream) => Ok((stream, server, lineage)),
            Err(error) if error.kind() == ErrorKind::Held => {
                if let Some(row) = slot::read(catalog.client(), &known.slot).await? {
                    self.check_free(&row, &known.slot, catalog).await?;
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// A restored source has no slot either: that it is another history says more than that.
    async fn why_unusable(&self, error: Error, known: &History, server: Server, lineage: Vec<(u32, u64)>) -> Error {
        let end = recover::survey(&self.queue, self.stream(), |_| false).await.ok().and_then(|r| r.position);
        match end.map(|position| position.lsn().and_then(|end| slot::check_history(known, server, lineage, end))) {
            Some(Err(history)) if history.kind() == ErrorKind::Halt(HaltCode::HistoryChanged) => history,
            _ => error,
        }
    }

    /// Says who reads the slot. A walsender of an earlier connection of this process, which the server has not noticed to be dead, is ended.
    async fn check_free(&self, row: &SlotRow, slot: &str, catalog: &mut Catalog) -> Result<()> {
        let Some(pid) = row.active_pid else { return Ok(()) };
        let Some(holder) = slot::holder(catalog.client(), pid).await? else { return Ok(()) };
        if holder.application_name == self.application_name {
            catalog.client().simple_query(&format!("SELECT pg_catalog.pg_terminate_backend({pid})")).await?;
            return Err(Error::new(
                ErrorKind::Busy,
                format!("slot '{slot}' was still read by an earlier connection of this process"),
            ));
        }
        if self.silence.end(catalog.client(), &holder, self.stream(), self.source.heartbeat_interval).await? {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("slot '{slot}' was still read by {holder}, which had fallen silent"),
            ));
        }
        self.status.send_modify(|status| status.held_by = Some(holder.to_string()));
        Err(Error::new(ErrorKind::Held, format!("slot '{slot}' is read by {holder}")))
    }

    async fn start(&self, log: LogWriter, stream: ReplicationStream, mut catalog: Catalog) -> Result<Streaming> {
        let xids = XidClock::new(catalog.next_xid().await?);
        let space = SpillSpace::open(&self.source.spill_dir.join(&self.source.name), self.source.spill_max_bytes)
            .at(|| format!("source '{}'", self.source.name))?;
        let written = watch::Sender::new(Written { base: log.durable_base(), waiting: false });
        let slowest = watch::Sender::new(None);
        let pulse = watch::Sender::new(Pulse::default());
        let upkeep = Upkeep { queue: Arc::clone(&self.queue), stream: self.source.name.clone(), epoch: log.epoch() };
        let parts = Parts {
            source: self.stream().to_owned(),
            log,
            stream,
            catalog,
            xids,
            assembler: Assembler::new(space, self.source.memory_bytes),
            queue_max_bytes: self.queue_max_bytes,
            heartbeat_interval: self.source.heartbeat_interval,
            slowest: slowest.subscribe(),
            pulse: pulse.subscribe(),
            status: Arc::clone(&self.status),
            written: written.clone(),
        };
        let upkeep = Owned(tokio::spawn(upkeep.run(written.subscribe(), slowest)));
        let publication = publication_name(self.stream());
        let (to, name) = (self.source.connect.clone(), self.application_name.clone());
        let beats = heartbeat::run(to, name, publication, self.source.heartbeat_interval, pulse);
        Ok(Streaming { worker: Worker::new(parts), upkeep, _heartbeat: Owned(tokio::spawn(beats)) })
    }
}

/// Does something while the walsender is told, now and then, that somebody is there. Feedback before the first that confirms something confirms nothing.
async fn keep_alive<T>(stream: &mut ReplicationStream, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(ALIVE_EVERY) => stream.repeat_feedback(false).await?,
        }
    }
}
