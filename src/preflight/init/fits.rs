//! Does a table that the replica has already fit the source's?

use std::fmt;

use super::casts::Casts;
use super::ddl;
use super::definition::{ColumnDefinition, TableDefinition};
use crate::postgres::sql::{quote_ident, quote_table};

/// What of a replica's table stands in the way of the source's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// What is so.
    pub what: String,
    /// Statements that mend it, in order.
    pub steps: Vec<String>,
    /// The column may be one that the replica has under another name: then this instead of the steps. Which is right only a person knows.
    pub if_renamed: Option<String>,
    /// Each row at the source got a value of its own from a sequence: where there are rows, statements do not bring the same ones.
    pub row_by_row: bool,
}

impl Misfit {
    fn new(what: String, step: String) -> Self {
        Self { what, steps: vec![step], if_renamed: None, row_by_row: false }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        if let Some(rename) = &self.if_renamed {
            write!(f, "{rename} if it was renamed; only if it is a new column: ")?;
        }
        write!(f, "{};", self.steps.join("; "))
    }
}

/// What stands in the way, each with the statements that mend it. Empty when rows of the source fit.
///
/// Types must print alike (both sides print them in full); the replica may have more columns when they need no value. What finds rows at
/// the source must find them here as well.
#[must_use]
pub fn misfits(source: &TableDefinition, replica: &TableDefinition, casts: &Casts) -> Vec<Misfit> {
    let name = quote_table(&replica.table);
    let mut found = Vec::new();
    for column in source.travelling() {
        let quoted = quote_ident(&column.name);
        let alter = format!("ALTER TABLE {name} ALTER COLUMN {quoted}");
        match replica.columns.iter().find(|c| c.name == column.name) {
            None => found.push(missing(column, source, replica)),
            Some(theirs) if theirs.generated.is_some() => {
                found.push(Misfit::new(
                    format!("column {quoted} is generated here and not at the source"),
                    format!("{alter} DROP EXPRESSION"),
                ));
            }
            Some(theirs) if theirs.type_text != column.type_text => found.push(Misfit::new(
                format!("column {quoted} is {} and should be {}", theirs.type_text, column.type_text),
                format!("ALTER TABLE {name} {}", retype(&quoted, column, theirs, casts)),
            )),
            Some(theirs) if theirs.not_null && !column.not_null => {
                found.push(Misfit::new(format!("column {quoted} is NOT NULL here only"), format!("{alter} DROP NOT NULL")));
            }
            Some(_) => {}
        }
    }
    for theirs in &replica.columns {
        let known = source.travelling().any(|c| c.name == theirs.name);
        if !known && theirs.not_null && theirs.expression.is_none() && theirs.identity.is_none() {
            let quoted = quote_ident(&theirs.name);
            found.push(Misfit::new(
                format!("column {quoted} is not in the source's table and needs a value"),
                format!("ALTER TABLE {name} ALTER COLUMN {quoted} DROP NOT NULL"),
            ));
        }
    }
    for key in source.constraints.iter().filter(|k| k.finds_rows && k.kind == 'p') {
        if !replica.constraints.iter().any(|k| k.kind == 'p' && k.text == key.text) {
            let step = format!("ALTER TABLE {name} ADD {}", key.text);
            found.push(Misfit::new("its primary key is not the source's".to_owned(), step));
        }
    }
    let identity = source.constraints.iter().filter(|k| k.finds_rows && k.kind == 'u').map(|k| k.text.as_str());
    for wanted in identity.chain(source.indexes.iter().filter(|i| i.finds_rows).map(|i| i.text.as_str())).map(indexed) {
        let keys = replica.constraints.iter().filter(|k| matches!(k.kind, 'p' | 'u')).map(|k| k.text.as_str());
        let mut unique = keys.chain(replica.indexes.iter().filter(|i| i.unique).map(|i| i.text.as_str()));
        if !unique.any(|text| indexed(text) == wanted) {
            let what = "the index that finds its rows at the source is missing".to_owned();
            found.push(Misfit::new(what, format!("CREATE UNIQUE INDEX ON {name} {wanted}")));
        }
    }
    found
}

/// A column that only the source has, with its default (rows that are here already must get what the source's rows got) and the sequences behind that.
fn missing(column: &ColumnDefinition, source: &TableDefinition, replica: &TableDefinition) -> Misfit {
    let (name, quoted) = (quote_table(&replica.table), quote_ident(&column.name));
    let default = match (&column.expression, column.generated) {
        (Some(expression), None) => format!(" DEFAULT {expression}"),
        _ => String::new(),
    };
    let of_column = TableDefinition {
        sequences: source.sequences.iter().filter(|sequence| sequence.column == column.name).cloned().collect(),
        ..source.clone()
    };
    let mut steps = ddl::create_sequences(&of_column);
    steps.push(format!("ALTER TABLE {name} ADD COLUMN {quoted} {}{default}", column.type_text));
    steps.extend(ddl::own_sequences(&of_column));
    let theirs = renamed(column, source, replica);
    let what = theirs.map_or_else(
        || format!("column {quoted} is missing"),
        |theirs| format!("column {quoted} is missing, and {} is only here", quote_ident(theirs)),
    );
    let if_renamed = theirs.map(|theirs| format!("ALTER TABLE {name} RENAME COLUMN {} TO {quoted}", quote_ident(theirs)));
    Misfit { what, steps, if_renamed, row_by_row: !of_column.sequences.is_empty() }
}

/// Gives a column its type. An explicit cast would cut values that are too long for it in silence, so there is one only where PostgreSQL has no other, and to
/// the type without its length: the length is checked behind it. A default may have no cast at all, and is set anew.
fn retype(quoted: &str, wanted: &ColumnDefinition, theirs: &ColumnDefinition, casts: &Casts) -> String {
    let alter = format!("ALTER COLUMN {quoted}");
    let retype = format!("{alter} TYPE {}", wanted.type_text);
    let Some(cast) = casts.explicit(&theirs.base_text, &wanted.base_text) else { return retype };
    let retype = format!("{retype} USING {quoted}{cast}");
    if theirs.expression.is_none() {
        return retype;
    }
    let default = wanted.expression.as_ref().filter(|_| wanted.generated.is_none());
    let default = default.map(|default| format!(", {alter} SET DEFAULT {default}")).unwrap_or_default();
    format!("{alter} DROP DEFAULT, {retype}{default}")
}

/// A column of the same type that only the replica has: the missing one may be that one under another name.
fn renamed<'a>(missing: &ColumnDefinition, source: &TableDefinition, replica: &'a TableDefinition) -> Option<&'a str> {
    let only_here = replica.columns.iter().filter(|theirs| source.columns.iter().all(|ours| ours.name != theirs.name));
    only_here.filter(|theirs| theirs.type_text == missing.type_text).map(|theirs| theirs.name.as_str()).next()
}

/// What a unique key is over, from a constraint's text or an index's; with its condition, if it has one.
fn indexed(text: &str) -> &str {
    let starts = ["PRIMARY KEY ", "UNIQUE ", " USING btree "];
    let rest = starts.iter().rev().find_map(|start| text.split_once(start).map(|(_, rest)| rest)).unwrap_or(text);
    rest.split(" INCLUDE ").next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_columns_however_it_is_written() {
        for text in [
            "PRIMARY KEY (a, b)",
            "UNIQUE (a, b) INCLUDE (c)",
            "CREATE UNIQUE INDEX i ON public.t USING btree (a, b) INCLUDE (c)",
        ] {
            assert_eq!(indexed(text), "(a, b)");
        }
        assert_eq!(indexed("CREATE UNIQUE INDEX i ON public.t USING btree (a) WHERE (a > 5)"), "(a) WHERE (a > 5)");
    }
}
