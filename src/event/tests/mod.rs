//! Properties of the codecs: what was written is read, in pieces too; what was damaged is an error and nothing worse.

mod arbitrary;
mod changes;
mod records;

use super::{Lsn, Position};

fn arbitrary_position() -> Position {
    Position::Lsn(Lsn(0x1234_5678))
}
