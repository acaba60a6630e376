//! The stream's registry: one JSON file, replaced whole. Several processes may change it; a lock held for the moment merges them.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::storage::{Folder, read_full, replace};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::failpoint;

/// The registry's file.
const FILE: &str = "registry.json";
/// Version of its format.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    entries: BTreeMap<String, Value>,
}

/// Values are JSON in practice, so text; anything else is kept as numbers.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Raw(Vec<u8>),
}

/// The entries; none when the file was never written.
pub(super) fn load(folder: &dyn Folder) -> Result<BTreeMap<String, Bytes>> {
    let Some(bytes) = read_small(folder, FILE)? else { return Ok(BTreeMap::new()) };
    let corrupt = |e| Error::new(ErrorKind::Corrupt, "the registry is not the JSON it should be").with_source(e).context(FILE);
    let contents: Contents = serde_json::from_slice(&bytes).map_err(corrupt)?;
    if contents.version > VERSION {
        let message = format!("registry format {}; this Millstream reads up to {VERSION}", contents.version);
        return Err(Error::new(ErrorKind::TooNew, message));
    }
    let raw = |value| match value {
        Value::Text(text) => Bytes::from(text),
        Value::Raw(bytes) => Bytes::from(bytes),
    };
    Ok(contents.entries.into_iter().map(|(key, value)| (key, raw(value))).collect())
}

/// Writes or deletes an entry, durably. The caller holds the registry's lock.
pub(super) fn put(folder: &dyn Folder, key: &str, value: Option<Bytes>) -> Result<()> {
    let mut entries = load(folder)?;
    match value {
        Some(value) => drop(entries.insert(key.to_owned(), value)),
        None => drop(entries.remove(key)),
    }
    let value = |bytes: Bytes| match std::str::from_utf8(&bytes) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::Raw(bytes.to_vec()),
    };
    let entries = entries.into_iter().map(|(key, bytes)| (key, value(bytes))).collect();
    let json = serde_json::to_vec_pretty(&Contents { version: VERSION, entries })
        .map_err(|e| Error::new(ErrorKind::Unexpected, "the registry cannot be written as JSON").with_source(e))?;
    replace(folder, FILE, &json, || failpoint::hit("queue.registry_renamed")).at(|| FILE)
}

/// A small file whole; `None` when it is not there.
pub(super) fn read_small(folder: &dyn Folder, name: &str) -> Result<Option<Vec<u8>>> {
    let file = match folder.open(name, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at(|| name.to_owned())?,
    };
    let length = file.len().at(|| name.to_owned())?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(64 << 20)];
    let read = read_full(&*file, &mut bytes, 0).at(|| name.to_owned())?;
    bytes.truncate(read);
    Ok(Some(bytes))
}
