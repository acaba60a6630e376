//! 64-bit numbers in JSON payloads, as text: many JSON readers keep only 53 bits of a number.

/// A number as decimal digits.
pub(super) mod number {
    use std::fmt::Display;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<T: Display, S: Serializer>(number: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, T: From64, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map(T::from_u64).map_err(D::Error::custom)
    }

    /// Made of 64 bits.
    pub trait From64 {
        fn from_u64(number: u64) -> Self;
    }

    impl From64 for u64 {
        fn from_u64(number: u64) -> Self {
            number
        }
    }

    impl From64 for crate::event::Nonce {
        fn from_u64(number: u64) -> Self {
            Self(number)
        }
    }
}

/// Timelines and where they were left: `[[1, "0/16B3748"]]`.
pub(super) mod lineage {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::event::Lsn;

    pub fn serialize<S: Serializer>(lineage: &[(u32, u64)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(lineage.iter().map(|(timeline, left)| (timeline, Lsn(*left).to_string())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u32, u64)>, D::Error> {
        let pairs = Vec::<(u32, String)>::deserialize(deserializer)?;
        let lsn = |text: String| text.parse::<Lsn>().map_err(D::Error::custom);
        pairs.into_iter().map(|(timeline, left)| Ok((timeline, lsn(left)?.0))).collect()
    }
}
