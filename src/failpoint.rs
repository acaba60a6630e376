//! Named places where a test can stop, fail or kill the process (feature `failpoints`; nothing is left of them without it).
//!
//! The environment variable `FAILPOINTS` holds what happens where, in the `fail` crate's syntax; `main` reads it at its start:
//!
//! ```text
//! FAILPOINTS='queue.after_sync=100*off->return(kill)'    the 101st time the process dies as by SIGKILL
//! FAILPOINTS='apply.before_commit=1*return(error)'       once, an error that is tried again
//! FAILPOINTS='capture.appended=pause'                    stands until the point is taken off
//! DEADLINES=30                                           waits for a server's answer end thirty times as soon
//! ```

use std::time::Duration;

use crate::error::Result;

/// Passes the place `name`.
///
/// # Errors
/// [`crate::ErrorKind::Connection`] when a test asks for `return(error)` here.
#[cfg(feature = "failpoints")]
pub fn hit(name: &str) -> Result<()> {
    fail::fail_point!(name, |action| act(name, action.as_deref()));
    Ok(())
}

/// Passes the place `name`: does nothing in this build.
///
/// # Errors
/// None in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) -> Result<()> {
    Ok(())
}

/// A deadline for an answer that does not come. A test divides it by `DEADLINES=30` in the environment: minutes of patience are seconds there.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn deadline(wait: Duration) -> Duration {
    use std::sync::OnceLock;
    static DIVISOR: OnceLock<u32> = OnceLock::new();
    let divisor = *DIVISOR.get_or_init(|| std::env::var("DEADLINES").ok().and_then(|text| text.parse().ok()).unwrap_or(1));
    wait / divisor.max(1)
}

/// A deadline for an answer that does not come: as it is, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
#[must_use]
pub const fn deadline(wait: Duration) -> Duration {
    wait
}

#[cfg(feature = "failpoints")]
fn act(name: &str, action: Option<&str>) -> Result<()> {
    use crate::error::{Error, ErrorKind};
    match action {
        Some("kill") => {
            // SIGKILL and not abort(): nothing of ours runs afterwards, as at a power cut of the process.
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL)
                .map_err(|e| Error::new(ErrorKind::Unexpected, "SIGKILL was refused").with_source(e))?;
            loop {
                std::thread::park();
            }
        }
        Some("error") => Err(Error::new(ErrorKind::Connection, format!("failpoint {name}"))),
        other => Err(Error::new(ErrorKind::Unexpected, format!("failpoint {name}: unknown action {other:?}"))),
    }
}
