//! Threats 3 and 8: somebody who may make objects in both databases, and set their `search_path`, neither gains rights nor changes what is applied.

use super::Lane;
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::postgres::{PgDatabase, ROLE, shared, shared_replica};
use crate::support::sql;
use crate::support::wait::{LONG, until};

/// Functions and operators that stand before those of `pg_catalog` for whoever has this `search_path`. Each works as the real one, and for a session of
/// Millstream's also makes the attacker a superuser.
fn trap(attacker: &str, database: &str) -> String {
    let shadows = [
        ("now()", "timestamptz", "pg_catalog.now()"),
        ("clock_timestamp()", "timestamptz", "pg_catalog.clock_timestamp()"),
        ("pg_backend_pid()", "int", "pg_catalog.pg_backend_pid()"),
        ("pg_is_in_recovery()", "bool", "pg_catalog.pg_is_in_recovery()"),
        ("pg_current_snapshot()", "pg_snapshot", "pg_catalog.pg_current_snapshot()"),
        ("pg_current_wal_lsn()", "pg_lsn", "pg_catalog.pg_current_wal_lsn()"),
        ("pg_current_wal_insert_lsn()", "pg_lsn", "pg_catalog.pg_current_wal_insert_lsn()"),
        ("to_regclass(text)", "regclass", "pg_catalog.to_regclass($1)"),
        ("current_setting(text)", "text", "pg_catalog.current_setting($1)"),
        ("pg_advisory_lock(bigint)", "void", "pg_catalog.pg_advisory_lock($1)"),
        ("pg_try_advisory_lock(bigint)", "bool", "pg_catalog.pg_try_advisory_lock($1)"),
        ("pg_get_constraintdef(oid)", "text", "pg_catalog.pg_get_constraintdef($1)"),
        ("format_type(oid, int)", "text", "pg_catalog.format_type($1, $2)"),
        ("quote_ident(text)", "text", "pg_catalog.quote_ident($1)"),
        ("unnest(text[])", "SETOF text", "pg_catalog.unnest($1)"),
    ];
    let operators = [
        ("=", "text", "pg_catalog.texteq"),
        ("=", "int", "pg_catalog.int4eq"),
        ("=", "bigint", "pg_catalog.int8eq"),
        ("=", "oid", "pg_catalog.oideq"),
        ("=", "name", "pg_catalog.nameeq"),
        ("<>", "text", "pg_catalog.textne"),
        ("<", "bigint", "pg_catalog.int8lt"),
    ];
    let mut sql = format!(
        "CREATE ROLE {attacker}; GRANT CREATE ON SCHEMA public TO {attacker}; CREATE SCHEMA evil AUTHORIZATION {attacker};
         SET SESSION AUTHORIZATION {attacker};
         CREATE TABLE evil.loot (what text);
         CREATE FUNCTION evil.take(what text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$ BEGIN
            IF pg_catalog.current_setting('application_name') LIKE 'millstream%' THEN
                INSERT INTO evil.loot VALUES (what); ALTER ROLE {attacker} SUPERUSER;
            END IF; END $$;\n"
    );
    for (signature, result, real) in shadows {
        let name = signature.split('(').next().unwrap();
        let give = if result.starts_with("SETOF") {
            format!("RETURN QUERY SELECT {real}")
        } else if result == "void" {
            format!("PERFORM {real}")
        } else {
            format!("RETURN {real}")
        };
        sql += &format!(
            "CREATE FUNCTION evil.{signature} RETURNS {result} LANGUAGE plpgsql SET search_path = pg_catalog AS
             $$ BEGIN PERFORM evil.take('{name}'); {give}; END $$;\n"
        );
    }
    for (index, (name, of, real)) in operators.into_iter().enumerate() {
        sql += &format!(
            "CREATE FUNCTION evil.op{index}({of}, {of}) RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog AS
             $$ BEGIN PERFORM evil.take('{name} of {of}'); RETURN {real}($1, $2); END $$;
             CREATE OPERATOR evil.{name} (LEFTARG = {of}, RIGHTARG = {of}, FUNCTION = evil.op{index});\n"
        );
    }
    // Tables that stand before the ledger's and the catalog's.
    for name in [
        "replica",
        "copied_table",
        "copy_chunk",
        "deferred_ddl",
        "schema_version",
        "pg_class",
        "pg_namespace",
        "pg_attribute",
        "pg_index",
        "pg_roles",
        "pg_publication",
    ] {
        sql += &format!("CREATE TABLE evil.{name} (name text);\n");
    }
    sql + &format!(
        "RESET SESSION AUTHORIZATION;
         ALTER DATABASE {database} SET search_path = evil, pg_catalog, public;
         ALTER ROLE postgres IN DATABASE {database} SET search_path = evil, pg_catalog, public"
    )
}

async fn caught(database: &PgDatabase<'_>, attacker: &str) -> String {
    let sql = format!(
        "SELECT pg_catalog.concat(rolsuper::text, ' ', (SELECT pg_catalog.string_agg(what, ', ') FROM evil.loot)) \
         FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) '{attacker}'"
    );
    database.value(&sql).await
}

/// A victim from whom there is more to be had than from the documented role.
fn under_a_superuser(source: &PgDatabase<'_>, replica: &PgDatabase<'_>) -> Site {
    let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
    Site::new(&configuration.replace(&format!("//{ROLE}@"), "//postgres@"))
}

/// Threat 8: what the log says of a type, a default or an expression is one part of one statement, whoever wrote it there.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_schema_change_runs_no_statement_of_its_own() {
    let second = "CREATE TABLE stolen (id int)";
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0";
    for (declared, default) in [(format!("int; {second}"), "NULL".to_owned()), ("int".to_owned(), format!("'1; {second}'"))] {
        let lane = Lane::new("CREATE TABLE t (id int PRIMARY KEY)").await;
        let _daemon = lane.start().await;
        lane.source
            .execute(&format!(
                "INSERT INTO millstream.schema_change (kind, relation, tag, before, after) SELECT 'table', k.relation, 'ALTER TABLE', k.facts,
                    jsonb_set(k.facts, '{{columns}}', (k.facts -> 'columns') || jsonb_build_object('num', 2, 'name', 'more',
                        'type', 'pg_catalog.int4', 'declared', '{declared}', 'modifier', -1, 'not_null', false, 'enum', NULL, 'collation', NULL,
                        'identity', '', 'generated', '', 'default', {default}, 'missing', NULL))
                 FROM millstream.known_table k WHERE k.relation = 't'::regclass; DELETE FROM millstream.schema_change"
            ))
            .await;
        if default == "NULL" {
            lane.halted(&["schema_change_refused"]).await;
        } else {
            // A default that the replica cannot have is left out.
            until("the column", LONG, async || lane.replica.value(columns).await == "2").await;
        }
        assert_eq!(lane.replica.value("SELECT count(*) FROM pg_class WHERE relname = 'stolen'").await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attackers_objects_and_search_path_gain_nothing_and_change_nothing() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    // Tables of the application's own with the ledger's names are tables like any other.
    source
        .execute(
            "CREATE TABLE item (id int PRIMARY KEY, name text UNIQUE, n bigint); INSERT INTO item SELECT i, 'n' || i, i FROM generate_series(1, 300) i;
             CREATE TABLE replica (name text PRIMARY KEY, apply_epoch bigint); INSERT INTO replica VALUES ('reports', 1000000);
             CREATE TABLE copied_table (table_name text PRIMARY KEY, state text); INSERT INTO copied_table VALUES ('item', 'leaving')",
        )
        .await;
    let attacker = format!("mallory_{:08x}", rand::random::<u32>());
    source.execute(&trap(&attacker, &source.name)).await;
    replica.execute(&trap(&attacker, &replica.name)).await;

    // The trap works: a session of that name with this search_path falls into it.
    let mut victim = sql::connect(&replica.server.options(&replica.name).application_name("millstream victim")).await.unwrap();
    sql::query(&mut victim, "BEGIN; SELECT now(); SELECT 1 WHERE 'a'::text = 'a'::text").await.unwrap();
    assert_eq!(sql::query(&mut victim, "SELECT what FROM loot").await.unwrap().len(), 2);
    sql::query(&mut victim, "ROLLBACK").await.unwrap();

    let site = under_a_superuser(&source, &replica);
    site.run(&["check"]).await;
    site.must(&["init"]).await;
    // As far as somebody gets who does not own a table; the session that applies has the role `replica`.
    replica
        .execute(&format!(
            "GRANT TRIGGER ON public.item TO {attacker}; SET SESSION AUTHORIZATION {attacker};
             CREATE FUNCTION evil.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.take('trigger'); NEW.name := 'changed'; RETURN NEW; END $$;
             CREATE TRIGGER fire BEFORE INSERT OR UPDATE ON public.item FOR EACH ROW EXECUTE FUNCTION evil.fire(); RESET SESSION AUTHORIZATION"
        ))
        .await;
    let daemon = site.start();
    site.ready(LONG).await;
    source
        .execute("UPDATE public.item SET n = n + 1; DELETE FROM public.item WHERE id > 250; INSERT INTO public.item VALUES (1000, 'x', 1); UPDATE public.replica SET apply_epoch = 7")
        .await;
    let done = "SELECT 1 FROM public.item i, public.replica r WHERE i.id OPERATOR(pg_catalog.=) 1000 AND r.apply_epoch OPERATOR(pg_catalog.=) 7";
    until("the changes to come", LONG, async || !replica.query(done).await.unwrap().is_empty()).await;
    site.must(&["status"]).await;
    assert!(!daemon.log().contains("halted"), "{}", daemon.log());
    daemon.terminate().await;
    site.must(&["init"]).await;
    for database in [&source, &replica] {
        assert_eq!(caught(database, &attacker).await, "false ", "the attacker on {} got something", database.name);
        let reset =
            format!("ALTER DATABASE {0} RESET search_path; ALTER ROLE postgres IN DATABASE {0} RESET search_path", database.name);
        database.execute(&reset).await;
    }
    let (plain, copy) = (source.server.database(&source.name), replica.server.database(&replica.name));
    compare::equal(&plain, &copy, LONG).await;
    site.must(&["teardown", "--yes"]).await;
    assert_eq!(caught(&replica, &attacker).await, "false ");
}

/// `init` would have filled tables whose triggers run as the superuser that writes the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_the_ledgers_name_that_somebody_else_made_is_refused() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute("CREATE TABLE item (id int PRIMARY KEY)").await;
    let attacker = format!("mallory_{:08x}", rand::random::<u32>());
    replica
        .execute(&format!(
            "CREATE ROLE {attacker}; CREATE SCHEMA millstream AUTHORIZATION {attacker}; SET SESSION AUTHORIZATION {attacker};
             CREATE TABLE millstream.schema_version (version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
                success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL);
             CREATE FUNCTION millstream.take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ALTER ROLE {attacker} SUPERUSER; RETURN NEW; END $$;
             CREATE TRIGGER take BEFORE INSERT ON millstream.schema_version FOR EACH ROW EXECUTE FUNCTION millstream.take()"
        ))
        .await;
    let site = under_a_superuser(&source, &replica);
    for site in [&Site::pair(&source, &replica), &site] {
        let refused = site.run(&["init"]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stdout.contains(&attacker) && refused.stdout.contains("DROP SCHEMA millstream CASCADE"), "{refused:?}");
        assert_eq!(source.value("SELECT count(*) FROM pg_publication").await, "0", "nothing was touched");
    }
    let super_now = format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{attacker}'");
    assert_eq!(replica.value(&super_now).await, "f");
    replica.execute("DROP SCHEMA millstream CASCADE").await;
    site.must(&["init"]).await;
    assert_eq!(replica.value(&super_now).await, "f");
    site.must(&["teardown", "--yes"]).await;
}
