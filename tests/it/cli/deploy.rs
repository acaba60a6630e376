//! What is delivered beside the binary: unit, alert rules, compose file, install script.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::daemon::binary;
use crate::support::files::Folder;
use crate::support::skip;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tool that `make deps` installs, in the system or in target/tools. Without it a test is counted as skipped, which `make test` refuses
/// in CI.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin".into(), "/usr/local/bin".into(), "/bin".into()]);
    let found = folders.chain([root().join("target/tools")]).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed; run `make deps`"));
    }
    found
}

#[test]
fn the_unit_is_hardened() {
    let Some(analyze) = tool("systemd-analyze") else { return };
    let unit = root().join("deploy/millstream.service");
    let output = Command::new(analyze).args(["security", "--offline=true", "--threshold=20"]).arg(&unit).output().unwrap();
    assert!(output.status.success(), "exposure above 2.0:\n{}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read_to_string(unit).unwrap();
    for line in ["Type=notify", "WatchdogSec=", "LoadCredential=", "RestartPreventExitStatus=78"] {
        assert!(text.contains(line), "{line}");
    }
}

#[test]
fn the_alert_rules_hold() {
    let Some(promtool) = tool("promtool") else { return };
    let folder = root().join("deploy/prometheus");
    let syntax = &["check", "config", "--syntax-only", "prometheus.yml"][..];
    for arguments in [&["check", "rules", "alerts.yml"][..], &["test", "rules", "alerts_test.yml"], syntax] {
        let output = Command::new(&promtool).args(arguments).current_dir(&folder).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    // Rules about metrics that do not exist never fire.
    let rules = std::fs::read_to_string(folder.join("alerts.yml")).unwrap();
    for word in rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("millstream_")) {
        assert!(millstream::metrics::ALL.iter().any(|(name, ..)| *name == word), "{word} is no metric");
    }
}

/// One that is never seen to fire may never do so; one that is never seen silent may always do so.
#[test]
fn every_alert_is_seen_to_fire_and_seen_to_be_silent() {
    let folder = root().join("deploy/prometheus");
    let rules = std::fs::read_to_string(folder.join("alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(folder.join("alerts_test.yml")).unwrap();
    let cases: Vec<&str> = tests.split("- eval_time:").skip(1).collect();
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        let of_it = cases.iter().filter(|case| case.lines().any(|line| line.trim() == format!("alertname: {name}")));
        let (firing, silent): (Vec<&&str>, Vec<&&str>) = of_it.partition(|case| case.contains("exp_labels"));
        assert!(!firing.is_empty(), "{name} is never expected to fire in alerts_test.yml");
        assert!(!silent.is_empty(), "{name} is never expected to be silent in alerts_test.yml");
    }
}

#[test]
fn installing_into_a_folder_gives_everything_and_twice_changes_nothing() {
    let folder = Folder::new("install");
    let install = || {
        let mut command = Command::new(root().join("deploy/install"));
        command.env("DESTDIR", folder.path()).env("BINARY", binary());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    install();
    let config = folder.path().join("etc/millstream/millstream.toml");
    std::fs::write(&config, "# mine\n").unwrap();
    install();
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "# mine\n");
    for path in [
        "usr/bin/millstream",
        "usr/lib/systemd/system/millstream.service",
        "usr/lib/sysusers.d/millstream.conf",
        "var/lib/millstream",
    ] {
        assert!(folder.path().join(path).exists(), "{path}");
    }
}
