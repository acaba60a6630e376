//! `millstream status --watch`: goes on whatever the daemon does, and ends as one asks it to.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::NOWHERE;
use crate::support::daemon::Site;
use crate::support::wait::until;

const SOON: Duration = Duration::from_secs(30);

fn spawn(site: &Site, arguments: &[&str]) -> Child {
    site.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("millstream")
}

/// Its lines as they come.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
    receive
}

/// Waits for a document of which something is true.
fn shows(lines: &mpsc::Receiver<String>, wanted: fn(&serde_json::Value) -> bool) {
    loop {
        let line = lines.recv_timeout(SOON).expect("another document");
        if wanted(&serde_json::from_str(&line).expect("JSON")) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_the_daemon_and_ends_at_ctrl_c() {
    let site = Site::new(NOWHERE);
    let mut watch = spawn(&site, &["status", "--watch", "--json"]);
    let documents = lines(&mut watch);
    shows(&documents, |document| document["error"].as_str().is_some_and(|error| error.contains("no daemon answers")));
    let daemon = site.start();
    shows(&documents, |document| document["version"] == 1 && document["sources"]["shop"].is_object());
    daemon.kill();
    shows(&documents, |document| document["error"].is_string());
    let _daemon = site.start();
    shows(&documents, |document| document["version"] == 1);
    rustix::process::kill_process(Pid::from_child(&watch), Signal::INT).expect("a signal");
    until("it to end", SOON, async || watch.try_wait().expect("wait").is_some()).await;
    let status = watch.wait().expect("wait");
    assert_eq!((status.code(), status.signal()), (Some(0), None));
}

/// As `| head -1` does.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_reader_is_gone_ends_without_complaint() {
    let site = Site::new(NOWHERE);
    let mut watch = spawn(&site, &["status", "--watch", "--json"]);
    let mut out = BufReader::new(watch.stdout.take().expect("a pipe"));
    let mut first = String::new();
    out.read_line(&mut first).expect("a line");
    assert!(first.starts_with('{'), "{first}");
    drop(out);
    let mut complaint = String::new();
    let mut err = watch.stderr.take().expect("a pipe");
    let read = move || err.read_to_string(&mut complaint).map(|_| complaint);
    let complaint = tokio::task::spawn_blocking(read).await.expect("join").expect("UTF-8");
    assert!(!complaint.contains("panicked") && complaint.is_empty(), "{complaint}");
    watch.wait().expect("wait");
}
