//! Help, exit codes, `explain`, closed pipes, roles.

use std::process::{Command, Stdio};
use std::time::Duration;

use millstream::cli::{Cli, Exit};
use millstream::halt::HaltCode;
use millstream::replica::postgres::ledger;

use super::NOWHERE;
use crate::support::daemon::{Site, binary, pair_configuration};
use crate::support::postgres::{ROLE, shared, shared_replica};
use crate::support::sql;
use crate::support::wait::{LONG, until};

/// Every command that has a help page of its own.
const COMMANDS: &[&[&str]] = &[
    &["run"],
    &["check"],
    &["init"],
    &["teardown"],
    &["status"],
    &["pause"],
    &["resume"],
    &["reload"],
    &["log", "tail"],
    &["quarantine"],
    &["quarantine", "add"],
    &["explain"],
];

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary()).args(arguments).env_remove("MILLSTREAM_CONFIG").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_help_has_an_example_that_the_program_takes() {
    use clap::CommandFactory as _;
    for command in COMMANDS {
        let (code, help, _) = run(&[command, &["--help"][..]].concat());
        assert_eq!(code, Some(0), "{command:?}");
        let mut examples = 0;
        for line in help.lines().filter(|line| line.trim_start().starts_with("millstream ")) {
            // What stands behind two spaces explains.
            let line = line.split('|').next().unwrap_or_default().trim().split("  ").next().unwrap_or_default();
            let words: Vec<String> = line.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect();
            Cli::command().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
            examples += 1;
        }
        assert!(examples > 0, "{command:?} has no example:\n{help}");
    }
}

#[test]
fn help_and_documentation_list_every_exit_code() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    let operations = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    for exit in Exit::ALL {
        let number = exit as u8;
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{number} "))), "{number} in --help");
        assert!(operations.contains(&format!("| {number} |")), "{number} in docs/operations.md");
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    for arguments in
        [&["nonsense"][..], &["run", "--password=x"], &["run", "--roles", "juggle"], &["log"], &["explain", "no_such"], &[]]
    {
        let (code, _, complaint) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(!complaint.is_empty() && !complaint.contains("panicked"), "{complaint}");
    }
    assert_eq!(run(&["--version"]).0, Some(0));
}

#[test]
fn every_code_is_explained_offline_and_in_the_documentation() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/halts.md")).unwrap();
    let (code, list, _) = run(&["explain"]);
    assert_eq!(code, Some(0));
    for halt in HaltCode::ALL {
        let explanation = halt.explain();
        assert!(explanation.meaning.len() > 20 && explanation.remedy.len() > 20, "{halt} has no meaning or remedy");
        let (code, text, _) = run(&["explain", halt.as_str()]);
        assert_eq!(code, Some(0));
        let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain(&text).contains(explanation.remedy), "{halt}: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(list.contains(halt.as_str()), "{halt} is not in the list");
        let section = page.split("\n## ").find(|section| section.starts_with(&format!("`{halt}`")));
        let section = section.unwrap_or_else(|| panic!("{halt} has no place in docs/halts.md"));
        assert!(
            section.contains(explanation.meaning) && section.contains(explanation.remedy),
            "docs/halts.md differs from halt.rs at {halt}"
        );
        let after = if halt.mendable() { "Tried again" } else { "Stays" };
        assert!(section.contains(after), "docs/halts.md: {halt}");
    }
    let sections = page.matches("\n## `").count();
    assert_eq!(sections, HaltCode::ALL.len(), "docs/halts.md has codes that halt.rs has not");
    let (_, json, _) = run(&["explain", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), HaltCode::ALL.len());
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    for arguments in [&["explain"][..], &["--help"], &["explain", "--json"]] {
        let mut child = Command::new(binary()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_cannot_be_are_refused() {
    let site = Site::new(NOWHERE);
    for (roles, says) in [("capture", "needs a Kafka queue"), ("capture,archive", "has no archive")] {
        let outcome = site.run(&["run", "--roles", roles]).await;
        assert_eq!(outcome.code, Some(78), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{}", outcome.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_while_its_databases_are_down_says_so_and_stops_cleanly() {
    let site = Site::new(NOWHERE);
    let daemon = site.start();
    until("/healthz", Duration::from_secs(20), async || site.get("/healthz").await.is_ok_and(|(code, _)| code == 200)).await;
    let (code, reasons) = site.get("/readyz").await.unwrap();
    assert_eq!(code, 503);
    assert!(reasons.contains("source shop") && reasons.contains("replica reports"), "{reasons}");
    assert_eq!(site.run(&["status"]).await.code, Some(1));
    assert_eq!(daemon.terminate().await.code(), Some(0));
    let outcome = site.run(&["status"]).await;
    assert_eq!(outcome.code, Some(3));
    assert!(outcome.stderr.contains("no daemon answers at http://127.0.0.1:"), "{}", outcome.stderr);
}

/// `init` with a changed file and a daemon with the old one talked past each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_says_that_its_configuration_file_has_changed() {
    let site = Site::new(NOWHERE);
    let daemon = site.start();
    let changed = async || site.status().await.map(|status| status["daemon"]["configuration_changed"].clone());
    until("the daemon to answer", LONG, async || changed().await == Some(false.into())).await;
    let text = std::fs::read_to_string(site.configuration()).expect("the configuration");
    std::fs::write(site.configuration(), format!("{text}# more\n")).expect("another configuration");
    assert_eq!(changed().await, Some(true.into()));
    let page = site.run(&["status"]).await.stdout;
    assert!(page.contains("has changed since this daemon read it"), "{page}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

/// The file is named by `-c`, or by the variable, for every command.
#[tokio::test]
async fn the_configuration_is_found_by_the_variable_and_a_server_that_is_not_there_is_3() {
    let site = Site::new(NOWHERE);
    let with_variable = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).env("MILLSTREAM_CONFIG", site.configuration()).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output().expect("millstream"))
    };
    let init = with_variable(&["init"]).await.expect("join");
    let complaint = String::from_utf8_lossy(&init.stderr);
    assert_eq!(init.status.code(), Some(3), "{complaint}");
    assert!(complaint.contains("127.0.0.1:1"), "names where it is: {complaint}");
    // A variable that names no file is not passed over.
    let mut nothing = Command::new(binary());
    nothing.arg("check").env("MILLSTREAM_CONFIG", site.folder().join("none.toml"));
    let nothing = nothing.output().expect("millstream");
    assert_eq!(nothing.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("none.toml"));
}

#[tokio::test]
async fn a_warning_is_0_and_under_strict_1() {
    let source = crate::support::postgres::shared().await.new_database().await;
    let replica = crate::support::postgres::shared_replica().await.new_database().await;
    source.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    let text = std::fs::read_to_string(site.configuration()).expect("configuration");
    // A pattern that matches nothing.
    site.configure(&text.replacen("\"public.*\"", "\"public.*\", \"none.such\"", 1));
    let lax = site.run(&["check"]).await;
    assert!(lax.code == Some(0) && lax.stdout.contains("none.such"), "{lax:?}");
    assert_eq!(site.run(&["check", "--strict"]).await.code, Some(1));
}

/// Statements said neither where they are to be run nor as whom, and commands nothing of the configuration.
#[tokio::test]
async fn what_is_printed_says_where_it_is_to_be_run() {
    let source = crate::support::postgres::shared().await.new_database().await;
    let replica = crate::support::postgres::shared_replica().await.new_database().await;
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE bare (a int)").await;
    replica.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA own; CREATE TABLE own.t (id int PRIMARY KEY)").await;
    let mut site = Site::pair(&source, &replica);
    site.without_triggers = true;
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = flat(&site.run(&["check"]).await.stdout);
    let program = format!("millstream -c {}", site.configuration().display());
    let (at_source, at_replica) = (source.connect_tcp().address(), replica.connect_tcp().address());
    for part in [
        format!("do on the source, {at_source}, as a superuser: ALTER TABLE"),
        format!("do on the replica, {at_replica}, as the table's owner: ALTER TABLE"),
        format!("{program} init --source shop --superuser-sql | psql -X -v ON_ERROR_STOP=1 -h {}", source.connect_tcp().host),
    ] {
        assert!(shown.contains(&part), "'{part}' is not in: {shown}");
    }
    let refused = flat(&site.run(&["init"]).await.stdout);
    for part in [
        format!("Refused: source shop, {at_source}: public.bare: "),
        format!("Refused: replica reports, {at_replica}: public.t: "),
    ] {
        assert!(refused.contains(&part), "'{part}' is not in: {refused}");
    }
    source.execute("DROP TABLE bare").await;
    replica.execute("DROP TABLE t").await;
    let dry = flat(&site.must(&["init", "--dry-run"]).await);
    assert!(dry.contains(&format!("-- replica reports, {} CREATE TABLE", replica.connect_tcp())), "{dry}");
    // A command that fails says the same.
    let tail = site.run(&["log", "tail", "shop"]).await;
    assert!(tail.stderr.contains(&format!("{program} init")), "{tail:?}");
}

/// For scripts: neither right nor wrong, but not now. The role has no session left, which the server says with SQLSTATE 53300.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_no_session_left_is_75_and_the_same_command_works_later() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    let role = format!("busy_{}", source.name);
    source
        .execute(&format!(
            "CREATE ROLE {role} LOGIN REPLICATION CONNECTION LIMIT 0; GRANT ALL ON DATABASE {} TO {role}; \
             CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO {role}",
            source.name
        ))
        .await;
    let as_role = source.url().replacen(&format!("{ROLE}@"), &format!("{role}@"), 1);
    let site = Site::new(&pair_configuration(&as_role, &replica.url(), "embedded:{folder}/queue"));
    let busy = site.run(&["init"]).await;
    assert_eq!(busy.code, Some(Exit::Temporary as i32), "{busy:?}");
    assert_eq!(Exit::Temporary as i32, 75);
    assert!(busy.stderr.contains(&format!("too many connections for role \"{role}\"")), "{busy:?}");
    source.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 10")).await;
    site.must(&["init"]).await;
    site.must(&["teardown", "--yes"]).await;
}

/// Both have planned before either writes: who comes second finds the ledger made, and is to run again to see what is left to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_two_inits_at_once_is_75() {
    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let site = Site::pair(&source, &replica);
    let whole = std::fs::read_to_string(site.configuration()).unwrap();
    let (start, end) = (whole.find("[replica.reports]").unwrap(), whole.find("[http]").unwrap());
    site.configure(&format!("{}{}", &whole[..start], &whole[end..]));
    site.must(&["init"]).await;
    site.configure(&whole);
    let mut session = replica.connection().await;
    ledger::migrate(&mut session).await.unwrap();
    sql::query(&mut session, "BEGIN; LOCK TABLE millstream.replica IN SHARE MODE").await.unwrap();
    let let_both_go = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'millstream init' \
             AND wait_event_type = 'Lock'";
        until("both to be about to write the ledger", LONG, async || replica.value(waiting).await == "2").await;
        sql::query(&mut session, "COMMIT").await.unwrap();
    };
    let (one, other, ()) = tokio::join!(site.run(&["init"]), site.run(&["init"]), let_both_go);
    let (good, busy) = if one.code == Some(0) { (one, other) } else { (other, one) };
    assert_eq!((good.code, busy.code), (Some(0), Some(75)), "{good:?} {busy:?}");
    assert!(busy.stderr.contains("another init has made the ledger of replica 'reports' meanwhile"), "{busy:?}");
    site.must(&["init"]).await;
    site.must(&["teardown", "--yes"]).await;
}
