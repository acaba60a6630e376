//! PostgreSQL connections: a thin client of our own, and what it shares with sqlx.
//!
//! sqlx has no replication mode, no channel binding and no keepalives, so everything that talks to a walsender, and whoever relays COPY data, uses
//! [`PgClient`]. Other statements go through sqlx with [`crate::config::PgConnect::sqlx_options`]; both set the same session
//! ([`session`]) and both classify errors by the same table ([`sqlstate`]).
//!
//! | file | what |
//! |---|---|
//! | `socket`, `tuning`, `tls`, `verify` | the transport |
//! | `frame`, `connection` | frames in, bytes out |
//! | `auth` | startup and authentication |
//! | `refusal` | why no session came about |
//! | `client`, `query`, `copy` | a session |
//! | [`sql`] | ordinary SQL, through sqlx |

mod auth;
mod client;
mod connection;
mod copy;
mod error;
pub mod frame;
mod query;
mod quote;
mod refusal;
pub mod session;
mod socket;
pub mod sql;
pub mod sqlstate;
mod tls;
mod tuning;
mod verify;

pub use client::{Mode, PgClient};
pub use copy::{CopyBoth, CopyIn, CopyOut};
pub use error::{ServerError, from_sqlx};
pub use query::{STATEMENT_WAIT, SimpleRow};
pub use quote::{quote_ident, quote_ident_list, quote_literal, quote_option, quote_table};
pub use refusal::{OLDEST_MAJOR, Refusal};
pub use sqlstate::{Side, kind_of_sqlstate};
