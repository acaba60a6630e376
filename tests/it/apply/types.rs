//! Values of many types arrive as they were, by every way of writing: COPY, set statements, row matches.

use std::fmt::Write as _;

use millstream::event::{Cell, Change, Identity};

use super::rig::{Rig, SAME, delete, insert, update, update_from, v};

/// Column type and values in SQL.
const TYPES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("\"char\"", &["'x'", "''"]),
    ("int2", &["-32768", "32767"]),
    ("int8", &["-9223372036854775808", "9223372036854775807"]),
    ("numeric", &["'NaN'", "'Infinity'", "'-Infinity'", "1e-100", "12345678901234567890.123456789000"]),
    ("numeric(10,2)", &["1.5", "-99999999.99"]),
    ("float4", &["'NaN'", "'-Infinity'", "1.17549435e-38", "'-0'", "0.1"]),
    ("float8", &["'NaN'", "'Infinity'", "2.2250738585072014e-308", "'-0'", "0.1", "1e300"]),
    ("money", &["'1234.56'", "'-0.01'"]),
    ("text", &["''", "'\\N'", "E'a\\tb\\nc\\r\\\\'", "'ünïcödé 🎉'", "repeat('long', 3000)"]),
    ("varchar(5)", &["'abcde'", "''"]),
    ("char(5)", &["'ab'", "''", "'abcde'"]),
    ("name", &["'Name'"]),
    ("bytea", &["'\\x00ff27225c'", "''"]),
    ("date", &["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'5874897-12-31'"]),
    ("time(3)", &["'24:00:00'", "'12:34:56.789'"]),
    ("timetz", &["'12:34:56.789+05:30'", "'00:00:00-15:59:59'"]),
    ("timestamp", &["'infinity'", "'4713-01-01 00:00:00 BC'", "'2024-02-29 23:59:59.999999'"]),
    ("timestamptz", &["'infinity'", "'-infinity'", "'294276-12-31 23:59:59.999999+00'", "'2024-06-01 12:00+05:45'"]),
    ("interval", &["'-1 mons +2 days -03:04:05.678'", "'178000000 years'", "'0'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", &["'{\"a\": [1, 2,  3]}'", "'null'", "'\"\\u00e9\"'"]),
    ("jsonb", &["'{\"b\":1, \"a\":[true,null]}'"]),
    ("xml", &["'<a b=\"c\">t</a>'", "'just text'"]),
    ("bit(3)", &["B'101'"]),
    ("varbit", &["B''", "B'10101'"]),
    ("inet", &["'10.1.2.3'", "'10.1.2.3/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("tsvector", &["'a:1A fat:2B,4C ''it''''s'':3'"]),
    ("tsquery", &["'fat & (rat | !cat)'"]),
    ("point", &["'(1.5,-2)'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("int4range", &["'[1,10)'", "'empty'", "'(,5)'"]),
    ("tstzrange", &["'[2024-01-01 00:00+00,)'"]),
    ("int4multirange", &["'{[1,3),[5,9)}'"]),
    ("int4[]", &["'{1,NULL,3}'", "'{}'", "'[2:3]={1,2}'", "'{{1,2},{3,4}}'"]),
    ("text[]", &["'{\"a,b\",\"c\\\"d\",NULL,\"NULL\",\"\"}'"]),
    ("numeric[]", &["'{NaN,1.10}'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("oid", &["4294967295"]),
    ("regclass", &["'pg_catalog.pg_class'"]),
    ("public.mood", &["'happy'", "'it''s, \"so\" so'"]),
    ("public.mood[]", &["'{happy,\"it''s, \\\"so\\\" so\"}'"]),
    ("public.positive", &["7"]),
    ("public.pair", &["ROW(1, 'a,\"b\\')", "ROW(NULL, '')"]),
    ("public.pair[]", &["ARRAY[ROW(1, 'x'), ROW(2, NULL)]::public.pair[]"]),
    ("public.spans", &["'[1.5,2.5]'"]),
    ("public.hstore", &["'a=>1, b=>NULL, \"c d\"=>\"x,y\"'"]),
    ("public.citext", &["'MiXed'"]),
];

const DDL: &str = "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('happy', 'it''s, \"so\" so');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TYPE pair AS (n int, t text); CREATE TYPE spans AS RANGE (subtype = numeric);";

fn column(index: usize) -> String {
    format!("c{index}")
}

/// Tables `source`, filled by SQL, and `keyed` and `heap` like it.
fn ddl() -> String {
    let mut columns = String::from("id int");
    for (index, (kind, _)) in TYPES.iter().enumerate() {
        write!(columns, ", {} {kind}", column(index)).unwrap();
    }
    let mut sql = format!(
        "{DDL} CREATE TABLE source ({columns}); CREATE TABLE keyed ({columns}, PRIMARY KEY (id)); CREATE TABLE heap ({columns});"
    );
    let rounds = TYPES.iter().map(|(_, values)| values.len()).max().unwrap();
    for round in 0..=rounds {
        let values: Vec<_> = TYPES
            .iter()
            .map(|(kind, values)| values.get(round).map_or("NULL".into(), |value| format!("CAST({value} AS {kind})")))
            .collect();
        write!(sql, "INSERT INTO source VALUES ({round}, {});", values.join(", ")).unwrap();
    }
    sql
}

/// The source's rows as its output functions print them under the log's settings.
async fn printed(rig: &Rig, table: &str) -> Vec<Vec<Option<String>>> {
    let sql = format!(
        "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET timezone = 'UTC';
         SET lc_monetary = 'C'; SET search_path = ''; SELECT * FROM public.{table} ORDER BY id"
    );
    let mut connection = rig.replica.connection().await;
    crate::support::sql::query(&mut connection, &sql).await.unwrap()
}

fn cells(row: &[Option<String>]) -> Vec<Cell<'_>> {
    row.iter().map(|cell| cell.as_deref().map_or(Cell::Null, v)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_arrive_by_copy_and_by_set_statements() {
    let mut rig = Rig::new(&ddl()).await;
    let rows = printed(&rig, "source").await;
    let t = rig.table("keyed").await;
    // Few rows go by set statements.
    let end = rig.log.transaction(rows.iter().map(|row| insert(&t, &cells(row))).collect()).await;
    rig.drain(end).await;
    assert_eq!(printed(&rig, "keyed").await, rows);
    // Swapped round by updates, then back, with a column left alone.
    let count = rows.len();
    let mut shifted = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut other = rows[(index + 1) % count].clone();
        other[0].clone_from(&row[0]);
        shifted.push(other);
    }
    let end = rig.log.transaction(shifted.iter().map(|row| update(&t, &cells(row))).collect()).await;
    rig.drain(end).await;
    assert_eq!(printed(&rig, "keyed").await, shifted);
    // Many rows go by COPY.
    let truncate = Change::Truncate { tables: vec![t.id], cascade: false, restart_identity: false };
    let mut copied = vec![truncate];
    let mut expected = Vec::new();
    for number in 0..40 {
        let mut row = rows[number % count].clone();
        row[0] = Some(format!("{number}"));
        copied.push(insert(&t, &cells(&row)));
        expected.push(row);
    }
    let end = rig.log.transaction(copied).await;
    rig.drain(end).await;
    assert_eq!(printed(&rig, "keyed").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_find_their_row_in_a_table_without_a_key() {
    let mut rig = Rig::new(&ddl()).await;
    let rows = printed(&rig, "source").await;
    let t = rig.table_in("public", "heap", Identity::Full).await;
    rig.log.transaction(rows.iter().map(|row| insert(&t, &cells(row))).collect()).await;
    let renumber = |row: &Vec<Option<String>>, unchanged: bool| {
        let mut new: Vec<Cell<'_>> = if unchanged { vec![SAME; row.len()] } else { cells(row) };
        new[0] = Cell::Value(b"100");
        update_from(&t, &cells(row), &new)
    };
    let mut changes: Vec<_> = rows.iter().take(3).map(|row| renumber(row, true)).collect();
    changes.extend(rows.iter().skip(3).map(|row| delete(&t, &cells(row))));
    let end = rig.log.transaction(changes).await;
    rig.drain(end).await;
    assert_eq!(rig.rows("SELECT count(*), min(id), max(id) FROM heap").await, "3|100|100");
}
