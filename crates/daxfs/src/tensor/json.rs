//! JSON objects whose keys must be unique.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::TensorError;

/// All members of an object in the order of the text, duplicates included, in linear time.
///
/// A map would silently keep one of two equal keys; here [`Pairs::sorted`] finds them.
pub(super) struct Pairs<T>(pub(super) Vec<(String, T)>);

impl<T> Pairs<T> {
    /// The members sorted by key (bytes), or the first key that occurs twice.
    pub(super) fn sorted(mut self, what: &'static str) -> Result<Vec<(String, T)>, TensorError> {
        self.0.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        match self.0.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(TensorError::DuplicateKey { what, key: pair[0].0.clone() }),
            None => Ok(self.0),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value().map_err(|error| A::Error::custom(format!("{key:?}: {error}")))?;
            pairs.push((key, value));
        }
        Ok(Pairs(pairs))
    }
}

/// Parses a document, which must be UTF-8 JSON.
pub(super) fn text<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str, TensorError> {
    std::str::from_utf8(bytes).map_err(|error| TensorError::NotText { what, valid: error.valid_up_to() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_and_order_is_bytewise() {
        let pairs: Pairs<u8> = serde_json::from_str(r#"{"b":1,"a":2,"B":3}"#).unwrap();
        let keys: Vec<_> = pairs.sorted("test").unwrap().into_iter().map(|pair| pair.0).collect();
        assert_eq!(keys, ["B", "a", "b"]);
        let pairs: Pairs<u8> = serde_json::from_str(r#"{"b":1,"a":2,"\u0062":3}"#).unwrap();
        let error = pairs.sorted("test").map(|_| ()).unwrap_err();
        assert!(matches!(error, TensorError::DuplicateKey { what: "test", key } if key == "b"));
    }

    #[test]
    fn errors_name_the_key_and_the_position() {
        let error = serde_json::from_str::<Pairs<u8>>(r#"{"a":1,"x":"y"}"#).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("\"x\": invalid type") && text.ends_with("at line 1 column 14"), "{text}");
    }
}
