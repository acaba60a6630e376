//! The one place where names become SQL.

use crate::event::TableName;

/// An identifier, quoted: whatever the name holds, it stays one identifier (PostgreSQL documentation, "Identifiers and Key Words").
#[must_use]
pub fn ident(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    push_ident(&mut out, name);
    out
}

/// Appends a quoted identifier.
pub fn push_ident(out: &mut String, name: &str) {
    out.push('"');
    for c in name.chars() {
        if c == '"' {
            out.push('"');
        }
        out.push(c);
    }
    out.push('"');
}

/// A table's qualified name, quoted.
#[must_use]
pub fn table(name: &TableName) -> String {
    let mut out = String::with_capacity(name.schema.len() + name.name.len() + 5);
    push_ident(&mut out, &name.schema);
    out.push('.');
    push_ident(&mut out, &name.name);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_identifier_whatever_it_holds() {
        assert_eq!(ident("plain"), "\"plain\"");
        assert_eq!(ident("a\"; DROP TABLE t;--\n"), "\"a\"\"; DROP TABLE t;--\n\"");
        assert_eq!(table(&TableName::new("S.x", "\"")), "\"S.x\".\"\"\"\"");
    }
}
