//! Under systemd: what the daemon says on `NOTIFY_SOCKET` (sd_notify(3)), and the secrets that it finds in `CREDENTIALS_DIRECTORY`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use super::NOWHERE;
use crate::support::compare;
use crate::support::daemon::{Site, pair_configuration};
use crate::support::files::{Folder, write_private};
use crate::support::postgres::PgServer;

const WAIT: Duration = Duration::from_secs(30);

/// systemd's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(at: &Path) -> Self {
        let socket = UnixDatagram::bind(at).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self(socket)
    }

    /// Reads until a line comes; the lines before it.
    #[track_caller]
    fn until(&self, wanted: impl Fn(&str) -> bool, what: &str) -> Vec<String> {
        let end = Instant::now() + WAIT;
        let mut lines = Vec::new();
        while Instant::now() < end {
            let mut buffer = [0; 4096];
            let Ok(length) = self.0.recv(&mut buffer) else { continue };
            for line in std::str::from_utf8(&buffer[..length]).unwrap().lines() {
                if wanted(line) {
                    return lines;
                }
                lines.push(line.to_owned());
            }
        }
        panic!("{what} did not come; there were {lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_ready_while_databases_are_down_the_watchdog_why_it_waits_and_the_end() {
    let folder = Folder::new("notify");
    let path = folder.path().join("socket");
    let manager = Manager::listen(&path);
    let site = Site::new(NOWHERE);
    let daemon = site.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "900000")]);
    let before = manager.until(|line| line == "READY=1", "READY=1");
    assert!(!before.iter().any(|line| line == "STOPPING=1"), "{before:?}");

    // Three times in the 0.9 s that it has: seen over several of them, so that it is the pace that counts and not one greeting.
    let began = Instant::now();
    let mut said = Vec::new();
    for _ in 0..10 {
        said.extend(manager.until(|line| line == "WATCHDOG=1", "WATCHDOG=1"));
    }
    assert!(began.elapsed() < Duration::from_secs(9), "ten in {:?}", began.elapsed());
    if !said.iter().any(|line| line.starts_with("STATUS=")) {
        manager.until(|line| line.starts_with("STATUS="), "a status line");
    }
    assert!(said.iter().filter(|line| line.starts_with("STATUS=")).all(|line| line.contains("shop") || line.contains("reports")));

    daemon.signal(rustix::process::Signal::HUP);
    manager.until(|line| line == "RELOADING=1", "RELOADING=1");
    manager.until(|line| line == "READY=1", "READY=1 again");
    let terminating = async { daemon.terminate().await.code() };
    let listening = tokio::task::spawn_blocking(move || manager.until(|line| line == "STOPPING=1", "STOPPING=1"));
    let (code, heard) = tokio::join!(terminating, listening);
    assert_eq!(code, Some(0));
    heard.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_never_ready() {
    let folder = Folder::new("notify");
    let path = folder.path().join("socket");
    let manager = Manager::listen(&path);
    let site = Site::new(&NOWHERE.replace("tables =", "tabels ="));
    let daemon = site.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(daemon.wait(WAIT).await.expect("an end").code(), Some(78), "RestartPreventExitStatus");
    let mut buffer = [0; 4096];
    if let Ok(length) = manager.0.recv(&mut buffer) {
        let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(!said.contains("READY=1"), "{said}");
    }
}

/// The names are those that the delivered unit has.
#[tokio::test(flavor = "multi_thread")]
async fn passwords_that_systemd_passes_as_credentials_are_found() {
    let hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    let server = PgServer::builder().hba(hba).start().await;
    let (source, replica) = (server.new_database().await, server.new_database().await);
    source
        .execute("ALTER ROLE millstream PASSWORD 'from systemd'; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (7)")
        .await;
    let credentials = Folder::new("credentials");
    let configuration = pair_configuration(&source.url(), &replica.url(), "embedded:{folder}/queue");
    let without = Site::new(&configuration);
    assert_ne!(without.run(&["init"]).await.code, Some(0), "the server asks for a password");

    let unit = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/millstream.service")).unwrap();
    for name in ["source.shop.password", "replica.reports.password"] {
        assert!(unit.contains(&format!("LoadCredential={name}:")), "{name} is not in the unit");
        write_private(&credentials.path().join(name), "from systemd\n");
    }
    let site = Site::new(&configuration).with_env("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap());
    site.must(&["init"]).await;
    let daemon = site.start();
    compare::equal(&source, &replica, WAIT).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!site.all_logs().contains("from systemd"));
}
