//! A first copy whose servers fall silent: nothing closes and nothing comes. What takes minutes in earnest is divided here (`DEADLINES`).

use super::first::{COPIED, databases, live, same_keys};
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::proxy::{Mode, Proxy};
use crate::support::wait::until;

/// Which side's connections stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silent {
    Source,
    Replica,
}

/// Its copy waited for ever: sqlx's sockets have no keepalive, and a COPY had no deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_source_or_replica_does_not_hold_a_copy_for_ever() {
    for silent in [Silent::Source, Silent::Replica] {
        let (source, replica) = databases().await;
        source
            .execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 4000) n; ANALYZE a")
            .await;
        let (to_source, to_replica) = (Proxy::start(source.server.port()).await, Proxy::start(replica.server.port()).await);
        let urls = (source.url_at(to_source.port()), replica.url_at(to_replica.port()));
        let settings = "tables = [\"public.*\"]\ncopy_chunk_rows = 400\ncopy_workers = 2\ncopy_max_bytes_per_second = \"256KiB\"";
        let configuration = pair_configuration(&urls.0, &urls.1, "embedded:{folder}/queue")
            .replace("tables = [\"public.*\"]", settings)
            .replace("sslmode=disable", "sslmode=disable&connect_timeout=1");
        let site = Site::new(&configuration);
        site.must(&["init"]).await;
        let daemon = site.start_with(&[("DEADLINES", "60")]);
        let some = "SELECT count(*) > 0 FROM millstream.copy_chunk WHERE state = 'loaded'";
        until("a chunk to be loaded", COPIED, async || replica.value(some).await == "t").await;
        let proxy = if silent == Silent::Source { &to_source } else { &to_replica };
        proxy.set(Mode::Stall);
        // The session of the copy ends, and says of what: a fifth of a minute at most, of ten.
        let ended = async || {
            let log = daemon.log();
            match silent {
                Silent::Source => log.contains("no copy data moved for") || log.contains("the server did not answer within"),
                Silent::Replica => log.contains("millstream copy") || log.contains("no answer within"),
            }
        };
        until(&format!("the copy to notice {silent:?}"), COPIED, ended).await;
        assert_eq!(daemon.exited(), None, "{}", daemon.log_tail());
        proxy.set(Mode::Pass);
        proxy.reset();
        until("the tables to be live", COPIED, async || live(&replica).await).await;
        compare::equal(&source, &replica, COPIED).await;
        same_keys(&source, &replica).await;
        daemon.terminate().await;
    }
}
