//! Which PostgreSQL to test with, and a fresh cluster in a fraction of initdb's time.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::files::{Folder, give_to_server_user};
use super::process::{as_server_user, run};

/// Folder of the server's programs: `PG_BIN`, otherwise the newest distribution package.
pub fn bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        if let Some(folder) = std::env::var_os("PG_BIN") {
            return folder.into();
        }
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut found: Vec<(u32, PathBuf)> = versions
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .filter(|(_, bin)| bin.join("initdb").exists())
            .collect();
        found.sort();
        found.pop().expect("PostgreSQL in /usr/lib/postgresql: run `make deps`, or set PG_BIN").1
    })
}

/// The same for the replicas that tests share: `PG_BIN_REPLICA`, otherwise the source's version.
pub fn replica_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| std::env::var_os("PG_BIN_REPLICA").map_or_else(|| bin().to_owned(), PathBuf::from))
}

/// Major version of the source's servers.
pub fn major_version() -> u32 {
    static VERSION: OnceLock<u32> = OnceLock::new();
    *VERSION.get_or_init(|| version_of(bin()))
}

/// Major version of the programs in a folder.
pub fn version_of(bin: &Path) -> u32 {
    let text = run(Command::new(bin.join("postgres")).arg("--version"));
    let number = text.split_whitespace().find_map(|word| word.split(['.', 'b', 'r', 'd']).next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no version in {text:?}"))
}

/// Fills `data` with a new cluster: one initdb for the process, then copies, each with an identity of its own. Where the server
/// came without `pg_resetwal` there is no other identity for a copy, and each cluster has an initdb of its own.
pub fn new_cluster(bin: &Path, data: &Path) {
    static TEMPLATE: OnceLock<Folder> = OnceLock::new();
    if bin != self::bin() || !bin.join("pg_resetwal").exists() {
        return initdb(bin, data);
    }
    let template = TEMPLATE.get_or_init(|| {
        let folder = Folder::new("initdb");
        initdb(bin, &folder.path().join("data"));
        folder
    });
    copy_cluster(&template.path().join("data"), data);
    new_identity(data);
}

/// Copies a cluster that no server runs on, as the user that servers run as.
pub fn copy_cluster(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    run(as_server_user(&mut copy));
}

fn initdb(bin: &Path, data: &Path) {
    let mut initdb = Command::new(bin.join("initdb"));
    initdb.arg("-D").arg(data);
    initdb.args(["-U", "bootstrap", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync", "--no-instructions"]);
    run(as_server_user(&mut initdb));
    make_roles(bin, data);
}

/// The roles of every cluster. Tests' own SQL runs as `postgres`, a superuser who owns what it makes but, unlike the cluster's first role,
/// none of the server's own functions and catalogs. Millstream runs as a role with the rights of `docs/postgresql.md` and no more
/// (threat 13): membership gives it `postgres`' tables and none of its superuser's powers.
const ROLES: &str = "\
CREATE ROLE postgres SUPERUSER LOGIN
CREATE ROLE millstream LOGIN REPLICATION
GRANT postgres TO millstream
GRANT pg_read_all_stats TO millstream
";
/// For PostgreSQL 15 and later.
const REPLICA_ROLE_SETTING: &str = "GRANT SET ON PARAMETER session_replication_role TO millstream\n";

/// By a server in single-user mode: a statement a line, and an end of input to stop it.
fn make_roles(bin: &Path, data: &Path) {
    let mut server = Command::new(bin.join("postgres"));
    server.arg("--single").arg("-D").arg(data).args(["-c", "exit_on_error=on", "-c", "fsync=off", "template1"]);
    server.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = as_server_user(&mut server).spawn().expect("postgres --single");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(ROLES.as_bytes()).expect("roles");
    if version_of(bin) >= 15 {
        input.write_all(REPLICA_ROLE_SETTING.as_bytes()).expect("roles");
    }
    drop(input);
    let output = child.wait_with_output().expect("postgres --single");
    assert!(output.status.success(), "roles: {}", String::from_utf8_lossy(&output.stderr));
}

/// Another system identifier: source and replica must not look like one cluster. The control file ends with its CRC-32C
/// (PostgreSQL, `src/include/catalog/pg_control.h`), and `pg_resetwal` then writes WAL with the new identifier.
fn new_identity(data: &Path) {
    let path = data.join("global/pg_control");
    let mut control = fs::read(&path).expect("pg_control");
    let crc_at =
        (64..500).find(|&at| control[at..at + 4] == crc32c::crc32c(&control[..at]).to_le_bytes()).expect("a CRC in pg_control");
    // Like PostgreSQL's own: seconds in the upper half.
    let old = u64::from_le_bytes(control[..8].try_into().expect("8 bytes"));
    let new = (old & !0xffff_ffff) | u64::from(rand::random::<u32>());
    control[..8].copy_from_slice(&new.to_le_bytes());
    let crc = crc32c::crc32c(&control[..crc_at]);
    control[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, control).expect("pg_control");
    give_to_server_user(&path);
    run(as_server_user(Command::new(bin().join("pg_resetwal")).arg("-f").arg("-D").arg(data)));
}
