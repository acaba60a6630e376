//! A segment of the embedded queue as it lies on disk: bytes of any kind, and a real one in which something was changed or cut off. Never a panic; readers give
//! what was written, as far as they get, and a writer goes on behind it or refuses.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::event::QueueOffset;
use millstream::queue::embedded::EmbeddedQueue;
use millstream::queue::{Queue, Ticket};
use tokio::runtime::Runtime;

const STREAM: &str = "shop";
const SEGMENT: &str = "shop/00000000000000000000.seg";

/// A queue's folder in memory, and what its first segment looks like before anything was written.
struct Ground {
    folder: PathBuf,
    empty: Vec<u8>,
    runtime: Runtime,
}

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let root = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let folder = root.join(format!("millstream-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let queue = EmbeddedQueue::open(&folder).expect("a queue");
    runtime.block_on(queue.create(STREAM)).expect("a stream");
    let empty = fs::read(folder.join(SEGMENT)).expect("a segment");
    Ground { folder, empty, runtime }
});

fuzz_target!(|input: (u8, Vec<u8>, Vec<(u16, u8)>, u16)| {
    let (mode, bytes, changes, cut) = input;
    let ground = &*GROUND;
    let file = ground.folder.join(SEGMENT);
    fs::write(&file, &ground.empty).expect("a fresh segment");
    match mode % 3 {
        0 => {
            fs::write(&file, &bytes).expect("bytes");
            look(ground, None);
        }
        1 => {
            fs::write(&file, [&ground.empty[..], &bytes].concat()).expect("bytes");
            look(ground, None);
        }
        _ => {
            let records: Vec<Bytes> = bytes.split(|byte| *byte == 0).take(40).map(Bytes::copy_from_slice).collect();
            ground.runtime.block_on(write(ground, &records));
            let mut whole = fs::read(&file).expect("the segment");
            // One byte, which no checksum misses; or an end that is not there.
            if let Some((at, value)) = changes.first() {
                let at = usize::from(*at) % whole.len();
                whole[at] = *value;
            } else {
                whole.truncate(whole.len().saturating_sub(usize::from(cut)));
            }
            fs::write(&file, &whole).expect("damage");
            look(ground, Some(&records));
        }
    }
});

async fn write(ground: &Ground, records: &[Bytes]) {
    let queue = EmbeddedQueue::open(&ground.folder).expect("a queue");
    let mut writer = queue.writer(STREAM).await.expect("a writer");
    // Several batches, of as many records as are left and fit.
    for batch in records.chunks(3) {
        let mut last = Ticket(0);
        for record in batch {
            last = writer.append(record.clone()).await.expect("appended");
        }
        let mut seen = Ticket(last.0 - 1);
        while seen < last {
            seen = writer.durable_past(seen).await.expect("durable").ticket;
        }
    }
    drop(writer);
    finished(ground);
}

/// Waits for a writer that was dropped: its thread seals the segment and then lets go of the lock.
fn finished(ground: &Ground) {
    let lock = fs::File::open(ground.folder.join("shop/writer.lock")).expect("the writer's lock");
    lock.lock().expect("flock");
}

/// Reads everything, then lets a writer recover it, then reads again: recovery takes nothing away that a reader was given.
fn look(ground: &Ground, written: Option<&[Bytes]>) {
    ground.runtime.block_on(async {
        let before = read(ground).await;
        let writer = EmbeddedQueue::open(&ground.folder).expect("a queue").writer(STREAM).await;
        let recovered = writer.is_ok();
        drop(writer);
        finished(ground);
        let after = read(ground).await;
        if recovered {
            assert!(after.len() >= before.len() && after.starts_with(&before), "{} records, then {}", before.len(), after.len());
        }
        if let Some(written) = written {
            assert!(written.starts_with(&after) && written.starts_with(&before), "{before:?} {after:?} of {written:?}");
        }
    });
}

async fn read(ground: &Ground) -> Vec<Bytes> {
    let queue = EmbeddedQueue::open(&ground.folder).expect("a queue");
    drop(queue.bounds(STREAM).await);
    let mut found = Vec::new();
    let Ok(mut reader) = queue.reader(STREAM, QueueOffset(0)).await else { return found };
    // Twice nothing: a last batch that nobody sealed is believed the second time.
    let mut nothing = 0;
    while nothing < 2 {
        match reader.read(200, Duration::ZERO).await {
            Ok(records) if records.is_empty() => nothing += 1,
            Ok(records) => found.extend(records.into_iter().map(|record| record.bytes)),
            Err(_) => break,
        }
    }
    found
}
