//! The small files beside an embedded queue's segments, with bytes of any kind in them: never a panic, and what is refused stays as it lies.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream::event::QueueOffset;
use millstream::queue::Queue;
use millstream::queue::embedded::EmbeddedQueue;
use tokio::runtime::Runtime;

const STREAM: &str = "shop";
const FILES: [&str; 3] = ["stream.json", "registry.json", "start.json"];

/// A queue's folder in memory, and its small files as they should be.
struct Ground {
    folder: PathBuf,
    sound: [Option<Vec<u8>>; 3],
    runtime: Runtime,
}

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let root = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let folder = root.join(format!("millstream-fuzz-files-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let queue = EmbeddedQueue::open(&folder).expect("a queue");
    runtime.block_on(async {
        queue.create(STREAM).await.expect("a stream");
        queue.registry_put(STREAM, "consumer/reports", Some(Bytes::from_static(b"{}"))).await.expect("an entry");
    });
    let sound = FILES.map(|name| fs::read(folder.join(STREAM).join(name)).ok());
    Ground { folder, sound, runtime }
});

fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    let ground = &*GROUND;
    let which = usize::from(which) % FILES.len();
    let stream = ground.folder.join(STREAM);
    for (name, sound) in FILES.iter().zip(&ground.sound) {
        match sound {
            Some(sound) => fs::write(stream.join(name), sound).expect("a sound file"),
            None => drop(fs::remove_file(stream.join(name))),
        }
    }
    let file = stream.join(FILES[which]);
    fs::write(&file, bytes).expect("bytes");
    let Ok(queue) = EmbeddedQueue::open(&ground.folder) else { return };
    ground.runtime.block_on(async {
        drop(queue.bounds(STREAM).await);
        drop(queue.reader(STREAM, QueueOffset(0)).await);
        let before = queue.registry(STREAM).await;
        let put = queue.registry_put(STREAM, "consumer/other", Some(Bytes::from_static(b"{}"))).await;
        match (before, put) {
            (Ok(mut entries), Ok(())) => {
                entries.insert("consumer/other".into(), Bytes::from_static(b"{}"));
                assert_eq!(queue.registry(STREAM).await.expect("what it wrote itself"), entries);
            }
            (_, Err(_)) => assert_eq!(fs::read(&file).expect("the file"), bytes, "what is refused is not written over"),
            (Err(e), Ok(())) => panic!("an entry was put beside others that cannot be read: {e}"),
        }
    });
});
