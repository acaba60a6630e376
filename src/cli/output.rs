//! Printing that survives a reader who has left (`millstream log tail shop | head -1`).

use std::io::{self, Write as _};

use crate::error::{Error, ErrorKind, Result};

/// Writes to standard output at once.
///
/// # Errors
/// [`ErrorKind::Cancelled`] when nobody reads it any more: the command then ends, and well.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::new(ErrorKind::Cancelled, "nobody reads the output"),
        _ => Error::new(ErrorKind::Io, "cannot write the output").with_source(error),
    })
}

/// As [`print()`], and a line end.
///
/// # Errors
/// As [`print()`].
pub fn print_line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}

/// A complaint. Nothing can be done when even that cannot be written.
pub fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
