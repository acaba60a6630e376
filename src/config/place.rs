//! Places in the file, and complaints that point at them without repeating a secret.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::error::{Error, ErrorKind};

/// The file's name and text.
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Document<'a> {
    pub fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    pub fn text(&self) -> &'a str {
        self.text
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// `file:line:column` of a key, of the nearest table above it that is there, or the file alone.
    pub fn place_of(&self, key: &[&str]) -> String {
        match self.span_of(key) {
            Some(span) => {
                let (line, column) = self.line_column(span.start);
                format!("{}:{line}:{column}", self.path.display())
            }
            None => self.path.display().to_string(),
        }
    }

    fn span_of(&self, key: &[&str]) -> Option<Range<usize>> {
        let document = DeTable::parse(self.text).ok()?;
        let mut table = document.get_ref();
        let mut span = None;
        for part in key {
            let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
            span = Some(name.span());
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        span
    }

    fn line_column(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.floor(at)];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn floor(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    /// A complaint of the TOML reader: place, the line with a caret, what is wrong.
    pub fn complaint(&self, error: &toml::de::Error) -> Error {
        let Some(span) = error.span() else {
            return Error::new(ErrorKind::Config, format!("{}: {}", self.path.display(), error.message()));
        };
        let (line, column) = self.line_column(span.start);
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let (shown, masked_from) = mask(text);
        let message = if masked_from.is_some() || error.message().starts_with("invalid type") {
            without_value(error.message())
        } else {
            error.message().to_owned()
        };
        let caret = masked_from.map_or(column, |limit| column.min(limit + 1));
        let width = if masked_from.is_some() {
            1
        } else {
            self.text[self.floor(span.start)..self.floor(span.end)].lines().next().map_or(1, |l| l.chars().count().max(1))
        };
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let pad: String = shown.chars().take(caret - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let message = format!(
            "{}:{line}:{column}: {message}\n{gutter} |\n{number} | {shown}\n{gutter} | {pad}{}",
            self.path.display(),
            "^".repeat(width)
        );
        Error::new(ErrorKind::Config, message)
    }
}

/// A line that may hold a secret is shown up to its first `=`. Gives the number of characters left as they were.
fn mask(line: &str) -> (String, Option<usize>) {
    let lower = line.to_lowercase();
    let secret = ["passw", "pasw", "secret", "token", "pwd"].iter().any(|word| lower.contains(word));
    let credentials = lower.contains("://") && lower.contains('@');
    if !secret && !credentials {
        return (line.to_owned(), None);
    }
    let kept = line.find('=').map_or(0, |i| i + 1);
    (format!("{} …", &line[..kept]), Some(line[..kept].chars().count()))
}

/// serde's "invalid type: string "hunter2", expected …" without the value.
fn without_value(message: &str) -> String {
    match (message.strip_prefix("invalid type: "), message.rfind(", expected ")) {
        (Some(rest), Some(expected)) => {
            let what = rest.split_whitespace().next().unwrap_or_default();
            format!("invalid type: {what}{}", &message[expected..])
        }
        _ if message.starts_with("unknown field") || message.starts_with("duplicate key") => message.to_owned(),
        _ => message.split(['"', '\'', ':']).next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_secret_is_not_repeated() {
        let text = "[source.shop]\npasword = \"hunter2\"\n";
        let error = toml::from_str::<std::collections::BTreeMap<String, std::collections::BTreeMap<String, u8>>>(text);
        let shown = Document::new(Path::new("x.toml"), text).complaint(&error.expect_err("a text is no number")).to_string();
        assert!(shown.starts_with("x.toml:"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_place_is_that_of_the_key() {
        let text = "[source.shop]\nurl = \"x\"\n\n[queue]\n  url = 1\n";
        let document = Document::new(Path::new("x.toml"), text);
        assert_eq!(document.place_of(&["queue", "url"]), "x.toml:5:3");
        assert_eq!(document.place_of(&["source", "shop", "tables"]), "x.toml:1:9");
        assert_eq!(document.place_of(&["replica"]), "x.toml");
    }
}
