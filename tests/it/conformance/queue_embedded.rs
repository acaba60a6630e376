//! The embedded queue: the suite, and what is its own.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millstream::ErrorKind;
use millstream::queue::Queue;
use millstream::queue::embedded::{EmbeddedQueue, Options};
use tempfile::TempDir;

use super::queue::{Ground, append_all, new_stream, queue_conforms};

struct Folder {
    folder: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

#[async_trait]
impl Ground for Folder {
    async fn open(&self) -> Arc<dyn Queue> {
        let options =
            Options { segment_bytes: 64 << 10, max_record_bytes: 256 << 10, in_flight_bytes: 1 << 20, batch_bytes: 512 << 10 };
        EmbeddedQueue::open_with(self.path(), options).unwrap()
    }
}

queue_conforms!(Folder::new());

#[tokio::test]
async fn a_second_writer_is_told_who_holds_the_stream() {
    let ground = Folder::new();
    let (queue, writer) = new_stream(&ground, "main").await;
    for queue in [queue.clone(), ground.open().await] {
        let error = queue.writer("main").await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Held);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        assert!(queue.destroy("main").await.is_err(), "a stream that is written to is not removed");
    }
    drop(writer);
    queue.writer("main").await.unwrap();
}

#[tokio::test]
async fn a_folder_has_one_daemon() {
    let ground = Folder::new();
    let lock = EmbeddedQueue::lock_daemon(ground.path()).unwrap();
    let error = EmbeddedQueue::lock_daemon(ground.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(lock);
    EmbeddedQueue::lock_daemon(ground.path()).unwrap();
}

#[tokio::test]
async fn streams_with_odd_names_do_not_meet() {
    let ground = Folder::new();
    let queue = ground.open().await;
    for name in ["a/b", "a%2Fb", "..", "ü", "a b"] {
        queue.create(name).await.unwrap();
        let mut writer = queue.writer(name).await.unwrap();
        append_all(&mut writer, [Bytes::copy_from_slice(name.as_bytes())]).await;
    }
    assert_eq!(std::fs::read_dir(ground.path()).unwrap().count(), 5);
}
