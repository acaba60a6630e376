//! What tests, the demo and the benchmarks stand on: real servers in temporary folders, daemons, a proxy that misbehaves, waiters.
//!
//! Everything here panics on failure: a test that cannot get its server has failed. Whatever is started ends with the test:
//! by `Drop`, at the process's exit, and (killed tests) by the kernel, which kills the children of a dead parent.
//!
//! | file | what it gives |
//! |---|---|
//! | `postgres` | servers: start, crash, freeze, restart, TLS, rights; `shared()` for tests that only need a database |
//! | `kafka` | brokers in their JVMs: `shared()`, clusters, TLS, SASL, ACLs; kill, pause, restart |
//! | `daemon` | an installation of `millstream` in a folder: commands, daemons, HTTP |
//! | `proxy` | TCP between them: stall, refuse, delay, reset, an answer lost |
//! | `workload`, `workload_ops` | live writers by seed |
//! | `compare` | source against replica by plain SQL |
//! | `prefix` | a reader of the replica that checks I4 all the while |
//! | `sql`, `wait`, `files`, `process`, `template`, `tls` | what those stand on |
#![allow(dead_code)]

pub mod compare;
pub mod daemon;
pub mod files;
pub mod kafka;
pub mod postgres;
pub mod prefix;
pub mod process;
pub mod proxy;
pub mod sql;
pub mod template;
pub mod tls;
pub mod wait;
pub mod workload;
pub mod workload_ops;

/// Counts a test that cannot run here, and says why; `make test` lists them at its end and refuses them in CI.
pub fn skip(why: &str) {
    use std::io::Write as _;
    eprintln!("SKIPPED: {why}");
    if let Some(path) = std::env::var_os("MILLSTREAM_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("MILLSTREAM_SKIPS");
        writeln!(file, "{why}").expect("MILLSTREAM_SKIPS");
    }
}
