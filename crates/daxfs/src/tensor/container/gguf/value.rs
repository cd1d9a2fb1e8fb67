//! Values of the metadata.

use super::cursor::Cursor;
use super::fault;
use crate::Result;
use crate::tensor::metadata::{List, Value};

/// Most lists within one another. llama.cpp reads none within another.
const MAX_DEPTH: u32 = 4;

// Types of values.
const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

/// Reads the value of a key.
pub(super) fn read(cursor: &mut Cursor<'_>, key: &str, kind: u32) -> Result<Value> {
    let value = read_at_depth(cursor, key, kind, 0)?;
    cursor.charge(size_of::<Value>() as u64)?;
    Ok(value)
}

fn read_at_depth(cursor: &mut Cursor<'_>, key: &str, kind: u32, depth: u32) -> Result<Value> {
    Ok(match kind {
        UINT8 => Value::Unsigned(u8::from_le_bytes(cursor.array(key)?).into()),
        INT8 => Value::Signed(i8::from_le_bytes(cursor.array(key)?).into()),
        UINT16 => Value::Unsigned(u16::from_le_bytes(cursor.array(key)?).into()),
        INT16 => Value::Signed(i16::from_le_bytes(cursor.array(key)?).into()),
        UINT32 => Value::Unsigned(u32::from_le_bytes(cursor.array(key)?).into()),
        INT32 => Value::Signed(i32::from_le_bytes(cursor.array(key)?).into()),
        FLOAT32 => Value::Float(f32::from_le_bytes(cursor.array(key)?).into()),
        BOOL => match cursor.array(key)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [other] => return Err(not_bool(key, other).into()),
        },
        STRING => {
            let len = cursor.u64(key)?;
            cursor.check(key, len)?;
            cursor.charge(len)?;
            text(cursor.bytes(key, len)?)
        }
        ARRAY => read_list(cursor, key, depth)?,
        UINT64 => Value::Unsigned(cursor.u64(key)?),
        INT64 => Value::Signed(i64::from_le_bytes(cursor.array(key)?)),
        FLOAT64 => Value::Float(f64::from_le_bytes(cursor.array(key)?)),
        other => {
            let rule = "the type of its value must be one that this library knows";
            return Err(fault(key_place(key), rule, format!("number {other}")).into());
        }
    })
}

fn key_place(key: &str) -> String {
    format!("key {key:?}")
}

fn not_bool(key: &str, found: u8) -> crate::TensorError {
    fault(key_place(key), "a truth value must be 0 or 1", found.to_string())
}

/// A text that is not UTF-8 is taken for bytes.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::Bytes(bytes.to_vec()),
    }
}

fn read_list(cursor: &mut Cursor<'_>, key: &str, depth: u32) -> Result<Value> {
    let kind = cursor.u32(key)?;
    let count = cursor.u64(key)?;
    // Bytes of an element in the file, at least, and in memory.
    let (in_file, in_memory) = match kind {
        UINT8 | BOOL => (1, 1),
        INT8 => (1, 4),
        INT16 => (2, 4),
        INT32 | FLOAT32 => (4, 4),
        UINT16 => (2, 8),
        UINT32 => (4, 8),
        UINT64 | INT64 | FLOAT64 => (8, 8),
        // What they hold is charged as it is read.
        STRING => (8, size_of::<usize>() as u64),
        ARRAY => (12, size_of::<Value>() as u64),
        other => {
            let rule = "the type of its elements must be one that this library knows";
            return Err(fault(key_place(key), rule, format!("number {other}")).into());
        }
    };
    let len = count.saturating_mul(in_file);
    cursor.check(key, len)?;
    cursor.charge(count.saturating_mul(in_memory))?;
    let list = match kind {
        UINT8 => return Ok(Value::Bytes(cursor.bytes(key, len)?.to_vec())),
        BOOL => {
            let bytes = cursor.bytes(key, len)?;
            if let Some(other) = bytes.iter().find(|byte| **byte > 1) {
                return Err(not_bool(key, *other).into());
            }
            List::bools(bytes.iter().map(|byte| *byte == 1).collect())
        }
        INT8 => List::signed32(numbers(cursor, key, len, |b| i8::from_le_bytes(b).into())?),
        INT16 => List::signed32(numbers(cursor, key, len, |b| i16::from_le_bytes(b).into())?),
        INT32 => List::signed32(numbers(cursor, key, len, i32::from_le_bytes)?),
        INT64 => List::signed(numbers(cursor, key, len, i64::from_le_bytes)?),
        UINT16 => List::unsigned(numbers(cursor, key, len, |b| u16::from_le_bytes(b).into())?),
        UINT32 => List::unsigned(numbers(cursor, key, len, |b| u32::from_le_bytes(b).into())?),
        UINT64 => List::unsigned(numbers(cursor, key, len, u64::from_le_bytes)?),
        FLOAT32 => List::float32(numbers(cursor, key, len, f32::from_le_bytes)?),
        FLOAT64 => List::float(numbers(cursor, key, len, f64::from_le_bytes)?),
        STRING => read_texts(cursor, key, count)?,
        _ => {
            let depth = depth.saturating_add(1);
            if depth >= MAX_DEPTH {
                return Err(fault(key_place(key), "at most 4 lists may be within one another", "more").into());
            }
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(read_at_depth(cursor, key, ARRAY, depth)?);
            }
            List::values(values)
        }
    };
    Ok(Value::List(list))
}

fn numbers<const N: usize, T>(
    cursor: &mut Cursor<'_>,
    key: &str,
    len: u64,
    number: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    let (chunks, _) = cursor.bytes(key, len)?.as_chunks::<N>();
    Ok(chunks.iter().map(|chunk| number(*chunk)).collect())
}

/// Texts, all of which are UTF-8; else values of which some are bytes.
fn read_texts(cursor: &mut Cursor<'_>, key: &str, count: u64) -> Result<List> {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let text = cursor.string(key)?;
        bytes.extend_from_slice(text);
        ends.push(bytes.len());
    }
    cursor.charge(bytes.len() as u64)?;
    match String::from_utf8(bytes) {
        Ok(all) => match List::texts(all, ends) {
            Ok(list) => Ok(list),
            // Together they are UTF-8, but one of them ends within a character.
            Err((all, ends)) => separate(cursor, all.as_bytes(), &ends),
        },
        Err(error) => separate(cursor, error.as_bytes(), &ends),
    }
}

fn separate(cursor: &Cursor<'_>, bytes: &[u8], ends: &[usize]) -> Result<List> {
    cursor.charge((ends.len() as u64).saturating_mul(size_of::<Value>() as u64))?;
    let mut start = 0;
    let values =
        ends.iter().map(|end| text(bytes.get(std::mem::replace(&mut start, *end)..*end).unwrap_or_default()));
    Ok(List::values(values.collect()))
}
