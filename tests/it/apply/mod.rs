//! The applier and the PostgreSQL replica, on logs written by hand.

mod beneath;
mod changes;
mod conflicts;
mod constraints;
mod large;
mod model;
mod names;
mod pace;
mod quarantine;
mod rig;
mod speed;
mod takeover;
mod types;
