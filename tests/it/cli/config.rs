//! Every complaint about the configuration: exit code 78, one message with file, place, key and the way on, no secret.

use super::NOWHERE;
use crate::support::daemon::{Site, binary};
use crate::support::files::write_private;

/// What is replaced in the sound configuration, by what, and what the complaint must say.
const WRONG: &[(&str, &str, &[&str])] = &[
    ("tables =", "tabels =", &[".toml:3:1:", "unknown field `tabels`", "`tables`", "^^^^^^"]),
    ("tables = [\"public.*\"]", "tables = 5", &[".toml:3:10:", "a list of texts"]),
    (
        "tables = [\"public.*\"]",
        "tables = [\"orders\"]",
        &[".toml:3:1:", "source.shop.tables", "'orders' is not a table pattern"],
    ),
    ("tables = [\"public.*\"]", "tables = [\"!public.x\"]", &[".toml:3:1:", "source.shop.tables", "name the tables"]),
    ("tables = [\"public.*\"]\n", "", &[".toml:1:9:", "source.shop.tables", "name the tables"]),
    ("tables =", "retain_max_bytes = \"50 apples\"\ntables =", &[".toml:3:20:", "'50 apples' is not a size", "50GiB"]),
    (
        "tables =",
        "heartbeat_interval = \"1m\"\nretain_max_age = \"2m\"\ntables =",
        &[".toml:4:1:", "three times heartbeat_interval"],
    ),
    ("tables =", "retain_max_age = \"5s\"\ntables =", &[".toml:3:1:", "source.shop.retain_max_age", "at least 1m"]),
    ("tables =", "retain_max_bytes = \"1kB\"\ntables =", &[".toml:3:1:", "source.shop.retain_max_bytes", "too small"]),
    ("tables =", "heartbeat_interval = 5\ntables =", &[".toml:3:22:", "a length of time with its unit"]),
    ("tables =", "on_retain_limit = \"explode\"\ntables =", &[".toml:3:19:", "unknown variant `explode`", "`drop_slot`"]),
    (
        "127.0.0.1:1/shop\"",
        "127.0.0.1:1/shop?sslmod=x\"",
        &[".toml:2:1:", "source.shop.url", "unknown parameter 'sslmod'", "sslmode"],
    ),
    ("127.0.0.1:1/shop\"", "127.0.0.1:1\"", &[".toml:2:1:", "source.shop.url", "no database"]),
    ("127.0.0.1:1/shop\"", "h1:1,h2:2/shop\"", &[".toml:2:1:", "several hosts"]),
    ("[source.shop]", "[source.Shop]", &[".toml:1:9:", "'Shop' cannot be a name"]),
    ("[source.shop]", "[source.shop", &[".toml:1:", "unclosed table"]),
    ("source = \"shop\"", "source = \"shpo\"", &[".toml:9:1:", "replica.reports.source", "the sources are: shop"]),
    ("source = \"shop\"\n", "", &[".toml:8:10:", "replica.reports.source", "missing"]),
    ("127.0.0.1:2/shop", "127.0.0.1:1/shop", &[".toml:10:1:", "replica.reports.url", "the database of [source.shop] itself"]),
    (
        "[http]",
        "[replica.again]\nsource = \"shop\"\nurl = \"postgres://other@127.0.0.1:2/shop\"\n[http]",
        &["replica.reports.url", "replica.again is applied to"],
    ),
    ("embedded:{folder}/queue", "embedded:queue", &[".toml:6:1:", "queue.url", "absolute path"]),
    ("embedded:{folder}/queue", "redis://x", &[".toml:6:1:", "queue.url", "kafka://"]),
    ("embedded:{folder}/queue", "kafka://k1", &[".toml:6:1:", "queue.url", "'k1' is not host:port"]),
    ("{http}", "0.0.0.0:8321", &[".toml:13:1:", "http.listen", "token_file"]),
    ("{http}", "localhost", &[".toml:13:1:", "http.listen", "not an address and port"]),
    ("[http]", "[log]\nlevel = \"=louder=\"\n[http]", &[".toml:13:1:", "log.level", "not a filter"]),
    ("[http]", "[queue.kafka]\nacks = 1\n[http]", &["queue.kafka", "the queue is embedded"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_complaint_names_its_place_and_the_way_on() {
    let site = Site::new(NOWHERE);
    for (sound, wrong, says) in WRONG {
        assert!(NOWHERE.contains(sound), "{sound}");
        site.configure(&NOWHERE.replacen(sound, wrong, 1));
        for command in [&["run"][..], &["check"], &["status"]] {
            let outcome = site.run(command).await;
            assert_eq!(outcome.code, Some(78), "{wrong}: {command:?}: {}", outcome.stderr);
            for part in *says {
                assert!(outcome.stderr.contains(part), "{wrong}: '{part}' is not in:\n{}", outcome.stderr);
            }
            assert!(outcome.stderr.contains("millstream.toml:"), "{}", outcome.stderr);
            assert!(!outcome.stderr.contains("panicked") && !outcome.stderr.contains("Error {"), "{}", outcome.stderr);
        }
    }
}

/// It stopped all of `check`, also what needs no password.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_that_is_missing_stops_what_needs_it_and_no_other_finding() {
    let site = Site::new(&NOWHERE.replacen("tables =", "password_file = \"/nowhere/pw\"\ntables =", 1));
    let says = [".toml:3:1:", "source.shop.password_file", "cannot read /nowhere/pw"];
    for command in [&["run"][..], &["status"], &["teardown", "--yes"]] {
        let outcome = site.run(command).await;
        assert_eq!(outcome.code, Some(78), "{command:?}: {}", outcome.stderr);
        for part in says {
            assert!(outcome.stderr.contains(part), "{command:?}: '{part}' is not in:\n{}", outcome.stderr);
        }
    }
    let checked = site.run(&["check", "--json"]).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let report: serde_json::Value = serde_json::from_str(&checked.stdout).expect("JSON");
    let connects: Vec<_> = report["findings"].as_array().unwrap().iter().filter(|f| f["check"] == "connect").collect();
    assert_eq!(connects.len(), 2, "source and replica: {report:#}");
    assert_eq!((&connects[0]["name"], &connects[0]["severity"]), (&"shop".into(), &"error".into()));
    for part in says {
        assert!(connects[0]["what"].as_str().unwrap().contains(part), "{connects:#?}");
    }
    assert_eq!((&connects[1]["name"], &connects[1]["severity"]), (&"reports".into(), &"unknown".into()));
    assert!(checked.stdout.contains("disk_room"), "the queue too: {}", checked.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_settings_are_judged_by_librdkafka() {
    let kafka = NOWHERE.replace("embedded:{folder}/queue", "kafka://127.0.0.1:1");
    let site = Site::new(NOWHERE);
    for (settings, says) in [
        ("acks = 1", "acks is set by Millstream itself"),
        ("no.such.key = 1", "queue.kafka.no.such.key: librdkafka does not know"),
        ("linger.ms = \"soon\"", "queue.kafka.linger.ms: librdkafka does not know"),
        ("replication_factor = \"many\"", "queue.kafka.replication_factor"),
        ("sasl.password = \"canary-kafka\"\npassword = \"canary-kafka\"", "another password"),
    ] {
        site.configure(&format!("{kafka}\n[queue.kafka]\n{settings}\n"));
        let outcome = site.run(&["run"]).await;
        assert_eq!(outcome.code, Some(78), "{settings}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{settings}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_not_repeated_whatever_is_wrong_with_them() {
    let site = Site::new(NOWHERE);
    for wrong in [
        "pasword = \"canary-1\"",
        "password = 4242424242",
        "password = [\"canary-1\"]",
        "password = \"canary-1",
        "url_ = \"postgres://a:canary-1@b/c\"",
    ] {
        site.configure(&NOWHERE.replacen("tables =", &format!("{wrong}\ntables ="), 1));
        let outcome = site.run(&["run"]).await;
        assert_eq!(outcome.code, Some(78), "{wrong}: {}", outcome.stderr);
        for secret in ["canary", "4242424242"] {
            assert!(!outcome.stderr.contains(secret), "{wrong}: {}", outcome.stderr);
        }
    }
    let bad_url = NOWHERE.replacen("millstream@127.0.0.1:1/shop", "m:canary-1@h:port/shop", 1);
    site.configure(&bad_url);
    let outcome = site.run(&["run"]).await;
    assert_eq!(outcome.code, Some(78));
    assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_clear_text_and_open_files_are_accepted_and_said() {
    let site = Site::new(&NOWHERE.replacen("millstream@127.0.0.1:1", "millstream:canary-url@127.0.0.1:1", 1));
    let outcome = site.run(&["status"]).await;
    assert!(outcome.stderr.contains("source.shop.url holds a secret in clear text"), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("canary"), "{}", outcome.stderr);

    site.configure(&NOWHERE.replacen("tables =", "password_file = \"{folder}/pw\"\ntables =", 1));
    let path = site.folder().join("pw");
    write_private(&path, "canary-file\n");
    let outcome = site.run(&["status"]).await;
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let outcome = site.run(&["status"]).await;
    assert!(outcome.stderr.contains("others may read it (mode 0644)"), "{}", outcome.stderr);
    write_private(&path, "\n");
    let outcome = site.run(&["status"]).await;
    assert_eq!(outcome.code, Some(78));
    assert!(outcome.stderr.contains("is empty"), "{}", outcome.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_wins_and_is_named_when_it_is_wrong() {
    for (name, value, says) in [
        ("MILLSTREAM__SOURCE__SHOP__URL", "mysql://x", "environment variable MILLSTREAM__SOURCE__SHOP__URL: source.shop.url"),
        ("MILLSTREAM__SOURCE__SHOP__RETAIN_MAX_BYTES", "lots", "MILLSTREAM__SOURCE__SHOP__RETAIN_MAX_BYTES"),
        ("MILLSTREAM__SOURCE__SHOP__TABELS", "public.*", "unknown field `tabels`"),
        ("MILLSTREAM__REPLICA__REPORTS__MERGE_MAX_CHANGES", "many", "is not an integer"),
        ("MILLSTREAM__HTTP__LISTEN", "0.0.0.0:1", "environment variable MILLSTREAM__HTTP__LISTEN: http.listen"),
        // The file was blamed for a source that it does not name.
        (
            "MILLSTREAM__SOURCE__SHP__PASSWORD",
            "x",
            "environment variable MILLSTREAM__SOURCE__SHP__PASSWORD: there is no [source.shp]; the file has [source.shop]",
        ),
        ("MILLSTREAM__REPLICA__REPORT__PASSWORD", "x", "there is no [replica.report]; the file has [replica.reports]"),
    ] {
        let site = Site::new(NOWHERE).with_env(name, value);
        let outcome = site.run(&["run"]).await;
        assert_eq!(outcome.code, Some(78), "{name}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{name}: {}", outcome.stderr);
    }
    let site = Site::new(NOWHERE).with_env("MILLSTREAM__SOURCE__SHOP__TABLES", "public.a, public.b");
    assert_eq!(site.run(&["status"]).await.code, Some(3));
}

/// Another user got "this user may not read it", or the system's own words for a password's file.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_user_may_not_read_is_named_with_who_may() {
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        return crate::support::skip("a command of another user: this is not root");
    }
    let site = Site::new(NOWHERE);
    // Where it was built others may not even look (a home folder's mode is 0700).
    let program = site.folder().join("millstream");
    std::fs::copy(binary(), &program).unwrap();
    let as_nobody = async |arguments: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.args(arguments).arg("-c").arg(site.configuration()).current_dir(site.folder()).env_remove("RUST_BACKTRACE");
        command.uid(65534).gid(65534);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(site.folder(), 0o755);
    mode(&site.configuration(), 0o640);
    std::os::unix::fs::chown(site.configuration(), Some(1), Some(1)).unwrap();
    let (code, said) = as_nobody(&["status"]).await;
    assert_eq!(code, Some(78), "{said}");
    let shown = site.configuration().display().to_string();
    for part in [&*shown, "(owner daemon, group daemon, mode 0640): user nobody may not read it", "sudo -u daemon millstream"] {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
    // Root's own, shared with the daemon's group.
    std::os::unix::fs::chown(site.configuration(), Some(0), Some(1)).unwrap();
    let (_, said) = as_nobody(&["status"]).await;
    assert!(said.contains("(owner root, group daemon, mode 0640)") && said.contains("sudo -u daemon millstream"), "{said}");

    mode(&site.configuration(), 0o644);
    site.configure(&NOWHERE.replacen("tables =", "password_file = \"{folder}/pw\"\ntables =", 1));
    write_private(&site.folder().join("pw"), "secret\n");
    std::os::unix::fs::chown(site.folder().join("pw"), Some(0), Some(0)).unwrap();
    let (code, said) = as_nobody(&["log", "tail", "shop"]).await;
    assert_eq!(code, Some(78), "{said}");
    for part in
        [".toml:3:1: source.shop.password_file: cannot read", "/pw (owner root, group root, mode 0600)", "chgrp millstream"]
    {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
    // As deploy/ has it: root's, readable by the daemon's group, and nothing to warn of.
    mode(&site.folder().join("pw"), 0o640);
    let fine = site.run(&["status"]).await;
    assert!(!fine.stderr.contains("warning"), "{fine:?}");
    mode(&site.folder().join("pw"), 0o644);
    assert!(site.run(&["status"]).await.stderr.contains("chmod 0640"));

    // The queue's folder is the daemon's alone.
    site.configure(NOWHERE);
    let queue = site.folder().join("queue");
    std::fs::create_dir(&queue).unwrap();
    mode(&queue, 0o700);
    std::os::unix::fs::chown(&queue, Some(1), Some(1)).unwrap();
    let (code, said) = as_nobody(&["log", "tail", "shop"]).await;
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("(owner daemon, group daemon, mode 0700)") && said.contains("sudo -u daemon millstream"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_there_is_named() {
    let site = Site::new(NOWHERE);
    std::fs::remove_file(site.configuration()).unwrap();
    let outcome = site.run(&["run"]).await;
    assert_eq!(outcome.code, Some(78));
    assert!(
        outcome.stderr.contains("there is no such file") && outcome.stderr.contains("MILLSTREAM_CONFIG"),
        "{}",
        outcome.stderr
    );
}
