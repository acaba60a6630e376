//! COPY out of one table into another, and what happens when it is broken off.

use millstream::ErrorKind;
use millstream::halt::HaltCode;
use millstream::postgres::{Mode, PgClient, ServerError, Side};

use super::{sql, value};
use crate::support::postgres::shared;

#[tokio::test]
async fn binary_and_text_rows_are_relayed() {
    let database = shared().await.new_database().await;
    database.execute("CREATE TABLE a AS SELECT g AS id, repeat('x', g % 5000) AS v FROM generate_series(1, 20000) g").await;
    database.execute("CREATE TABLE b (LIKE a)").await;
    let mut source = sql(&database.connect()).await.unwrap();
    let mut replica = PgClient::connect(&database.connect_tcp(), Mode::Sql, Side::Replica).await.unwrap();
    for format in ["binary", "text"] {
        let mut out = source.copy_out(&format!("COPY public.a TO STDOUT (FORMAT {format})")).await.unwrap();
        let mut taken = replica.copy_in(&format!("COPY public.b FROM STDIN (FORMAT {format})")).await.unwrap();
        while let Some(piece) = out.next().await.unwrap() {
            taken.write(&piece).await.unwrap();
        }
        assert_eq!(out.rows(), Some(20_000));
        assert_eq!(taken.finish().await.unwrap(), 20_000);
        let difference = "SELECT count(*) FROM (TABLE public.a EXCEPT ALL TABLE public.b) d";
        assert_eq!(value(&mut source, difference).await, "0");
        database.execute("TRUNCATE b").await;
    }
}

#[tokio::test]
async fn a_broken_off_copy_leaves_nothing_and_the_session_works() {
    let database = shared().await.new_database().await;
    database.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut client = PgClient::connect(&database.connect(), Mode::Sql, Side::Replica).await.unwrap();

    let mut rows = client.copy_in("COPY public.t FROM STDIN").await.unwrap();
    rows.write(b"1\n2\n").await.unwrap();
    // Here the copy is abandoned.
    assert_eq!(value(&mut client, "SELECT count(*) FROM public.t").await, "0");

    let mut rows = client.copy_in("COPY public.t FROM STDIN").await.unwrap();
    rows.write(b"1\n").await.unwrap();
    rows.abort().await.unwrap();
    assert_eq!(value(&mut client, "SELECT count(*) FROM public.t").await, "0");

    let mut rows = client.copy_in("COPY public.t FROM STDIN").await.unwrap();
    rows.write(b"1\nno number\n").await.unwrap();
    let error = rows.finish().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Halt(HaltCode::ReplicaConstraint), "{error}");
    assert_eq!(ServerError::find(&error).unwrap().sqlstate, "22P02");
    assert!(!error.to_string().contains("no number"), "{error}");

    let mut rows = client.copy_out("COPY (SELECT g FROM generate_series(1, 100000) g) TO STDOUT").await.unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap(), &b"1\n"[..]);
    // Abandoned with most of its rows unread.
    assert_eq!(value(&mut client, "SELECT 'new'").await, "new");
    let error = client.copy_out("COPY public.nowhere TO STDOUT").await.unwrap_err();
    assert_eq!(ServerError::find(&error).unwrap().sqlstate, "42P01");
    assert_eq!(value(&mut client, "SELECT 'new'").await, "new");
}
