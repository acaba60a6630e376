//! `[control]`: the local socket that orders come by.

use std::path::PathBuf;

use serde::Deserialize;

use super::Build;
use super::queue::{QueueConfig, QueueKind};
use crate::error::Result;

/// The local socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// Its file; `None` when switched off.
    pub socket: Option<PathBuf>,
}

/// As written.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawControl {
    pub socket: Option<PathBuf>,
}

/// The embedded queue's folder is one daemon's alone; a Kafka daemon has no folder of its own but this, which the unit makes.
const BESIDE_KAFKA: &str = "/run/millstream/millstream.sock";
const IN_FOLDER: &str = "millstream.sock";
/// `sun_path` holds 107 bytes and a zero (unix(7)); the socket is made under a longer name at first.
const MAX_PATH_BYTES: usize = 95;

impl Build<'_> {
    pub(super) fn control(&self, raw: RawControl, queue: &QueueConfig) -> Result<ControlConfig> {
        let key = ["control", "socket"];
        let socket = match (raw.socket, &queue.kind) {
            (Some(path), _) if path.as_os_str() == "off" => None,
            (Some(path), _) => {
                let path = self.absolute(&key, path)?;
                if path.as_os_str().len() > MAX_PATH_BYTES {
                    let shown = path.display();
                    return Err(self.error(
                        &key,
                        format!("'{shown}' is longer than {MAX_PATH_BYTES} bytes, which a socket's path may not be"),
                    ));
                }
                Some(path)
            }
            (None, QueueKind::Embedded { folder }) => Some(folder.join(IN_FOLDER)),
            (None, QueueKind::Kafka { .. }) => Some(PathBuf::from(BESIDE_KAFKA)),
        };
        Ok(ControlConfig { socket })
    }
}
