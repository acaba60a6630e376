//! Records and queue files as released versions wrote them: every later version reads them, and reads the same (fault 36).
//!
//! `tests/golden/v1/NAME.bin` is a record, `NAME.json` what it says, or `{"error": …}` for what a reader of version 1 must refuse.
//! `tests/golden/v1/queue/` is a folder of the embedded queue, `tests/golden/v1/pair/` a whole pair (`pair.rs`). Files are added, never changed: `cargo test --test it -- --ignored
//! write_the_corpus` writes those that are missing.

mod describe;
mod examples;
mod pair;

use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::event::Record;
use millstream::queue::Queue;
use millstream::queue::embedded::EmbeddedQueue;
use serde_json::Value;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

fn names() -> Vec<String> {
    let files = std::fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter_map(|name| name.strip_suffix(".bin").map(str::to_owned)).collect();
    names.sort_unstable();
    names
}

fn described(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(corpus().join(format!("{name}.json"))).unwrap()).unwrap()
}

#[test]
fn every_record_of_the_corpus_reads_as_described() {
    assert!(names().len() >= 15, "the corpus is there");
    for name in names() {
        let bytes = std::fs::read(corpus().join(format!("{name}.bin"))).unwrap();
        assert_eq!(describe::outcome(Record::decode(bytes.into())), described(&name), "{name}");
    }
}

#[test]
fn todays_writer_still_writes_the_corpus() {
    for (name, bytes) in examples::all() {
        assert_eq!(std::fs::read(corpus().join(format!("{name}.bin"))).unwrap(), bytes, "{name}: a new format needs new files");
    }
}

#[tokio::test]
async fn a_queue_folder_of_the_corpus_is_read_and_written_on() {
    let folder = tempfile::tempdir().unwrap();
    let stream = folder.path().join("main");
    std::fs::create_dir(&stream).unwrap();
    for entry in std::fs::read_dir(corpus().join("queue/main")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), stream.join(entry.file_name())).unwrap();
    }
    let queue = EmbeddedQueue::open(folder.path()).unwrap();
    let bounds = queue.bounds("main").await.unwrap().unwrap();
    let mut reader = queue.reader("main", bounds.start).await.unwrap();
    let records = reader.read(1 << 20, Duration::from_secs(5)).await.unwrap();
    let found: Vec<Value> = records
        .iter()
        .map(|r| serde_json::json!({"offset": r.offset.0, "record": describe::outcome(Record::decode(r.bytes.clone()))}))
        .collect();
    let expected: Value = serde_json::from_slice(&std::fs::read(corpus().join("queue/main.json")).unwrap()).unwrap();
    let registry = queue.registry("main").await.unwrap();
    let registry: Value = registry
        .iter()
        .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(
        serde_json::json!({"start": bounds.start.0, "end": bounds.end.0, "records": found, "registry": registry}),
        expected
    );
    let mut writer = queue.writer("main").await.unwrap();
    writer.append(records[0].bytes.clone()).await.unwrap();
    let durable = writer.durable_past(millstream::queue::Ticket(0)).await.unwrap();
    assert_eq!(durable.offset, bounds.end);
}

#[test]
#[ignore = "writes the files of the corpus that are missing"]
fn write_the_corpus() {
    for (name, bytes) in examples::all() {
        let (bin, json) = (corpus().join(format!("{name}.bin")), corpus().join(format!("{name}.json")));
        if !bin.exists() {
            std::fs::write(bin, &bytes).unwrap();
            let described = describe::outcome(Record::decode(bytes.into()));
            std::fs::write(json, serde_json::to_string_pretty(&described).unwrap() + "\n").unwrap();
        }
    }
    if !corpus().join("queue").exists() {
        examples::write_queue(&corpus().join("queue"));
    }
}
