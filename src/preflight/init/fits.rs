//! Does a table that the replica has already fit the source's?

use super::casts::Casts;
use super::definition::{ColumnDefinition, TableDefinition};
use crate::postgres::sql::{quote_ident, quote_table};

/// Between the statement for a column that was renamed and that for a new one: which is right only a person knows.
pub const OR_NEW: &str = " if it was renamed; only if it is a new column: ";

/// What stands in the way, each with the statement that mends it. Empty when rows of the source fit.
///
/// Types must print alike (both sides print them in full); the replica may have more columns when they need no value. What finds rows at
/// the source must find them here as well.
#[must_use]
pub fn misfits(source: &TableDefinition, replica: &TableDefinition, casts: &Casts) -> Vec<String> {
    let name = quote_table(&replica.table);
    let mut found = Vec::new();
    for column in source.travelling() {
        let quoted = quote_ident(&column.name);
        match replica.columns.iter().find(|c| c.name == column.name) {
            None => {
                // With its default: rows that are here already must get what the source's rows got.
                let default = match (&column.expression, column.generated) {
                    (Some(expression), None) => format!(" DEFAULT {expression}"),
                    _ => String::new(),
                };
                let add = format!("ALTER TABLE {name} ADD COLUMN {quoted} {}{default}", column.type_text);
                found.push(match renamed(column, source, replica).map(quote_ident) {
                    None => format!("column {quoted} is missing: {add};"),
                    Some(theirs) => format!(
                        "column {quoted} is missing, and {theirs} is only here: ALTER TABLE {name} RENAME COLUMN {theirs} TO {quoted}{OR_NEW}{add};"
                    ),
                });
            }
            Some(theirs) if theirs.generated.is_some() => {
                found.push(format!("column {quoted} is generated here and not at the source: ALTER TABLE {name} ALTER COLUMN {quoted} DROP EXPRESSION;"));
            }
            Some(theirs) if theirs.type_text != column.type_text => found.push(format!(
                "column {quoted} is {} and should be {}: ALTER TABLE {name} {};",
                theirs.type_text,
                column.type_text,
                retype(&quoted, column, theirs, casts)
            )),
            Some(theirs) if theirs.not_null && !column.not_null => {
                found.push(format!(
                    "column {quoted} is NOT NULL here only: ALTER TABLE {name} ALTER COLUMN {quoted} DROP NOT NULL;"
                ));
            }
            Some(_) => {}
        }
    }
    for theirs in &replica.columns {
        let known = source.travelling().any(|c| c.name == theirs.name);
        if !known && theirs.not_null && theirs.expression.is_none() && theirs.identity.is_none() {
            let quoted = quote_ident(&theirs.name);
            found.push(format!("column {quoted} is not in the source's table and needs a value: ALTER TABLE {name} ALTER COLUMN {quoted} DROP NOT NULL;"));
        }
    }
    for key in source.constraints.iter().filter(|k| k.finds_rows && k.kind == 'p') {
        if !replica.constraints.iter().any(|k| k.kind == 'p' && k.text == key.text) {
            found.push(format!("its primary key is not the source's: ALTER TABLE {name} ADD {};", key.text));
        }
    }
    let identity = source.constraints.iter().filter(|k| k.finds_rows && k.kind == 'u').map(|k| k.text.as_str());
    for wanted in identity.chain(source.indexes.iter().filter(|i| i.finds_rows).map(|i| i.text.as_str())).map(indexed) {
        let keys = replica.constraints.iter().filter(|k| matches!(k.kind, 'p' | 'u')).map(|k| k.text.as_str());
        let mut unique = keys.chain(replica.indexes.iter().filter(|i| i.unique).map(|i| i.text.as_str()));
        if !unique.any(|text| indexed(text) == wanted) {
            found
                .push(format!("the index that finds its rows at the source is missing: CREATE UNIQUE INDEX ON {name} {wanted};"));
        }
    }
    found
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
