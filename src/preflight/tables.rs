//! Which tables of a source its configured patterns name.

use crate::error::{Error, ErrorKind, Result};
use crate::event::TableName;

/// Patterns of tables: `schema.name` with `*` and `?`, `!` in front excludes; the last pattern that matches decides.
///
/// A part may stand in double quotes (`"My Schema"."a.b"`), inside which only `""` is special. Names are compared as the
/// catalog has them, case kept.
#[derive(Clone, Debug)]
pub struct TablePatterns(Vec<Pattern>);

#[derive(Clone, Debug)]
struct Pattern {
    include: bool,
    schema: Part,
    name: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Exact(String),
    Glob(String),
}

impl TablePatterns {
    /// Reads patterns.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with the pattern that cannot be read.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Self> {
        patterns.iter().map(|text| parse(text.as_ref())).collect::<Result<_>>().map(Self)
    }

    /// True when the last pattern that matches includes.
    #[must_use]
    pub fn matches(&self, table: &TableName) -> bool {
        self.verdict(table) == Some(true)
    }

    /// What the last pattern that matches says; `None` when none does.
    #[must_use]
    pub fn verdict(&self, table: &TableName) -> Option<bool> {
        let mut last_first = self.0.iter().rev();
        last_first.find(|p| p.schema.matches(&table.schema) && p.name.matches(&table.name)).map(|p| p.include)
    }

    /// The same for PostgreSQL: regular expressions over schema, U+001F, name; `!` in front excludes (`millstream.captured`).
    #[must_use]
    pub fn regexes(&self) -> Vec<String> {
        let whole = |p: &Pattern| {
            let mark = if p.include { "" } else { "!" };
            format!("{mark}^{}\\u001f{}$", p.schema.regex(), p.name.regex())
        };
        self.0.iter().map(whole).collect()
    }
}

/// One table, named as a pattern names it that has neither `*` nor `?`.
///
/// # Errors
/// [`ErrorKind::Config`] with what cannot be read.
pub fn one(text: &str) -> Result<TableName> {
    let exact = |part| match part {
        Part::Exact(name) => Some(name),
        Part::Glob(name) => Some(name).filter(|name| !name.contains(['*', '?'])),
    };
    let found = parse(text).ok().filter(|pattern| pattern.include);
    let found = found.and_then(|pattern| Some(TableName::new(exact(pattern.schema)?, exact(pattern.name)?)));
    found.ok_or_else(|| Error::new(ErrorKind::Config, format!("'{text}' is not a table; one looks like public.orders")))
}

/// The pattern of one table, whatever its name holds.
#[must_use]
pub fn exactly(table: &TableName) -> String {
    let part = |name: &str| {
        let special = name.starts_with('!') || name.contains(['.', '"', '*', '?']);
        if special { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
    };
    format!("{}.{}", part(&table.schema), part(&table.name))
}

fn parse(text: &str) -> Result<Pattern> {
    let (include, body) = text.strip_prefix('!').map_or((true, text), |rest| (false, rest));
    let bad = || {
        let message =
            format!("'{text}' is not a table pattern; one looks like \"public.*\", \"!public.scratch_*\" or \"shop.orders\"");
        Error::new(ErrorKind::Config, message)
    };
    let (schema, rest) = part(body).ok_or_else(bad)?;
    let (name, rest) = rest.strip_prefix('.').and_then(part).ok_or_else(bad)?;
    if rest.is_empty() { Ok(Pattern { include, schema, name }) } else { Err(bad()) }
}

fn part(text: &str) -> Option<(Part, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        return (end > 0).then(|| (Part::Glob(text[..end].to_owned()), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let (before, after) = rest.split_once('"')?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return (!name.is_empty()).then_some((Part::Exact(name), after)),
        }
    }
}

impl Part {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Glob(glob) => glob_matches(glob, name),
        }
    }

    /// `\u` takes four digits and no more; what is no letter or digit stands for itself behind a backslash (PostgreSQL documentation,
    /// "Regular Expression Escapes").
    fn regex(&self) -> String {
        let (text, glob) = match self {
            Self::Exact(text) => (text, false),
            Self::Glob(text) => (text, true),
        };
        let mut out = String::with_capacity(text.len() + 8);
        for character in text.chars() {
            match character {
                '*' if glob => out.push_str("[^\\u001f]*"),
                '?' if glob => out.push_str("[^\\u001f]"),
                _ => {
                    if character.is_ascii_punctuation() && character != '_' {
                        out.push('\\');
                    }
                    out.push(character);
                }
            }
        }
        out
    }
}

/// `*` is any run of characters, `?` is one. Linear in practice: on a mismatch only the last star is moved.
fn glob_matches(glob: &str, name: &str) -> bool {
    let (glob, name): (Vec<char>, Vec<char>) = (glob.chars().collect(), name.chars().collect());
    let (mut g, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, n));
                g += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                g += 1;
                n += 1;
            }
            _ => match star {
                None => return false,
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    n = from + 1;
                }
            },
        }
    }
    glob[g..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(patterns: &[&str], schema: &str, name: &str) -> bool {
        TablePatterns::parse(patterns).unwrap().matches(&TableName::new(schema, name))
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let patterns = ["public.*", "!public.scratch_*", "public.scratch_keep"];
        assert!(matches(&patterns, "public", "orders"));
        assert!(!matches(&patterns, "public", "scratch_1"));
        assert!(matches(&patterns, "public", "scratch_keep"));
        assert!(!matches(&patterns, "other", "orders"));
    }

    #[test]
    fn one_table_is_named_without_a_doubt() {
        assert_eq!(one("public.orders").unwrap(), TableName::new("public", "orders"));
        assert_eq!(one("\"My Schema\".\"a.b*\"").unwrap(), TableName::new("My Schema", "a.b*"));
        for bad in ["orders", "public.*", "!public.orders", "public.", "a.b.c", "public.o?"] {
            assert!(one(bad).is_err(), "{bad}");
        }
        let odd = TableName::new("!a", "b\"?");
        assert_eq!(one(&exactly(&odd)).unwrap(), odd);
    }

    #[test]
    fn quoted_parts_are_taken_as_they_stand() {
        assert!(matches(&["\"My Schema\".\"a.b\"\"*\""], "My Schema", "a.b\"*"));
        assert!(!matches(&["\"My Schema\".\"a*\""], "My Schema", "abc"));
        assert!(matches(&["?ub*.o*s"], "public", "orders"));
    }

    #[test]
    fn a_table_of_any_name_has_a_pattern() {
        assert_eq!(exactly(&TableName::new("public", "orders")), "public.orders");
        for name in ["a.b", "\"", "*", "a?", "!x", "a b"] {
            let (table, other) = (TableName::new(name, name), TableName::new(name, "ab"));
            let patterns = TablePatterns::parse(&["*.*".to_owned(), format!("!{}", exactly(&table))]).unwrap();
            assert!(!patterns.matches(&table) && patterns.matches(&other), "{name}");
        }
    }

    #[test]
    fn as_regular_expressions_of_postgresql() {
        let patterns = TablePatterns::parse(&["pub?.*", "!\"a.b\".\"x*\"", "s.t_1"]).unwrap();
        let wanted = ["^pub[^\\u001f]\\u001f[^\\u001f]*$", "!^a\\.b\\u001fx\\*$", "^s\\u001ft_1$"];
        assert_eq!(patterns.regexes(), wanted);
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for bad in ["orders", "", "!", "public.", ".x", "a.b.c", "\"a.b", "\"\".x"] {
            let error = TablePatterns::parse(&[bad]).unwrap_err();
            assert!(error.to_string().contains("is not a table pattern"), "{bad}");
        }
    }
}
