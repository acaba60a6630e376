//! Length, precision and scale (`pg_attribute.atttypmod`): whether the replica's column keeps what the source's can hold.
//!
//! Assignment to a column rounds numbers and times to its modifier, and cuts trailing blanks, without a word. Where that can happen the
//! replica would part from its source in silence (I5), so the table does not fit. A domain's modifier is the type's own and not seen here.

/// `VARHDRSZ`, which the modifiers of lengths and of numeric count in (src/include/catalog/pg_attribute.h, `atttypmod`).
const HEADER: i32 = 4;

/// True when every value under the source's modifier is stored on the replica as it is, or refused aloud. `type_name` is the
/// log's: `schema.type`, an array with a `_`.
#[must_use]
pub fn keeps(type_name: &str, source: i32, replica: i32) -> bool {
    if replica < 0 || replica == source {
        return true;
    }
    match element(type_name) {
        // Too many or too few bits are refused.
        "bit" | "varbit" => true,
        "varchar" | "bpchar" => source >= 0 && replica >= source,
        // Too many integer digits are refused.
        "numeric" => source >= 0 && scale(replica) >= scale(source),
        // Without a modifier they hold microseconds.
        "time" | "timetz" | "timestamp" | "timestamptz" => replica >= if source < 0 { 6 } else { source },
        _ => false,
    }
}

/// A type with its modifier, as a statement takes it; without one where its form is not known.
#[must_use]
pub fn spelled(type_name: &str, modifier: i32) -> String {
    let name = element(type_name);
    let known =
        matches!(name, "bit" | "varbit" | "varchar" | "bpchar" | "numeric" | "time" | "timetz" | "timestamp" | "timestamptz");
    if !known {
        return type_name.to_owned();
    }
    let arguments = match name {
        _ if modifier < 0 => String::new(),
        "numeric" => format!("({},{})", (modifier - HEADER) >> 16, scale(modifier)),
        "varchar" | "bpchar" => format!("({})", modifier - HEADER),
        _ => format!("({modifier})"),
    };
    // bpchar without a length is another type than char, which has the length 1.
    let name = if name == "bpchar" && modifier >= 0 { "char" } else { name };
    format!("{name}{arguments}{}", if type_name.starts_with("pg_catalog._") { "[]" } else { "" })
}

fn element(type_name: &str) -> &str {
    let name = type_name.strip_prefix("pg_catalog.").unwrap_or_default();
    name.strip_prefix('_').unwrap_or(name)
}

/// Eleven bits, signed (src/backend/utils/adt/numeric.c, `numeric_typmod_scale`); before PostgreSQL 15 sixteen, of which as many are used.
fn scale(modifier: i32) -> i32 {
    (((modifier - HEADER) & 0x7ff) ^ 1024) - 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(precision: i32, scale: i32) -> i32 {
        ((precision << 16) | (scale & 0x7ff)) + HEADER
    }

    #[test]
    fn only_what_loses_nothing_in_silence_fits() {
        for (name, source, replica, fits) in [
            ("pg_catalog.numeric", numeric(10, 2), numeric(10, 2), true),
            ("pg_catalog.numeric", numeric(12, 4), numeric(10, 2), false),
            ("pg_catalog.numeric", numeric(12, 4), numeric(4, 4), true),
            ("pg_catalog.numeric", numeric(12, -2), numeric(12, -3), false),
            ("pg_catalog.numeric", numeric(12, -2), numeric(12, 0), true),
            ("pg_catalog.numeric", -1, numeric(10, 2), false),
            ("pg_catalog.numeric", numeric(10, 2), -1, true),
            ("pg_catalog._numeric", numeric(12, 4), numeric(10, 2), false),
            ("pg_catalog.timestamp", -1, 0, false),
            ("pg_catalog.timestamp", -1, 6, true),
            ("pg_catalog.timestamptz", 3, 0, false),
            ("pg_catalog.time", 0, 3, true),
            ("pg_catalog.varchar", 14, 24, true),
            ("pg_catalog.varchar", 24, 14, false),
            ("pg_catalog.varchar", -1, 14, false),
            ("pg_catalog.bit", 3, 5, true),
            ("pg_catalog.interval", 5, 6, false),
            ("public.vector", 3, 4, false),
            ("public.vector", 3, 3, true),
        ] {
            assert_eq!(keeps(name, source, replica), fits, "{name} {source} {replica}");
        }
    }

    #[test]
    fn types_are_spelled_for_a_statement() {
        for (name, modifier, text) in [
            ("pg_catalog.numeric", numeric(12, 4), "numeric(12,4)"),
            ("pg_catalog.numeric", numeric(3, -2), "numeric(3,-2)"),
            ("pg_catalog._varchar", 14, "varchar(10)[]"),
            ("pg_catalog.bpchar", 9, "char(5)"),
            ("pg_catalog.timestamptz", -1, "timestamptz"),
            ("pg_catalog.time", 3, "time(3)"),
            ("pg_catalog.int8", -1, "pg_catalog.int8"),
        ] {
            assert_eq!(spelled(name, modifier), text);
        }
    }
}
