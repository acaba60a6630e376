//! Does a table that the replica has already fit the source's?

use super::definition::TableDefinition;
use crate::postgres::sql::{quote_ident, quote_table};

/// What stands in the way, each with the statement that mends it. Empty when rows of the source fit.
///
/// Types must print alike (both sides print them in full); the replica may have more columns when they need no value. What finds rows at
/// the source must find them here as well.
#[must_use]
pub fn misfits(source: &TableDefinition, replica: &TableDefinition) -> Vec<String> {
    let name = quote_table(&replica.table);
    let mut found = Vec::new();
    for column in source.travelling() {
        let quoted = quote_ident(&column.name);
        match replica.columns.iter().find(|c| c.name == column.name) {
            None => {
                found.push(format!("column {quoted} is missing: ALTER TABLE {name} ADD COLUMN {quoted} {};", column.type_text))
            }
            Some(theirs) if theirs.generated.is_some() => {
                found.push(format!("column {quoted} is generated here and not at the source: ALTER TABLE {name} ALTER COLUMN {quoted} DROP EXPRESSION;"));
            }
            Some(theirs) if theirs.type_text != column.type_text => found.push(format!(
                "column {quoted} is {} and should be {}: ALTER TABLE {name} ALTER COLUMN {quoted} TYPE {};",
                theirs.type_text, column.type_text, column.type_text
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
    found
}
