//! The control socket: who may give orders, what a killed daemon leaves, and a daemon that cannot have it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{order, shows};
use crate::support::daemon::{Site, binary};
use crate::support::files::{Folder, server_user};
use crate::support::postgres::{shared, shared_replica};
use crate::support::skip;
use crate::support::wait::{LONG, until};

const NOWHERE: &str = r#"[source.shop]
url = "postgres://millstream@127.0.0.1:1/shop"
tables = ["public.*"]

[queue]
url = "embedded:{folder}/queue"

[replica.reports]
source = "shop"
url = "postgres://millstream@127.0.0.1:2/shop"

[http]
listen = "{http}"

[control]
socket = "{socket}"
"#;

fn site(socket: &std::path::Path) -> Site {
    Site::new(&NOWHERE.replace("{socket}", &socket.display().to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_there_is_2_and_lists_those_that_are() {
    let folder = Folder::new("socket");
    let site = site(&folder.path().join("ms.sock"));
    let nobody = site.run(&["pause", "reports"]).await;
    assert_eq!(nobody.code, Some(3), "{nobody:?}");
    assert!(nobody.stderr.contains("no daemon answers at"), "{nobody:?}");
    let daemon = site.start();
    let unknown = order(&site, &["pause", "report"]).await;
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("'report'; the sources are: shop; the replicas are: reports"), "{unknown:?}");
    let unknown = order(&site, &["resume", "reports", "--source"]).await;
    assert!(unknown.code == Some(2) && unknown.stderr.contains("no source 'reports'"), "{unknown:?}");
    // Nothing to keep a pause in before `init`.
    let early = order(&site, &["pause", "reports"]).await;
    assert!(early.code == Some(1) && early.stderr.contains("[not_initialized]"), "{early:?}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
    site.configure(&NOWHERE.replace("{socket}", "off"));
    let off = site.run(&["pause", "reports"]).await;
    assert!(off.code == Some(78) && off.stderr.contains("control.socket is \"off\""), "{off:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_is_replaced_and_an_orderly_end_leaves_nothing() {
    let folder = Folder::new("socket");
    let path = folder.path().join("ms.sock");
    let site = site(&path);
    let daemon = site.start();
    assert_eq!(order(&site, &["pause", "nobody"]).await.code, Some(2));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::metadata(&path).unwrap().ino();
    daemon.kill();
    assert!(path.exists(), "as a kill leaves it");
    let daemon = site.start();
    assert_eq!(order(&site, &["pause", "nobody"]).await.code, Some(2));
    assert_ne!(fs::metadata(&path).unwrap().ino(), before);
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!path.exists());
}

/// The data path does not depend on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_cannot_have_the_socket_works_without_it_and_takes_it_when_it_is_free() {
    let folder = Folder::new("socket");
    let path = folder.path().join("ms.sock");
    let first = site(&path);
    let holder = first.start();
    assert_eq!(order(&first, &["pause", "nobody"]).await.code, Some(2));

    let (source, replica) = (shared().await.new_database().await, shared_replica().await.new_database().await);
    source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)").await;
    let second = Site::pair(&source, &replica);
    let text = fs::read_to_string(second.configuration()).unwrap();
    second.configure(&format!("{text}\n[control]\nsocket = \"{}\"\n", path.display()));
    second.must(&["init"]).await;
    let daemon = second.start();
    second.ready(LONG).await;
    until("a warning", LONG, async || daemon.log().contains("is another daemon's; give each daemon its own")).await;
    assert_eq!(holder.terminate().await.code(), Some(0));
    until("its own socket", LONG, async || second.run(&["pause", "reports"]).await.code == Some(0)).await;
    shows(&second, "/replicas/reports/state", "paused").await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Folder::new("socket");
    let path = folder.path().join("ms.sock");
    fs::write(&path, "mine").unwrap();
    let site = site(&path);
    let daemon = site.start();
    until("a warning", LONG, async || daemon.log().contains("is there and is no socket")).await;
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

/// The file's rights alone keep others out; should somebody loosen them, the kernel's word about the peer still does.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_gives_no_orders() {
    let Some((user, group)) = server_user() else { return skip("needs root, to run a command as somebody else") };
    let folder = Folder::new("socket");
    let path = folder.path().join("ms.sock");
    let site = site(&path);
    let daemon = site.start();
    assert_eq!(order(&site, &["pause", "nobody"]).await.code, Some(2));
    let program = folder.path().join("millstream");
    fs::copy(binary(), &program).unwrap();
    for place in [folder.path(), &program, site.folder()] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(site.configuration(), fs::Permissions::from_mode(0o644)).unwrap();
    let as_other = async || {
        let mut command = Command::new(&program);
        command.args(["pause", "reports", "-c"]).arg(site.configuration()).uid(user).gid(group).current_dir("/");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = as_other().await;
    assert!(code == Some(78) && said.contains("ms.sock"), "{code:?} {said}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let (code, said) = as_other().await;
    assert!(code == Some(78) && said.contains("may not give this daemon orders"), "{code:?} {said}");
    assert_eq!(daemon.terminate().await.code(), Some(0));
}
