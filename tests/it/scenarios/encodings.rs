//! Threat 2: characters pass from one encoding to another as characters, and one that the replica's encoding lacks is never replaced.

use super::CATCH_UP;
use crate::support::daemon::Site;
use crate::support::postgres::{PgDatabase, PgServer, shared, shared_replica};
use crate::support::wait::until;

async fn database(server: &'static PgServer, encoding: &str) -> PgDatabase<'static> {
    let name = format!("in_{}_{:06x}", encoding.to_lowercase(), rand::random_range(0..0x00ff_ffff));
    let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'");
    server.database("postgres").execute(&create).await;
    server.database(&name)
}

/// Names too. The values of both sides are compared by a client in UTF-8.
#[tokio::test(flavor = "multi_thread")]
async fn text_in_an_encoding_of_the_sources_own_arrives_as_the_same_characters() {
    for (encoding, name, text) in
        [("LATIN1", "größe", "Ærøskøbing ÿ \\ '' ½"), ("EUC_JP", "名前", "東京都 表示 ソ能 ー"), ("WIN1251", "имя", "съешь № ‰")]
    {
        let (source, replica) = (database(shared().await, encoding).await, shared_replica().await.new_database().await);
        source
            .execute(&format!(
                "CREATE TABLE \"{name}\" (id int PRIMARY KEY, \"{name}\" text, c char(40), j jsonb); CREATE TABLE {encoding}_full (v text);
                 ALTER TABLE {encoding}_full REPLICA IDENTITY FULL; INSERT INTO \"{name}\" VALUES (1, '{text}', '{text}', '{{\"{name}\": 1}}')"
            ))
            .await;
        let site = Site::pair(&source, &replica);
        site.must(&["init"]).await;
        let daemon = site.start();
        site.ready(CATCH_UP).await;
        source
            .execute(&format!(
                "INSERT INTO \"{name}\" SELECT n, '{text}' || n, '{text}', '{{\"{name}\": \"{name}\"}}' FROM generate_series(2, 300) n;
                 UPDATE \"{name}\" SET c = 'x' WHERE id < 10; INSERT INTO {encoding}_full VALUES ('{text}'), ('x');
                 UPDATE {encoding}_full SET v = v || '{text}' WHERE v = '{text}'"
            ))
            .await;
        for (table, order, rows) in [(format!("\"{name}\""), "id", 300), (format!("{encoding}_full"), "v", 2)] {
            // Not by a checksum of the server's: that is of its own bytes.
            let all = format!("SELECT * FROM {table} ORDER BY {order} COLLATE \"C\"").replace("id COLLATE \"C\"", "id");
            let expected = source.query(&all).await.unwrap();
            assert_eq!(expected.len(), rows);
            until("both sides to be alike", CATCH_UP, async || replica.query(&all).await.unwrap() == expected).await;
        }
        let found = replica.value(&format!("SELECT v FROM {encoding}_full WHERE v <> 'x'")).await;
        assert_eq!(found, text.replace("\'\'", "'").repeat(2));
        assert!(!daemon.log().contains("halted"), "{}", daemon.log());
        daemon.terminate().await;
        site.must(&["teardown", "--yes"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_character_that_the_replicas_encoding_lacks_halts() {
    let (source, replica) = (shared().await.new_database().await, database(shared_replica().await, "LATIN1").await);
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'ä')").await;
    let site = Site::pair(&source, &replica);
    site.must(&["init"]).await;
    let daemon = site.start();
    site.ready(CATCH_UP).await;
    source.execute("INSERT INTO t VALUES (2, 'ö')").await;
    source.execute("INSERT INTO t VALUES (3, '€')").await;
    until("a halt", CATCH_UP, async || site.get("/status").await.is_ok_and(|(_, body)| body.contains("\"replica_constraint\"")))
        .await;
    assert_eq!(replica.value("SELECT string_agg(v, ',' ORDER BY id) FROM t").await, "ä,ö", "what came before is there");
    daemon.terminate().await;
    site.must(&["teardown", "--yes"]).await;
}
