//! Capture against real servers, in process.

mod claim;
mod failover;
mod kinds;
mod large;
mod rig;
mod silent;
mod slots;
