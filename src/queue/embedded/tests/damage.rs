//! Damage to what was durable is found and never cut; a missing segment is refused.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use super::disk::Disk;
use super::{FOREIGN, ID, folder, new_disk, open, read_from};
use crate::config::ByteSize;
use crate::error::ErrorKind;
use crate::halt::HaltCode;
use crate::queue::embedded::append::{Appender, RESERVE_BYTES};
use crate::queue::embedded::format::{self, Mark, SegmentHeader};
use crate::queue::embedded::segment::{self, Segment};
use crate::queue::embedded::storage::{File, Folder, write_all};
use crate::queue::embedded::{Options, registry, trim};

/// Batches of sealed records in several segments.
fn filled(batches: &[Vec<usize>]) -> (Arc<Disk>, Vec<(u64, Vec<u8>)>) {
    let disk = new_disk(1);
    let mut writer = open(&disk).unwrap();
    let mut all = Vec::new();
    for sizes in batches {
        let records: Vec<Bytes> = sizes.iter().map(|size| Bytes::from(vec![0x4D; *size])).collect();
        writer.write_batch(records.iter()).unwrap();
        all.extend(records.iter().map(|r| r.to_vec()));
    }
    writer.seal().unwrap();
    (disk, (0..).zip(all).collect())
}

fn segments(disk: &Arc<Disk>) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_loses_nothing_in_silence(
        batches in prop::collection::vec(prop::collection::vec(0..400_usize, 1..4), 1..12),
        segment: prop::sample::Index,
        place: prop::sample::Index,
    ) {
        let (disk, all) = filled(&batches);
        let names = segments(&disk);
        let name = &names[segment.index(names.len())];
        let length = disk.open(name, false).unwrap().len().unwrap();
        disk.flip(name, place.index(length as usize) as u64);
        // A reader gets the truth, as far as it gets.
        if let Ok(found) = read_from(&disk, 0, FOREIGN) {
            prop_assert!(all.starts_with(&found));
        }
        // A writer refuses, or goes on behind everything that was acknowledged.
        match open(&disk) {
            Ok(writer) => prop_assert_eq!(writer.end(), all.len() as u64),
            Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::TooNew), "{}", error),
        }
    }
}

/// Bytes of which some look like a segment's: a header or marks that match their checksums, frames that do or do not.
fn segment_bytes() -> impl Strategy<Value = Vec<u8>> {
    let raw = prop::collection::vec(any::<u8>(), 0..100);
    let number = prop_oneof![0..4_u64, any::<u64>()];
    let mark = (number.clone(), number, prop_oneof![0..3_u32, any::<u32>()], prop_oneof![0..64_u32, any::<u32>()]);
    let piece = (0..4_u8, raw, mark).prop_map(|(kind, raw, (first, at, records, bytes))| (kind, raw, first, at, records, bytes));
    (any::<bool>(), prop::collection::vec(piece, 0..6)).prop_map(|(header, pieces)| {
        let mut out = if header { SegmentHeader { folder: ID, first: 0 }.encode() } else { Vec::new() };
        for (kind, raw, first, at, records, bytes) in pieces {
            let here = out.len() as u64;
            match kind {
                0 => out.extend(raw),
                1 => out.extend(Mark { at: here, first, records, bytes }.encode(ID)),
                2 => out.extend(Mark { at, first, records, bytes }.encode(ID)),
                _ => format::put_frame(&mut out, first, &raw),
            }
        }
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_in_a_segment_are_read_or_refused_and_recovery_takes_nothing_that_was_read(bytes in segment_bytes()) {
        let disk = new_disk(1);
        let name = format::segment_name(0);
        let file = disk.create(&name).unwrap();
        write_all(&*file, &bytes, 0).unwrap();
        let allowed = |error: &crate::Error| {
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::TooNew | ErrorKind::Halt(HaltCode::QueueLost))
        };
        let before = read_from(&disk, 0, FOREIGN);
        if let Err(error) = &before {
            prop_assert!(allowed(error), "{}", error);
        }
        match open(&disk) {
            Ok(writer) => {
                let after = read_from(&disk, 0, FOREIGN).unwrap();
                prop_assert_eq!(after.len() as u64, writer.end());
                prop_assert!(before.is_err() || after.starts_with(&before.unwrap()));
            }
            Err(error) => prop_assert!(allowed(&error), "{}", error),
        }
    }
}

#[test]
fn the_last_of_the_disk_is_left_for_what_makes_room() {
    let (disk, all) = filled(&vec![vec![300, 300]; 9]);
    disk.set_free(RESERVE_BYTES);
    let mut writer = open(&disk).unwrap();
    let error = writer.write_batch([Bytes::from_static(b"one more")].iter()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let reserve = format!("the last {}", ByteSize(RESERVE_BYTES));
    assert!(error.to_string().contains(&reserve), "{error}");
    let operations = include_str!("../../../../docs/operations.md");
    assert!(operations.contains(&reserve), "docs/operations.md does not name the reserve");
    drop(writer);
    trim::trim(&*folder(&disk), ID, 10, FOREIGN).unwrap();
    disk.set_free(RESERVE_BYTES + (1 << 20));
    let mut writer = open(&disk).unwrap();
    assert_eq!(writer.end(), all.len() as u64);
    writer.write_batch([Bytes::from_static(b"one more")].iter()).unwrap();
}

#[test]
fn what_makes_room_takes_of_the_reserve_and_begins_a_segment() {
    let disk = new_disk(1);
    let mut writer = Appender::open(folder(&disk), ID, &Options::default()).unwrap();
    let batch = |writer: &mut Appender, text: &'static str| writer.write_batch([Bytes::from_static(text.as_bytes())].iter());
    batch(&mut writer, "consumed").unwrap();
    disk.set_free(8 << 20);
    assert_eq!(batch(&mut writer, "no room").unwrap_err().kind(), ErrorKind::NoSpace);

    let mut writer = Appender::open(folder(&disk), ID, &Options::default()).unwrap();
    for text in ["fence", "base"] {
        writer.make_room(true);
        batch(&mut writer, text).unwrap();
    }
    writer.make_room(false);
    assert_eq!(batch(&mut writer, "no room").unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(segments(&disk), [format::segment_name(0), format::segment_name(1)]);
    writer.make_room(true);
    disk.set_free(4 << 20);
    assert_eq!(batch(&mut writer, "no room").unwrap_err().kind(), ErrorKind::NoSpace, "something is left whatever comes");

    let writer = open(&disk).unwrap();
    trim::trim(&*folder(&disk), ID, 2, FOREIGN).unwrap();
    assert_eq!((writer.end(), segments(&disk)), (3, vec![format::segment_name(1)]));
    assert_eq!(read_from(&disk, 2, FOREIGN).unwrap(), [(2, b"base".to_vec())]);
}

#[test]
fn segments_are_as_small_as_the_disk_needs_them() {
    let disk = new_disk(1);
    let size = |wanted: u64| {
        let options = Options { segment_bytes: wanted, ..Options::default() };
        Appender::open(folder(&disk), ID, &options).unwrap().segment_bytes()
    };
    assert_eq!(size(64 << 20), 64 << 20);
    disk.set_free(40 << 20);
    assert_eq!((size(64 << 20) >> 10, size(1500)), (4 << 10, 1500));
    disk.set_free(0);
    assert_eq!(size(64 << 20), 1 << 20);
    assert_eq!(Options::within(40 << 20).segment_bytes, 5 << 20);
    assert_eq!(Options::within(100 << 30).segment_bytes, Options::default().segment_bytes);
}

/// FAULTS 36: said as such, and never taken for damage, whose remedy is another.
#[test]
fn files_of_a_newer_version_are_too_new() {
    let too_new = |disk: &Arc<Disk>, name: &str, bytes: &[u8]| {
        let file = disk.create(name).unwrap();
        write_all(&*file, bytes, 0).unwrap();
        assert_eq!(read_from(disk, 0, FOREIGN).unwrap_err().kind(), ErrorKind::TooNew, "{name}");
    };
    let (disk, _) = filled(&[vec![10]]);
    let mut header = SegmentHeader { folder: ID, first: 0 }.encode();
    // Its checksum may be elsewhere in that version.
    header[8] = 2;
    too_new(&disk, &format::segment_name(0), &header);
    assert_eq!(open(&disk).err().map(|e| e.kind()), Some(ErrorKind::TooNew));
    let (disk, _) = filled(&[vec![10]]);
    too_new(&disk, "start.json", br#"{"version": 2, "start": 0, "more": true}"#);
    let file = disk.create("registry.json").unwrap();
    write_all(&*file, br#"{"version": 2, "entries": {}}"#, 0).unwrap();
    assert_eq!(registry::load(&*folder(&disk)).unwrap_err().kind(), ErrorKind::TooNew);
}

#[test]
fn a_missing_segment_is_refused() {
    let (disk, all) = filled(&vec![vec![300, 300]; 9]);
    let names = segments(&disk);
    assert!(names.len() >= 4, "{names:?}");
    disk.remove(&names[1]).unwrap();
    assert_eq!(open(&disk).err().map(|e| e.kind()), Some(ErrorKind::Corrupt));
    let error = read_from(&disk, 0, FOREIGN).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(read_from(&disk, all.len() as u64, FOREIGN).is_ok(), "behind the hole there is nothing to miss");
}

#[test]
fn a_missing_last_segment_is_noticed_by_readers_that_were_further() {
    let (disk, all) = filled(&vec![vec![300, 300]; 9]);
    disk.remove(segments(&disk).last().unwrap()).unwrap();
    assert!(read_from(&disk, all.len() as u64, FOREIGN).is_err());
}

/// A file in which something happens behind the first read.
struct Racing {
    file: Arc<dyn File>,
    then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl File for Racing {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let read = self.file.read_at(buffer, at);
        if let Some(then) = self.then.lock().unwrap().take() {
            then();
        }
        read
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.file.write_at(bytes, at)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// `status` of a busy queue called it corrupt: a batch was written between the look at its place and the look at what stands behind.
#[test]
fn a_batch_that_comes_during_a_look_is_no_damage() {
    let disk = new_disk(1);
    let mut writer = open(&disk).unwrap();
    writer.write_batch([Bytes::from_static(b"one")].iter()).unwrap();
    writer.seal().unwrap();
    let writer = Arc::new(Mutex::new(writer));
    let found = segment::last(&*folder(&disk), ID, false).unwrap();
    let raced = || {
        let writer = Arc::clone(&writer);
        let then = move || {
            let mut writer = writer.lock().unwrap();
            writer.write_batch([Bytes::from_static(b"more")].iter()).unwrap();
            writer.seal().unwrap();
        };
        let file: Arc<dyn File> = Arc::new(Racing { file: Arc::clone(&found.file), then: Mutex::new(Some(Box::new(then))) });
        Segment { file, header: found.header }
    };
    assert_eq!(raced().scan().unwrap_err().kind(), ErrorKind::Corrupt, "the writer's own look, which nothing can race");
    assert_eq!(raced().scan_beside_writer().unwrap().end, 3);
    disk.flip(&found.name(), 70);
    assert_eq!(found.scan_beside_writer().unwrap_err().kind(), ErrorKind::Corrupt);
}
