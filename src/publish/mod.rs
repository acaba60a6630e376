//! The log for everybody else: what people and other consumers read.

pub mod envelope;

pub use envelope::{Envelope, Event, Origin};
