//! FAULTS 4 and 5: two daemons and one stream. One works, the other says who holds it and waits; a sleeper that wakes does no harm.

use rustix::process::Signal;

use super::{CATCH_UP, Pair, Servers};
use crate::support::daemon::Site;
use crate::support::wait::{LONG, until};
use crate::support::workload::Plan;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_waits_says_for_whom_and_takes_over() {
    let servers = Servers::start().await;
    let pair = Pair::new(&servers).await;
    let workload = pair.load(&Plan::default());
    let first = pair.site.start();
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();

    let second_site = beside(&pair);
    let second = second_site.start();
    let said = first.pid().to_string();
    until("the second to name the first", LONG, async || second.log().contains(&said) || second.exited().is_some()).await;
    assert!(second.exited().is_none(), "it waits instead of ending:\n{}", second.log_tail());

    // A sleeper still holds what it held: nobody takes over from under it.
    first.signal(Signal::STOP);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    first.signal(Signal::CONT);
    pair.caught_up().await;

    first.kill();
    second_site.ready(CATCH_UP).await;
    let third = pair.site.start();
    pair.verdict(workload, &reader).await;
    assert!(third.exited().is_none() && second.exited().is_none());
}

/// Another configuration file, with another HTTP port, over the same queue and databases.
fn beside(pair: &Pair<'_>) -> Site {
    let text = std::fs::read_to_string(pair.site.configuration()).expect("millstream.toml");
    let (rest, _) = text.split_once("listen = ").expect("[http]");
    Site::new(&format!("{rest}listen = \"{{http}}\"\n"))
}
