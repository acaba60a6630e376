//! The real code on a disk that crashes: a model says what must be there.

mod damage;
mod disk;
mod model;

use std::sync::Arc;

use self::disk::Disk;
use super::append::{self, Appender};
use super::read::Place;
use super::storage::Folder;
use super::{Known, Options};
use crate::error::Result;

/// The stream folder's id in these tests.
const ID: u64 = 0x00C0_FFEE;

/// Segments of a few batches.
fn options() -> Options {
    Options { segment_bytes: 1500, ..Options::default() }
}

fn folder(disk: &Arc<Disk>) -> Arc<dyn Folder> {
    Arc::new(Arc::clone(disk))
}

fn new_disk(seed: u64) -> Arc<Disk> {
    let disk = Disk::new(seed);
    append::create(&folder(&disk), ID, 0).unwrap();
    disk
}

fn open(disk: &Arc<Disk>) -> Result<Appender> {
    Appender::open(folder(disk), ID, &options())
}

/// What another process knows.
const FOREIGN: Known = Known { durable: 0, live: false, trust_files: true };

/// Everything from a place on, as far as it can be read.
fn read_from(disk: &Arc<Disk>, from: u64, known: Known) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut place = Place::find(folder(disk), ID, from, known)?;
    let mut found = Vec::new();
    // Twice nothing: a last batch that nobody sealed is believed the second time.
    let mut empty = 0;
    while empty < 2 {
        let records = place.read(known, 200)?;
        empty = if records.is_empty() { empty + 1 } else { 0 };
        found.extend(records.into_iter().map(|r| (r.offset.0, r.bytes.to_vec())));
    }
    Ok(found)
}
