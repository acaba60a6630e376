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

/// No parser of YAML is worth a dependency here: what is looked at stands on lines of its own.
#[test]
fn the_compose_file_names_what_is_there_and_opens_ports_to_this_machine_only() {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| line.split(" #").next().unwrap().trim_end()).collect();
    assert!(
        lines.iter().all(|line| !line.contains('\t') && (line.len() - line.trim_start().len()).is_multiple_of(2)),
        "indented"
    );
    let services: Vec<&str> = lines
        .iter()
        .skip_while(|line| **line != "services:")
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("  ")?.strip_suffix(':'))
        .filter(|name| !name.starts_with([' ', '#']))
        .collect();
    assert_eq!(services, ["source", "replica", "kafka", "init", "millstream", "prometheus"]);

    let mut mounted = 0;
    for path in lines.iter().filter_map(|line| line.trim().strip_prefix("- ./")).filter_map(|rest| rest.split(':').next()) {
        assert!(root().join(path).is_file(), "{path} is mounted and not there: Docker would make a folder of it");
        mounted += 1;
    }
    assert!(mounted >= 6, "{mounted} files are mounted");
    let built = text.split("dockerfile: ").nth(1).unwrap().split([' ', '}', '\n']).next().unwrap();
    assert!(root().join(built).is_file(), "{built}");

    let mut images = 0;
    for image in lines.iter().filter_map(|line| line.trim().strip_prefix("image: ")).filter(|image| *image != "millstream") {
        let (name, tag) = image.split_once(':').unwrap_or_else(|| panic!("{image} has no version"));
        assert!(tag.contains(|c: char| c.is_ascii_digit()), "{image} floats");
        if name == "postgres" {
            let major = tag.split('.').next().unwrap().parse().unwrap();
            assert!(millstream::preflight::check::TESTED_MAJORS.contains(&major), "`millstream check` would warn of {image}");
        }
        images += 1;
    }
    assert!(images >= 4, "{images} images");
    for ports in lines.iter().filter_map(|line| line.trim().strip_prefix("ports: ")) {
        for port in ports.trim_matches(['[', ']']).split(", ") {
            assert!(port.starts_with("\"127.0.0.1:"), "{port} is open to the network, with the playground's passwords");
        }
    }
    for wanted in lines.iter().map(|line| line.trim()).filter(|line| line.contains("{ condition: ")) {
        let name = wanted.split(':').next().unwrap();
        assert!(services.contains(&name), "{wanted}: there is no such service");
    }
    // The volumes used are declared.
    let declared: Vec<&str> =
        text.rsplit("\nvolumes:\n").next().unwrap().lines().map(|line| line.trim().trim_end_matches(':')).collect();
    for used in text.split(['"', ' ']).filter_map(|word| word.split_once("-data:/")).map(|(name, _)| format!("{name}-data")) {
        assert!(declared.contains(&used.as_str()), "volume {used} is not declared: {declared:?}");
    }
    // The daemon's configuration in it is one that the program takes.
    let configuration = root().join("deploy/compose/millstream.toml");
    let secrets = lines.iter().filter_map(|line| line.trim().strip_prefix("MILLSTREAM__")?.split_once(": "));
    let mut command = Command::new(binary());
    command.args(["teardown", "-c"]).arg(&configuration);
    command.envs(secrets.map(|(name, value)| (format!("MILLSTREAM__{name}"), value.to_owned())));
    // It asks before it does anything, and reads the configuration before it asks.
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("source shop") && said.contains("say --yes"), "{:?}: {said}", output.status.code());
}
