//! What is delivered beside the binary: unit, alert rules, compose file, install script.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::daemon::binary;
use crate::support::files::Folder;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tool that `make deps` installs. Its absence is a failure in CI and a note elsewhere.
fn tool(name: &str) -> Option<PathBuf> {
    let path =
        ["/usr/bin", "/usr/local/bin", "/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    if path.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is not installed; run `make deps`");
        eprintln!("skipped: {name} is not installed; run `make deps`");
    }
    path
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
