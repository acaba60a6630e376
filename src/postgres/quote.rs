//! Quoting for SQL and for replication commands: the one place where names and texts enter a statement.

use std::fmt::Write;

use crate::event::TableName;

/// A name, always quoted: `"a""b"`.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    surround(name, '"')
}

/// `"schema"."name"`.
#[must_use]
pub fn quote_table(table: &TableName) -> String {
    format!("{}.{}", quote_ident(&table.schema), quote_ident(&table.name))
}

/// A text in SQL: `'it''s'`. One with backslashes is right whatever `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') { format!(" E{}", surround(&text.replace('\\', "\\\\"), '\'')) } else { surround(text, '\'') }
}

/// A text in a replication command, whose grammar has no escapes but the doubled quote.
#[must_use]
pub fn quote_option(text: &str) -> String {
    surround(text, '\'')
}

/// Names for an option that PostgreSQL splits as a list of identifiers (`publication_names`), as one quoted text.
#[must_use]
pub fn quote_ident_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut list = String::new();
    for name in names {
        let comma = if list.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        write!(list, "{comma}{}", quote_ident(name)).unwrap_or_default();
    }
    quote_option(&list)
}

fn surround(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for character in text.chars() {
        if character == quote {
            out.push(quote);
        }
        out.push(character);
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_double_and_nothing_else_changes() {
        assert_eq!(quote_ident("a\"; DROP TABLE b; --"), "\"a\"\"; DROP TABLE b; --\"");
        assert_eq!(quote_literal("it's `so`\n"), "'it''s `so`\n'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
        assert_eq!(quote_option("a\\'b"), "'a\\''b'");
        assert_eq!(quote_table(&TableName::new("S", "t.u")), "\"S\".\"t.u\"");
        assert_eq!(quote_ident_list(["a", "b'c"]), "'\"a\",\"b''c\"'");
    }
}
