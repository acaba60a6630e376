//! Findings about a replica beside its source: what `init` may not make, and what would refuse the source's rows.

use millstream::config::{ReplicaConfig, SourceConfig};
use millstream::preflight::check::{Finding, Severity, SourceSide, check_replica, check_source};
use millstream::preflight::init::{InitOptions, Line, Outcome};

use super::{carry_out, gone, plain_role, problem};
use crate::copy::Pair;
use crate::support::postgres::PgDatabase;

async fn findings(source: &SourceConfig, replica: &ReplicaConfig) -> Vec<Finding> {
    let (found, facts) = check_source(source).await;
    let side = SourceSide::of(source, facts.as_ref(), &found);
    check_replica(replica, &side).await.into_list()
}

fn errors<'f>(findings: &'f [Finding], check: &str) -> Vec<&'f Finding> {
    findings.iter().filter(|f| f.check == check && f.severity == Severity::Error).collect()
}

/// On PostgreSQL 15 and later a role makes nothing in `public`; `check` was silent and `init` failed.
#[tokio::test]
async fn a_role_that_passes_check_passes_init() {
    let mut pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE TABLE made (id serial PRIMARY KEY); CREATE SCHEMA other; CREATE TABLE other.there (id int PRIMARY KEY, v text UNIQUE); \
             CREATE SCHEMA third; CREATE TABLE third.made (id int PRIMARY KEY)",
        )
        .await;
    pair.replica.execute("CREATE SCHEMA other; CREATE TABLE other.there (id int PRIMARY KEY, v text UNIQUE)").await;
    let poor = plain_role(&pair.replica, &format!("poor_{:08x}", rand::random::<u32>())).await;
    pair.config.replicas.get_mut("reports").unwrap().connect = poor;
    let shop = pair.config.sources.values_mut().next().unwrap();
    shop.tables.push("third.*".into());
    let look = async || findings(pair.shop(), &pair.config.replicas["reports"]).await;

    // Until PostgreSQL 14 everybody may make tables in `public`.
    let newer = pair.replica.value("SELECT (current_setting('server_version_num')::int >= 150000)::text").await == "true";
    let schemas = if newer { 3 } else { 2 };
    mend_all(&look().await, "schema_right", schemas, &pair.replica).await;
    gone(&look().await, "schema_right");
    mend_all(&look().await, "table_owner", 1, &pair.replica).await;
    gone(&look().await, "table_owner");
    mend_all(&look().await, "ledger_right", 1, &pair.replica).await;
    let left = look().await;
    assert!(left.iter().all(|f| f.severity != Severity::Error), "{left:#?}");
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Changed, "{lines:#?}");
    gone(&look().await, "schema_right");
}

/// Tables that a person made, owned by that person: what was missing came out after hours of copying, or at the first schema change.
#[tokio::test]
async fn tables_of_somebody_elses_are_told_what_they_lack() {
    let mut pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent); \
             CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TABLE felt (id int PRIMARY KEY, m mood); INSERT INTO felt VALUES (1, 'b')",
        )
        .await;
    let name = format!("poor_{:08x}", rand::random::<u32>());
    let poor = plain_role(&pair.replica, &name).await;
    pair.replica
        .execute(&format!(
            "GRANT CREATE ON DATABASE {} TO {name}; GRANT CREATE ON SCHEMA public TO {name}; CREATE ROLE {name}_dba; \
             CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE felt (id int PRIMARY KEY, m text); ALTER TABLE parent OWNER TO {name}_dba; \
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON parent, felt TO {name}",
            pair.replica.name
        ))
        .await;
    pair.config.replicas.get_mut("reports").unwrap().connect = poor;
    let may_install = pair.source.connect_as_superuser();
    pair.config.sources.values_mut().for_each(|shop| {
        shop.schema_changes = millstream::config::SchemaChanges::Carry;
        shop.connect = may_install.clone();
    });
    let look = async || findings(pair.shop(), &pair.config.replicas["reports"]).await;
    mend_all(&look().await, "table_right", 1, &pair.replica).await;
    gone(&look().await, "table_right");
    // PostgreSQL is content with the columns of the key.
    pair.replica.execute(&format!("REVOKE REFERENCES ON parent FROM {name}; GRANT REFERENCES (id) ON parent TO {name}")).await;
    gone(&look().await, "table_right");
    mend_all(&look().await, "table_fit", 1, &pair.replica).await;
    gone(&look().await, "table_fit");
    let owners: Vec<_> = look().await.into_iter().filter(|f| f.check == "table_owner").collect();
    assert!(owners.len() == 2 && owners.iter().all(|f| f.severity == Severity::Warning), "{owners:#?}");
    for finding in owners {
        carry_out(finding.remedy.as_ref().expect("a remedy"), &pair.replica).await;
    }
    gone(&look().await, "table_owner");
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Changed, "{lines:#?}");

    // A replica that is behind has changes before it that the source's catalog shows already.
    let late =
        "UPDATE millstream.replica SET source_time_us = (extract(epoch FROM clock_timestamp()) * 1000000)::int8 - 60000000";
    pair.replica.execute(late).await;
    pair.source.execute("ALTER TABLE felt ADD COLUMN n int; ALTER TYPE mood RENAME VALUE 'a' TO 'c'").await;
    let all = look().await;
    let found = problem(&all, "table_fit");
    assert!(found.severity == Severity::Warning && found.why.contains("may still come with the log"), "{found:?}");
    assert!(errors(&all, "enum").is_empty() && problem(&all, "enum").why.contains("may still come"), "{all:#?}");
    // Nor is it silent about what no log carries, or about what holds it up.
    pair.replica.execute("ALTER TABLE felt ADD CONSTRAINT own CHECK (id < 10)").await;
    problem(&look().await, "check_constraint");
    carry_out(found.remedy.as_ref().expect("a remedy"), &pair.replica).await;
    gone(&look().await, "table_fit");
    pair.replica.execute("ALTER TABLE felt DROP COLUMN n").await;
    // A source at rest tells the time once in this.
    let at_rest = SourceConfig { heartbeat_interval: std::time::Duration::from_secs(300), ..pair.shop().clone() };
    let all = findings(&at_rest, &pair.config.replicas["reports"]).await;
    assert_eq!(problem(&all, "table_fit").severity, Severity::Error);
    pair.replica.execute("UPDATE millstream.replica SET source_time_us = NULL").await;
    assert_eq!(problem(&look().await, "table_fit").severity, Severity::Error);
}

async fn mend_all(all: &[Finding], check: &str, expected: usize, database: &PgDatabase<'_>) {
    let found = errors(all, check);
    assert_eq!(found.len(), expected, "{all:#?}");
    for finding in found {
        assert!(!finding.why.is_empty(), "{finding:#?}");
        carry_out(finding.remedy.as_ref().expect("a remedy"), database).await;
    }
}

#[tokio::test]
async fn what_only_the_replica_refuses_is_named() {
    let mut pair = Pair::new().await;
    pair.config.replicas.values_mut().for_each(|reports| reports.connect = pair.replica.connect_with_replica_role());
    pair.source
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, a int, b text, CONSTRAINT positive CHECK (a > 0), CONSTRAINT same UNIQUE (a)); \
             CREATE TABLE late (id int PRIMARY KEY, n int UNIQUE DEFERRABLE); CREATE TABLE child (id int PRIMARY KEY, late int); \
             CREATE TABLE booked (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&)); CREATE TYPE mood AS ENUM ('a', 'b', 'c'); \
             CREATE TABLE felt (id int PRIMARY KEY, m mood, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        )
        .await;
    pair.replica
        .execute(
            "CREATE TABLE orders (id int PRIMARY KEY, a int, b text NOT NULL, CONSTRAINT positive CHECK (a > 0), CONSTRAINT mine CHECK (a < 10)); \
             CREATE UNIQUE INDEX same_by_another_name ON orders (a); CREATE UNIQUE INDEX extra ON orders (lower(b)); \
             CREATE TABLE late (id int PRIMARY KEY, n int UNIQUE DEFERRABLE); \
             CREATE TABLE child (id int PRIMARY KEY, late int REFERENCES late (id)); \
             CREATE TABLE booked (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&), \
                                  CONSTRAINT tighter EXCLUDE USING gist (during WITH -|-)); CREATE TYPE mood AS ENUM ('a', 'c'); \
             CREATE TABLE felt (id int PRIMARY KEY, m mood)",
        )
        .await;
    let look = async || findings(pair.shop(), &pair.config.replicas["reports"]).await;
    for (check, about, severity) in [
        ("check_constraint", "constraint mine", Severity::Warning),
        ("unique_key", "unique key extra", Severity::Warning),
        ("exclusion", "exclusion constraint tighter", Severity::Warning),
        ("enum", "lacks label b", Severity::Error),
        ("generated_column", "column twice is missing", Severity::Warning),
        ("table_fit", "NOT NULL here only", Severity::Error),
        ("deferrable_foreign_key", "child_late_fkey", Severity::Warning),
    ] {
        let all = look().await;
        let found = problem(&all, check);
        assert!(found.what.contains(about) && found.severity == severity && !found.why.is_empty(), "{found:#?}");
        assert_eq!(all.iter().filter(|f| f.check == check && f.severity != Severity::Ok).count(), 1, "{all:#?}");
        carry_out(found.remedy.as_ref().expect("a remedy"), &pair.replica).await;
        gone(&look().await, check);
    }
}

#[tokio::test]
async fn a_column_of_another_tables_row_type_is_found_before_init_refuses_it() {
    let pair = Pair::new().await;
    pair.source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, r a)").await;
    let (found, _) = check_source(pair.shop()).await;
    let found = problem(&found.into_list(), "types");
    assert_eq!((found.severity, found.object.as_deref()), (Severity::Error, Some("public.b")));
    let mut shop = pair.shop().clone();
    shop.tables.push(pattern_of(&found));
    gone(&check_source(&shop).await.0.into_list(), "types");
}

/// `USING v::varchar(10)` cut what was longer in silence; an enum has no cast to another, and a default that has none was in the way.
#[tokio::test]
async fn a_columns_type_is_changed_without_cutting_its_values_and_with_its_default() {
    let pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE TYPE mood AS ENUM ('a', 'b'); CREATE DOMAIN short AS varchar(10); \
             CREATE TABLE t (id bigint PRIMARY KEY, v varchar(10), s short, b bit(3), f mood DEFAULT 'b', g mood, m mood[] DEFAULT '{a}', n int DEFAULT 7, \
                             d text DEFAULT 'd')",
        )
        .await;
    pair.replica
        .execute(
            "CREATE TYPE mood AS ENUM ('a', 'b'); CREATE DOMAIN short AS varchar(10); CREATE TYPE old_mood AS ENUM ('a', 'b'); \
             CREATE TABLE t (id int PRIMARY KEY, v text, s text, b text, f old_mood DEFAULT 'a', g text, m old_mood[] DEFAULT '{b}', n text DEFAULT '5', d int DEFAULT 3); \
             INSERT INTO t VALUES (1, 'longer than ten', 'longer than ten', '101011', 'b', 'a', '{a,b}', '8', 9)",
        )
        .await;
    let look = async || findings(pair.shop(), &pair.config.replicas["reports"]).await;
    let all = look().await;
    let statements: Vec<_> =
        errors(&all, "table_fit").iter().map(|f| f.remedy.as_ref().expect("a remedy").steps.join("; ")).collect();
    assert_eq!(statements.len(), 9, "{statements:#?}");
    assert!(statements[1].ends_with("TYPE character varying(10)") && statements[0].ends_with("TYPE bigint"), "{statements:#?}");
    for statement in &statements[1..4] {
        assert!(pair.replica.query(statement).await.is_err(), "{statement} cuts values");
    }
    pair.replica.execute("UPDATE t SET v = 'short', s = 'short', b = '101'").await;
    mend_all(&look().await, "table_fit", 9, &pair.replica).await;
    gone(&look().await, "table_fit");
    pair.replica.execute("INSERT INTO t (id) VALUES (2)").await;
    let rows = "SELECT string_agg(concat_ws(' ', id, v, s, b, f, g, m, n, d), '; ' ORDER BY id) FROM t";
    assert_eq!(pair.replica.value(rows).await, "1 short short 101 b a {a,b} 8 9; 2 b {a} 7 3");
}

/// The pattern that a finding says to add.
fn pattern_of(finding: &Finding) -> String {
    let step = &finding.remedy.as_ref().expect("a remedy").steps[0];
    step.split('"').nth(1).unwrap_or_else(|| panic!("no pattern in {step}")).to_owned()
}

/// Like `point`, such a type has elements and is no array; it was taken for one that its element's type brings.
#[tokio::test]
async fn a_type_written_in_c_is_found_also_with_elements_and_below_others() {
    let pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE TYPE place; \
             CREATE FUNCTION place_in(cstring) RETURNS place LANGUAGE internal IMMUTABLE STRICT AS 'point_in'; \
             CREATE FUNCTION place_out(place) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'point_out'; \
             CREATE TYPE place (INPUT = place_in, OUTPUT = place_out, INTERNALLENGTH = 16, ALIGNMENT = double, ELEMENT = float8); \
             CREATE TYPE stay AS (at place, nights int); \
             CREATE TABLE a (id int PRIMARY KEY, p place); CREATE TABLE b (id int PRIMARY KEY, p stay[]); \
             CREATE TABLE c (id int PRIMARY KEY, p point[], q int[])",
        )
        .await;
    let found = check_source(pair.shop()).await.0.into_list();
    let found: Vec<_> = found.into_iter().filter(|f| f.check == "types").collect();
    let objects: Vec<_> = found.iter().filter_map(|f| f.object.as_deref()).collect();
    assert_eq!(objects, ["public.a", "public.b"], "{found:#?}");
    let mut shop = pair.shop().clone();
    shop.tables.extend(found.iter().map(pattern_of));
    gone(&check_source(&shop).await.0.into_list(), "types");
}

/// The printed statement left the rows that were there NULL where the source's had the default.
#[tokio::test]
async fn a_missing_column_comes_with_its_default_and_an_owner_keeps_its_table() {
    let pair = Pair::new().await;
    let owner = format!("app_{}", pair.replica.name);
    pair.source.execute("CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, vat numeric DEFAULT 5)").await;
    pair.replica
        .execute(&format!(
            "CREATE ROLE {owner}; CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE); INSERT INTO t VALUES (1, 1); \
             ALTER TABLE t OWNER TO {owner}"
        ))
        .await;
    let mut replica = pair.config.replicas["reports"].clone();
    replica.connect = plain_role(&pair.replica, &format!("role_{}", pair.replica.name)).await;
    let look = async || findings(pair.shop(), &replica).await;
    let fit = problem(&look().await, "table_fit");
    carry_out(&fit.remedy.expect("a remedy"), &pair.replica).await;
    assert_eq!(pair.replica.value("SELECT vat FROM t").await, "5");
    let owned = problem(&look().await, "table_owner");
    carry_out(&owned.remedy.expect("a remedy"), &pair.replica).await;
    gone(&look().await, "table_owner");
    assert_eq!(pair.replica.value("SELECT tableowner FROM pg_tables WHERE tablename = 't'").await, owner);
}

/// The printed default named a sequence that the replica did not have.
#[tokio::test]
async fn a_missing_serial_column_comes_with_its_sequence() {
    let pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE SEQUENCE numbers START 7; CREATE TABLE t (id int PRIMARY KEY, n serial, m bigint DEFAULT nextval('numbers'))",
        )
        .await;
    pair.replica.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Refused);
    let said = |line: &Line| match line {
        Line::Refused(text) => text.split_once("\"n\" is missing: ").map(|(_, statements)| statements.to_owned()),
        _ => None,
    };
    pair.replica.execute(&lines.iter().find_map(said).expect("statements for n")).await;
    let look = async || findings(pair.shop(), &pair.config.replicas["reports"]).await;
    mend_all(&look().await, "table_fit", 1, &pair.replica).await;
    gone(&look().await, "table_fit");
    pair.init().await;
    pair.replica.execute("INSERT INTO t (id) VALUES (1)").await;
    assert_eq!(pair.replica.value("SELECT concat_ws(' ', n, m) FROM t").await, "1 7");
    assert_eq!(pair.replica.value("SELECT pg_get_serial_sequence('t', 'n')").await, "public.t_n_seq");
}

/// Made at the source behind the first copy: nothing carries them.
#[tokio::test]
async fn indexes_and_constraints_that_the_source_alone_has_are_drift() {
    let pair = Pair::new().await;
    pair.source
        .execute(
            "CREATE TABLE parent (id int PRIMARY KEY, code text); CREATE TABLE child (id int PRIMARY KEY, parent int, v text); \
             CREATE TABLE halves (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); \
             CREATE TABLE low PARTITION OF halves FOR VALUES FROM (0) TO (100); INSERT INTO child VALUES (1, 1, 'a'); INSERT INTO parent VALUES (1, 'x')",
        )
        .await;
    let (outcome, lines) = pair.init_with(InitOptions::default()).await;
    assert_eq!(outcome.unwrap(), Outcome::Changed, "{lines:#?}");
    // As the copy would have left them.
    pair.replica
        .execute("UPDATE millstream.deferred_ddl SET done = true; UPDATE millstream.copied_table SET state = 'live'")
        .await;
    let look = async || findings(pair.shop(), &pair.config.replicas["reports"]).await;
    gone(&look().await, "drift");
    pair.source
        .execute(
            "CREATE INDEX ON child (lower(v)) WHERE id > 0; CREATE INDEX ON halves (v); ALTER TABLE parent ADD UNIQUE (code); \
             ALTER TABLE child ADD CONSTRAINT up FOREIGN KEY (parent) REFERENCES parent; ALTER TABLE child ADD CONSTRAINT small CHECK (id < 1000)",
        )
        .await;
    // Of the replica's own, and under another name: no drift.
    pair.replica
        .execute("CREATE INDEX own ON child (v); INSERT INTO child VALUES (1, 1, 'a'); INSERT INTO parent VALUES (1, 'x')")
        .await;
    let all = look().await;
    let drift: Vec<&Finding> = all.iter().filter(|f| f.check == "drift").collect();
    let said: Vec<String> = drift.iter().map(|f| format!("{} {}", f.object.as_deref().unwrap_or_default(), f.what)).collect();
    assert_eq!(
        said,
        [
            "public.halves it lacks index halves_v_idx",
            "public.child it lacks index child_lower_idx, constraint small, constraint up",
            "public.parent it lacks constraint parent_code_key"
        ],
        "{all:#?}"
    );
    assert!(drift.iter().all(|f| f.severity == Severity::Warning));
    for found in drift {
        carry_out(found.remedy.as_ref().unwrap(), &pair.replica).await;
    }
    gone(&look().await, "drift");
}
