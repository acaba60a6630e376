//! No check without a test: each name that can be something else than fine is provoked and mended in a test, or has its reason here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Why a remedy is not carried out.
const NOT_CARRIED_OUT: &[(&str, &str)] = &[
    ("catalog", "a server that breaks in mid-check; there is no remedy but to look again"),
    (
        "clock",
        "a server's clock cannot be set apart from ours; its words are tested beside the code, and what keeps time is for a person",
    ),
    (
        "version",
        "one PostgreSQL is installed where the tests run; its words are tested beside the code, and another server is for a person",
    ),
    ("topic_settings", "Kafka refuses its settings alone by an ACL; the grants are those of `rights`"),
];

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if root.is_file() {
        return fs::read_to_string(root).unwrap();
    }
    let files = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| !path.ends_with("registry.rs")).map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The name behind each call that makes a finding which is not fine.
fn names() -> BTreeSet<String> {
    let source = read("src/preflight/check") + &read("src/queue/kafka/check.rs");
    let mut names = BTreeSet::new();
    for call in
        ["findings.warn(", "findings.error(", "findings.unknown(", "cannot_look(", "must_be(values, ", "should_be(values, "]
    {
        for rest in source.split(call).skip(1) {
            // The first literal of the call, where it comes at once or behind the settings' own arguments.
            let rest = rest.trim_start().trim_start_matches("settings, &mut findings, ");
            if let Some(name) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[test]
fn every_check_has_a_test_that_mends_it_or_a_reason_why_not() {
    let names = names();
    assert!(names.len() > 30, "{names:?}");
    for (name, reason) in NOT_CARRIED_OUT {
        assert!(names.contains(*name) || read("src/queue/kafka/check.rs").contains(&format!("\"{name}\"")), "{name} is no check");
        assert!(reason.len() > 20, "{name}");
    }
    let tests = read("tests/it/check")
        + &read("tests/it/scenarios/halts.rs")
        + &read("tests/it/kafka/check.rs")
        + &read("tests/it/kafka/login.rs")
        + &read("tests/it/kafka/cluster.rs");
    for name in names.iter().filter(|name| !NOT_CARRIED_OUT.iter().any(|(other, _)| other == name)) {
        assert!(tests.contains(&format!("\"{name}\"")), "no test provokes the finding {name} and mends it");
    }
}
