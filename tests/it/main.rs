//! The one integration binary: every test that needs a real server, a real process or a real socket.
//!
//! `support` starts servers and daemons and ends them, whatever happens to the test.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod apply;
mod capture;
mod check;
mod cli;
mod conformance;
mod copy;
mod crash;
mod golden;
mod kafka;
mod operate;
mod postgres_client;
mod scenarios;
mod selftest;
mod support;
