//! How rows travel from source to replica.

/// How rows travel in a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    /// Any type, between any versions.
    Text,
    /// Types whose binary form is the same in every version and on every server, on both sides alike. Less work for both servers.
    Binary,
}

/// Built-in types (src/include/catalog/pg_type.dat) whose binary form holds no OID and has not changed since PostgreSQL 14: bool, bytea, int8, int2, int4,
/// text, json, cidr, float4, float8, inet, bpchar, varchar, date, time, timestamp, timestamptz, interval, timetz, numeric, uuid, jsonb.
const SAME_EVERYWHERE: &[u32] =
    &[16, 17, 20, 21, 23, 25, 114, 650, 700, 701, 869, 1042, 1043, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950, 3802];

impl CopyFormat {
    /// For columns of these types at the source, each with its type on the other side.
    #[must_use]
    pub fn between(mut types: impl Iterator<Item = (u32, Option<u32>)>) -> Self {
        let same = |(here, there): (u32, Option<u32>)| there == Some(here) && SAME_EVERYWHERE.contains(&here);
        if types.all(same) { Self::Binary } else { Self::Text }
    }

    /// What a COPY statement says of it.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Binary => " (FORMAT binary)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_travel_in_binary_only_where_their_types_are_the_same_everywhere() {
        let between = |types: &[(u32, Option<u32>)]| CopyFormat::between(types.iter().copied());
        assert_eq!(between(&[(20, Some(20)), (25, Some(25)), (1700, Some(1700))]), CopyFormat::Binary);
        // int4 into int8; an enum; an array, whose form holds its element's OID; a column that is not there.
        for odd in [(23, Some(20)), (16_400, Some(16_400)), (1007, Some(1007)), (25, None)] {
            assert_eq!(between(&[(20, Some(20)), odd]), CopyFormat::Text, "{odd:?}");
        }
    }
}
