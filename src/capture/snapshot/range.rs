//! Pieces of a table's key range.

use super::shape::KeyColumn;
use crate::postgres::{quote_ident, quote_literal};

/// A piece of a table's key range. Bounds are keys as text, in the key's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// First key; `None` from the beginning.
    pub lower: Option<Vec<String>>,
    /// First key behind it; `None` to the end. Equal to `lower`: that key alone.
    pub upper: Option<Vec<String>>,
}

impl KeyRange {
    /// True when the range is one key.
    #[must_use]
    pub fn is_single_key(&self) -> bool {
        self.lower.is_some() && self.lower == self.upper
    }

    /// The condition, for a WHERE of the source or of a replica that holds one key.
    #[must_use]
    pub fn condition(&self, key: &[KeyColumn]) -> String {
        let columns = key.iter().map(|k| quote_ident(&k.name)).collect::<Vec<_>>().join(", ");
        let bound = |values: &[String]| {
            let cast = |(value, k): (&String, &KeyColumn)| format!("{}::{}", quote_literal(value), k.type_text);
            values.iter().zip(key).map(cast).collect::<Vec<_>>().join(", ")
        };
        let compare = |operator: &str, values: &[String]| match key.len() {
            1 => format!("{columns} {operator} {}", bound(values)),
            _ => format!("({columns}) {operator} ({})", bound(values)),
        };
        match (&self.lower, &self.upper) {
            (Some(lower), _) if self.is_single_key() => compare("=", lower),
            (Some(lower), Some(upper)) => format!("{} AND {}", compare(">=", lower), compare("<", upper)),
            (Some(lower), None) => compare(">=", lower),
            (None, Some(upper)) => compare("<", upper),
            (None, None) => "true".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_conditions_that_an_index_can_use() {
        let column = |name: &str, type_text: &str| KeyColumn {
            index: 0,
            name: name.into(),
            type_text: type_text.into(),
            collation: None,
            native: None,
        };
        let key = [column("a", "integer"), column("b\"", "text")];
        let bound = |a: &str, b: &str| Some(vec![a.to_owned(), b.to_owned()]);
        let range = KeyRange { lower: bound("1", "x'y"), upper: None };
        assert_eq!(range.condition(&key), "(\"a\", \"b\"\"\") >= ('1'::integer, 'x''y'::text)");
        let range = KeyRange { lower: bound("1", "x"), upper: bound("1", "x") };
        assert!(range.is_single_key());
        assert_eq!(range.condition(&key), "(\"a\", \"b\"\"\") = ('1'::integer, 'x'::text)");
        let range = KeyRange { lower: Some(vec!["1".into()]), upper: Some(vec!["5".into()]) };
        assert_eq!(range.condition(&key[..1]), "\"a\" >= '1'::integer AND \"a\" < '5'::integer");
        assert_eq!(KeyRange::default().condition(&key), "true");
    }
}
