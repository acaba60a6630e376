//! Threat 16, supply chain: licences, sources and the lock file, by `cargo metadata` alone. `deny.toml` says the same to cargo-deny, which
//! also knows advisories.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The packages of a build on this machine's kind, with the lock file as it stands.
fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc's host");
    let metadata = |more: &[&str]| {
        let mut command = Command::new(&cargo);
        command.current_dir(ROOT).args(["metadata", "--locked", "--format-version", "1", "--filter-platform", host]).args(more);
        command.output().unwrap()
    };
    // What was built lies here already; the network is asked only for members that were not.
    let mut output = metadata(&["--offline"]);
    if !output.status.success() {
        output = metadata(&[]);
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["packages"].as_array().unwrap().clone()
}

/// The licences that `deny.toml` allows.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(format!("{ROOT}/deny.toml")).unwrap();
    let document: toml::Table = text.parse().unwrap();
    let list = document["licenses"]["allow"].as_array().expect("licenses.allow");
    list.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// True when one may choose so that only allowed licences are left. SPDX: AND binds closer than OR; old packages write `/` for OR.
fn permitted(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let words = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut at = 0;
    let verdict = any(&words, &mut at, allowed);
    assert_eq!(at, words.len(), "'{expression}' is not understood");
    verdict
}

fn any(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut verdict = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        verdict |= all(words, at, allowed);
    }
    verdict
}

fn all(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut verdict = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        verdict &= one(words, at, allowed);
    }
    verdict
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let word = words.get(*at).copied().unwrap_or_default();
    *at += 1;
    if word == "(" {
        let verdict = any(words, at, allowed);
        assert_eq!(words.get(*at), Some(&")"), "{words:?}");
        *at += 1;
        return verdict;
    }
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
        return allowed.contains(&format!("{word} WITH {}", words[*at - 1]));
    }
    allowed.contains(word)
}

#[test]
fn every_dependency_comes_from_crates_io_under_a_licence_that_is_allowed() {
    let (packages, allowed) = (packages(), allowed());
    assert!(packages.len() > 100, "only {} packages", packages.len());
    for package in packages {
        let name = format!("{} {}", package["name"], package["version"]);
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(permitted(licence, &allowed), "{name}: '{licence}' is not allowed by deny.toml");
        match package["source"].as_str() {
            Some(source) => assert_eq!(source, CRATES_IO, "{name}"),
            None => assert!(package["manifest_path"].as_str().unwrap().starts_with(ROOT), "{name} lies outside the project"),
        }
    }
}

/// Also for other machines' kinds, which `cargo metadata` left out: nothing in the lock file comes from elsewhere or goes unchecked.
#[test]
fn the_lock_file_names_one_registry_and_a_checksum_for_everything() {
    let text = std::fs::read_to_string(format!("{ROOT}/Cargo.lock")).unwrap();
    let document: toml::Table = text.parse().unwrap();
    let mut foreign = 0;
    for package in document["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        match package.get("source") {
            None => assert!(name.starts_with("millstream"), "{name} has no source"),
            Some(source) => {
                assert_eq!(source.as_str(), Some(CRATES_IO), "{name}");
                assert!(package.get("checksum").is_some(), "{name} has no checksum");
                foreign += 1;
            }
        }
    }
    assert!(foreign > 100, "{foreign}");
}

#[test]
fn licence_expressions_are_judged_as_spdx_says() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, verdict) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("MIT OR GPL-3.0 AND GPL-2.0", true),
        ("(MIT OR ISC) AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(permitted(expression, &allowed), verdict, "{expression}");
    }
}
