//! Capture against real servers, in process.

mod claim;
mod kinds;
mod large;
mod rig;
mod silent;
mod slots;
