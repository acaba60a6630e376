//! FAULTS 24: an fsync that fails halts with `storage_failed`, is not tried again on the same pages, and confirms nothing; the pair goes on by itself once the disk is well.

use std::path::Path;

use super::{CATCH_UP, Pair, Servers};
use crate::support::process::preloaded;
use crate::support::wait::{LONG, until};
use crate::support::workload::Plan;

/// `fdatasync` fails while a file is there; each call of either kind is noted.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static void note(const char *what) {
    const char *log = getenv("FSYNC_LOG");
    int file = log ? open(log, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (file >= 0) { if (write(file, what, 1)) {} close(file); }
}
int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    const char *flag = getenv("FSYNC_FAILS");
    if (flag && access(flag, F_OK) == 0) { note("F"); errno = EIO; return -1; }
    note("s");
    return real(file);
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_fsync_that_fails_halts_confirms_nothing_and_is_survived() {
    let servers = Servers::start().await;
    let pair = Pair::new(&servers).await;
    let Some(library) = preloaded(pair.site.folder(), SHIM) else { return };
    let (flag, log) = (pair.site.folder().join("fsync-fails"), pair.site.folder().join("fsync-log"));
    let text = |path: &Path| path.display().to_string();
    let _daemon =
        pair.site.start_with(&[("LD_PRELOAD", &text(&library)), ("FSYNC_FAILS", &text(&flag)), ("FSYNC_LOG", &text(&log))]);
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let workload = pair.load(&Plan::default());
    let calls = || std::fs::read_to_string(&log).unwrap_or_default();
    until("fsyncs", LONG, async || calls().len() > 20).await;
    assert!(!calls().contains('F'));

    std::fs::write(&flag, "").expect("a flag");
    pair.halted("storage_failed").await;
    let (code, _) = pair.site.get("/readyz").await.expect("/readyz");
    assert_eq!(code, 503, "health is red");
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let before = pair.source.value(confirmed).await;
    let failed = calls().matches('F').count();
    // Nothing moves while it fails: each attempt is a new writer's, seconds apart, and not a loop around fsync.
    until("another attempt", LONG, async || calls().matches('F').count() > failed).await;
    assert!(calls().matches('F').count() <= failed + 4, "{}", calls());
    assert_eq!(pair.source.value(confirmed).await, before, "nothing is confirmed that was not synced");

    std::fs::remove_file(&flag).expect("the flag");
    pair.verdict(workload, &reader).await;
}
