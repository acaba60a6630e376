//! What tests, the demo and the benchmarks stand on: real servers in temporary folders, daemons, a proxy that misbehaves, waiters.
//!
//! Everything here panics on failure: a test that cannot get its server has failed. Whatever is started ends with the test:
//! by `Drop`, at the process's exit, and (killed tests) by the kernel, which kills the children of a dead parent.
#![allow(dead_code)]

pub mod files;
pub mod postgres;
pub mod process;
pub mod sql;
pub mod template;
pub mod tls;
pub mod wait;

mod selftest;
