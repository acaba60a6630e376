//! Names that try to become SQL (threats 1 and 2).

use millstream::event::Identity;

use super::rig::{NULL, Rig, SAME, delete, insert, update, update_from, v};
use crate::support::sql::ident;

const NASTY: [&str; 6] = [
    "plain\"quote",
    "semi;--colon",
    "line\nbreak",
    "O'Brien \\ $1",
    "ünïcödé ✓",
    "sixty-three bytes are the most that a name can have in this one",
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_stay_names_on_every_path() {
    let mut ddl = String::new();
    for name in NASTY {
        let q = ident(name);
        ddl += &format!(
            "CREATE SCHEMA {q}; CREATE TYPE {q}.{kind} AS ENUM ('a;--', 'b\"''');
             CREATE TABLE {q}.{q} ({q} int PRIMARY KEY, \"a b\" {q}.{kind}, \"SELECT\" text UNIQUE);
             CREATE TABLE {q}.{heap} ({q} text, x {q}.{kind});",
            heap = ident("heap;--"),
            kind = ident("kind\";--")
        );
    }
    let mut rig = Rig::new(&ddl).await;
    let mut end = rig.log.position();
    for name in NASTY {
        let t = rig.table_in(name, name, Identity::Default).await;
        let heap = rig.table_in(name, "heap;--", Identity::Full).await;
        let many: Vec<_> = (100..160).map(|i| insert(&t, &[v(&i.to_string()), v("a;--"), NULL])).collect();
        rig.log.transaction(many).await;
        end = rig
            .log
            .transactions(&[
                vec![
                    insert(&t, &[v("1"), v("a;--"), v("'; DROP TABLE x; --")]),
                    insert(&t, &[v("2"), v("b\"'"), v("\\'$1\u{0007}")]),
                ],
                vec![update(&t, &[v("1"), v("b\"'"), SAME]), delete(&t, &[v("2"), NULL, NULL])],
                vec![update_from(&t, &[v("1"), NULL, NULL], &[v("3"), v("a;--"), SAME])],
                vec![insert(&heap, &[v("'\"\\;--"), v("a;--")]), insert(&heap, &[NULL, v("b\"'")])],
                vec![update_from(&heap, &[v("'\"\\;--"), v("a;--")], &[v("done"), v("a;--")]), delete(&heap, &[NULL, v("b\"'")])],
            ])
            .await;
    }
    rig.drain(end).await;
    for name in NASTY {
        let q = ident(name);
        let rows = rig.rows(&format!("SELECT * FROM {q}.{q} WHERE {q} < 100")).await;
        assert_eq!(rows, "3|a;--|'; DROP TABLE x; --", "{name}");
        assert_eq!(rig.rows(&format!("SELECT count(*) FROM {q}.{q}")).await, "61");
        assert_eq!(rig.rows(&format!("SELECT * FROM {q}.{}", ident("heap;--"))).await, "done|a;--");
    }
}

/// Operators of a type that lives outside of pg_catalog are found though the search_path is empty.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_types_from_extensions() {
    let mut rig =
        Rig::new("CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE TABLE c (k ext.citext PRIMARY KEY, n int)").await;
    rig.replica.execute("INSERT INTO c VALUES ('Abc', 1), ('Def', 2)").await;
    let t = rig.table("c").await;
    let end = rig
        .log
        .transaction(vec![
            update(&t, &[v("Abc"), v("10")]),
            // The same key to the index, another text.
            update_from(&t, &[v("Def"), NULL], &[v("DEF"), v("20")]),
        ])
        .await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT * FROM c ORDER BY k").await, "Abc|10\nDEF|20");
}
