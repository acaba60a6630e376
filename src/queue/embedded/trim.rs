//! Where the stream begins: exactly where trimming said, though bytes go only by whole segments.
//!
//! A reader that begins at the first record must find one that is valid, so the place is kept in a small file, written
//! before anything is removed.

use std::io;

use serde::{Deserialize, Serialize};

use super::Known;
use super::format;
use super::registry::read_small;
use super::segment::{self, Segment};
use super::storage::{Folder, replace};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;

const FILE: &str = "start.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct StartFile {
    version: u32,
    start: u64,
}

/// Offset of the first record that counts.
pub(super) fn start(folder: &dyn Folder) -> Result<u64> {
    let Some(bytes) = read_small(folder, FILE)? else { return Ok(0) };
    let corrupt = |e| Error::new(ErrorKind::Corrupt, "it is not the JSON it should be").with_source(e).context(FILE);
    let file: StartFile = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if file.version > VERSION {
        let message = format!("{FILE} has format {}; this Millstream reads up to {VERSION}", file.version);
        return Err(Error::new(ErrorKind::TooNew, message));
    }
    Ok(file.start)
}

/// Lets the stream begin at an offset and removes the segments that lie wholly below it, oldest first, each durably before
/// the next, so that a crash leaves no gap. The last durable record stays. The caller holds the registry's lock.
pub(super) fn trim(folder: &dyn Folder, id: u64, below: u64, known: Known) -> Result<()> {
    let start = start(folder)?;
    if below <= start {
        return Ok(());
    }
    let end = if known.trust_files { durable_end(folder, id)? } else { known.durable };
    let below = below.min(end.saturating_sub(1));
    if below <= start {
        return Ok(());
    }
    let json = serde_json::to_vec(&StartFile { version: VERSION, start: below })
        .map_err(|e| Error::new(ErrorKind::Unexpected, "a number that is not JSON").with_source(e))?;
    replace(folder, FILE, &json, || Ok(())).at(|| FILE)?;
    remove_below(folder, below)
}

/// Records before this one are durable, as far as the files say.
fn durable_end(folder: &dyn Folder, id: u64) -> Result<u64> {
    let last: Segment = segment::last(folder, id, false)?;
    let tail = last.scan_beside_writer()?;
    Ok(tail.unsealed.map_or(tail.end, |mark| mark.first))
}

fn remove_below(folder: &dyn Folder, below: u64) -> Result<()> {
    for pair in segment::list(folder)?.windows(2) {
        if pair[1] > below {
            break;
        }
        match folder.remove(&format::segment_name(pair[0])) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        folder.sync()?;
        failpoint::hit("queue.trimmed")?;
    }
    Ok(())
}
