//! What files of tensors say beside their tensors: values by key, as small typed values.
//!
//! Lists are kept as close as they lie in the file: the vocabulary of a language model is a list of 260,000 texts.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;

use serde::ser::{Serialize, SerializeSeq, Serializer};

/// A value of the metadata of a file of tensors.
///
/// safetensors has texts only; GGUF has all of them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A text.
    Text(String),
    /// An unsigned integer.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// A floating-point number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Bytes: a list of unsigned 8-bit integers.
    Bytes(Vec<u8>),
    /// A list of values of one kind.
    List(List),
}

impl Value {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is an integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_list(&self) -> Option<&List> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// About how many bytes it occupies.
    pub(super) fn cost(&self) -> u64 {
        let more = match self {
            Self::Text(text) => text.len() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.cost(),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Bool(_) => 0,
        };
        (size_of::<Self>() as u64).saturating_add(more)
    }
}

impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == Some(other)
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == Some(*other)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Unsigned(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Bool(is_true) => serializer.serialize_bool(*is_true),
            Self::Bytes(bytes) => bytes.serialize(serializer),
            Self::List(list) => {
                let mut sequence = serializer.serialize_seq(Some(list.len()))?;
                for value in list.iter() {
                    sequence.serialize_element(&value)?;
                }
                sequence.end()
            }
        }
    }
}

/// A list in the metadata of a file of tensors. Its values are made when they are asked for.
#[derive(Clone, PartialEq)]
pub struct List(Items);

#[derive(Debug, Clone, PartialEq)]
enum Items {
    /// Bytes of all texts, and where each ends.
    Texts {
        bytes: String,
        ends: Vec<usize>,
    },
    Unsigned(Vec<u64>),
    Signed32(Vec<i32>),
    Signed(Vec<i64>),
    Float32(Vec<f32>),
    Float(Vec<f64>),
    Bools(Vec<bool>),
    /// Lists, and what is empty.
    Values(Vec<Value>),
}

impl List {
    /// Texts: those that end at `ends` in `bytes`. Gives both back where these are not in order or within characters.
    pub(super) fn texts(bytes: String, ends: Vec<usize>) -> Result<Self, (String, Vec<usize>)> {
        let mut start = 0;
        for &end in &ends {
            if bytes.get(start..end).is_none() {
                return Err((bytes, ends));
            }
            start = end;
        }
        Ok(Self(Items::Texts { bytes, ends }))
    }

    pub(super) fn unsigned(numbers: Vec<u64>) -> Self {
        Self(Items::Unsigned(numbers))
    }

    pub(super) fn signed32(numbers: Vec<i32>) -> Self {
        Self(Items::Signed32(numbers))
    }

    pub(super) fn signed(numbers: Vec<i64>) -> Self {
        Self(Items::Signed(numbers))
    }

    pub(super) fn float32(numbers: Vec<f32>) -> Self {
        Self(Items::Float32(numbers))
    }

    pub(super) fn float(numbers: Vec<f64>) -> Self {
        Self(Items::Float(numbers))
    }

    pub(super) fn bools(values: Vec<bool>) -> Self {
        Self(Items::Bools(values))
    }

    pub(super) fn values(values: Vec<Value>) -> Self {
        Self(Items::Values(values))
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Items::Texts { ends, .. } => ends.len(),
            Items::Unsigned(numbers) => numbers.len(),
            Items::Signed32(numbers) => numbers.len(),
            Items::Signed(numbers) => numbers.len(),
            Items::Float32(numbers) => numbers.len(),
            Items::Float(numbers) => numbers.len(),
            Items::Bools(values) => values.len(),
            Items::Values(values) => values.len(),
        }
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at a position.
    pub fn get(&self, at: usize) -> Option<Value> {
        Some(match &self.0 {
            Items::Texts { .. } => Value::Text(self.text(at)?.to_owned()),
            Items::Unsigned(numbers) => Value::Unsigned(*numbers.get(at)?),
            Items::Signed32(numbers) => Value::Signed((*numbers.get(at)?).into()),
            Items::Signed(numbers) => Value::Signed(*numbers.get(at)?),
            Items::Float32(numbers) => Value::Float((*numbers.get(at)?).into()),
            Items::Float(numbers) => Value::Float(*numbers.get(at)?),
            Items::Bools(values) => Value::Bool(*values.get(at)?),
            Items::Values(values) => values.get(at)?.clone(),
        })
    }

    /// The text at a position, where the list is one of texts.
    pub fn text(&self, at: usize) -> Option<&str> {
        let Items::Texts { bytes, ends } = &self.0 else { return None };
        let start = match at.checked_sub(1) {
            Some(before) => *ends.get(before)?,
            None => 0,
        };
        bytes.get(start..*ends.get(at)?)
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        (0..self.len()).map_while(|at| self.get(at))
    }

    fn cost(&self) -> u64 {
        let bytes = match &self.0 {
            Items::Texts { bytes, ends } => bytes.len().saturating_add(size_of_val::<[usize]>(ends)),
            Items::Unsigned(numbers) => size_of_val::<[u64]>(numbers),
            Items::Signed32(numbers) => size_of_val::<[i32]>(numbers),
            Items::Signed(numbers) => size_of_val::<[i64]>(numbers),
            Items::Float32(numbers) => size_of_val::<[f32]>(numbers),
            Items::Float(numbers) => size_of_val::<[f64]>(numbers),
            Items::Bools(values) => values.len(),
            Items::Values(values) => {
                return values.iter().fold(0, |sum, value| sum.saturating_add(value.cost()));
            }
        };
        bytes as u64
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_give_their_values() {
        let texts = List::texts("abécd".into(), vec![1, 1, 4, 6]).unwrap();
        let found: Vec<_> = (0..texts.len()).map(|at| texts.text(at).unwrap()).collect();
        assert_eq!(found, ["a", "", "bé", "cd"]);
        assert_eq!(texts.get(2), Some("bé".into()));
        assert_eq!((texts.get(4), texts.text(9)), (None, None));
        assert!(List::texts("é".into(), vec![1]).is_err(), "within a character");
        assert!(List::texts("ab".into(), vec![2, 1]).is_err(), "backwards");
        assert!(List::texts("ab".into(), vec![3]).is_err(), "behind the end");
        let numbers = List::signed32(vec![-1, 7]);
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [Value::Signed(-1), Value::Signed(7)]);
        assert!(numbers.text(0).is_none() && List::values(Vec::new()).is_empty());
    }

    #[test]
    fn values_are_written_as_json() {
        let value = Value::List(List::values(vec![
            "a\"b".into(),
            Value::Bytes(vec![0, 255]),
            Value::List(List::bools(vec![true])),
            Value::Float(0.5),
            Value::Unsigned(u64::MAX),
            Value::Signed(-3),
        ]));
        assert_eq!(
            serde_json::to_string(&value).unwrap(),
            r#"["a\"b",[0,255],[true],0.5,18446744073709551615,-3]"#
        );
        assert_eq!(Value::from("x"), "x");
        assert_eq!((Value::Signed(3).as_u64(), Value::Signed(-3).as_u64()), (Some(3), None));
    }
}
