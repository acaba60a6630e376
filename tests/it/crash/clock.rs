//! FAULTS 35: the daemon's clock is set, to and fro, under load. Nothing is lost, and what it shows of the lag stays true.

use std::os::unix::fs::FileExt as _;

use super::{CATCH_UP, Pair, Servers};
use crate::support::process::preloaded;
use crate::support::wait::until;
use crate::support::workload::Plan;

/// The clock of the day, shifted by the seconds that a file holds. Clocks that only count are left alone.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static volatile long *shift(void) {
    static volatile long *at;
    if (!at) {
        int file = open(getenv("CLOCK_SHIFT"), O_RDONLY);
        at = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (file < 0 || at == MAP_FAILED) abort();
    }
    return at;
}
int clock_gettime(clockid_t clock, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, out);
    if (clock == CLOCK_REALTIME && result == 0) out->tv_sec += *shift();
    return result;
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_to_and_fro_loses_nothing_and_raises_no_alarm() {
    const HOUR: i64 = 3600;
    let servers = Servers::start().await;
    let pair = Pair::new(&servers).await;
    let Some(library) = preloaded(pair.site.folder(), SHIM) else { return };
    let file = pair.site.folder().join("clock-shift");
    std::fs::write(&file, 0_i64.to_ne_bytes()).expect("clock-shift");
    // In place: the daemon has it mapped.
    let opened = std::fs::OpenOptions::new().write(true).open(&file).expect("clock-shift");
    let set = |seconds: i64| opened.write_all_at(&seconds.to_ne_bytes(), 0).expect("clock-shift");
    let (library, shift) = (library.display().to_string(), file.display().to_string());
    let _daemon = pair.site.start_with(&[("LD_PRELOAD", &library), ("CLOCK_SHIFT", &shift)]);
    pair.site.ready(CATCH_UP).await;
    let reader = pair.reader();
    let workload = pair.load(&Plan::default());
    for shift in [HOUR, 0, -HOUR, HOUR, -30 * 24 * HOUR, 0] {
        set(shift);
        let status = async || pair.site.status().await.unwrap_or_default();
        // Its own clock says so: the shift is at work.
        let far = async || {
            let at: jiff::Timestamp = status().await["at"].as_str()?.parse().ok()?;
            Some(at.as_second() - jiff::Timestamp::now().as_second() - shift)
        };
        until("the daemon's clock to be set", CATCH_UP, async || far().await.is_some_and(|off| off.abs() < 60)).await;
        let transactions = async || status().await["replicas"]["reports"]["transactions"].as_u64().unwrap_or(0);
        let before = transactions().await;
        until("changes to go on", CATCH_UP, async || transactions().await > before + 20).await;
        let lag = status().await["replicas"]["reports"]["lag_seconds"].as_f64();
        assert!(lag.is_some_and(|lag| (0.0..60.0).contains(&lag)), "{shift}: {lag:?}");
        assert!(status().await["sources"]["shop"]["halt"].is_null());
    }
    pair.verdict(workload, &reader).await;
}
