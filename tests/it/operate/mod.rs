//! What an operator orders of a running daemon, over its control socket and by signals.

mod pause;
mod quarantine;
mod reload;
mod socket;

use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Outcome, Site};
use crate::support::postgres::PgDatabase;
use crate::support::wait::{LONG, eventually};

/// For a pair to become equal again.
const CATCH_UP: Duration = Duration::from_secs(120);

/// How far the ledger is, and how often it was claimed.
async fn ledger(replica: &PgDatabase<'_>) -> String {
    replica
        .value("SELECT cursor::text || ' ' || apply_epoch || ' ' || transactions FROM millstream.replica WHERE name = 'reports'")
        .await
}

/// Waits until the status document has a value at a place.
#[track_caller]
fn shows<'a>(site: &'a Site, pointer: &'a str, wanted: impl Into<Value>) -> impl Future<Output = Value> + 'a {
    let (wanted, place) = (wanted.into(), std::panic::Location::caller());
    async move {
        eventually(&format!("{pointer} to be {wanted} ({place})"), LONG, async || {
            let status = site.status().await.unwrap_or_default();
            let found = status.pointer(pointer).cloned().unwrap_or_default();
            if found == wanted { Ok(status) } else { Err(found) }
        })
        .await
    }
}

/// A command that is answered by the daemon, once it takes orders.
async fn order(site: &Site, arguments: &[&str]) -> Outcome {
    eventually("the daemon to take an order", LONG, async || {
        let outcome = site.run(arguments).await;
        if outcome.code == Some(3) { Err(outcome.stderr) } else { Ok(outcome) }
    })
    .await
}

/// As [`order`], and it must be carried out; what it printed as JSON.
async fn ordered(site: &Site, arguments: &[&str]) -> Value {
    let outcome = order(site, &[arguments, &["--json"]].concat()).await;
    assert_eq!(outcome.code, Some(0), "{arguments:?}: {outcome:?}");
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"))
}
