//! A reader of the pickles in PyTorch's checkpoints that runs nothing: it knows how tensors are put together, and takes
//! every other call for a value that cannot be looked into.
//!
//! A pickle is a program for a small machine with a stack and a memo. Each instruction takes at least a byte and does
//! work that its operands pay for, so time and memory are linear in the pickle: containers are kept in one place and
//! shared by number, and tuples, which hold each other, are bounded in depth.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::HashMap;
use std::rc::Rc;

use super::rebuild::{Call, RawTensor, Storage, Type, call, global, persistent};
use super::{Fault, fault};

/// How deep tuples may lie in each other: those of a tensor lie four deep.
const MAX_DEPTH: u32 = 64;

/// What lies on the stack.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>, u32),
    /// One of [`Machine::lists`].
    List(usize),
    /// One of [`Machine::dicts`].
    Dict(usize),
    Call(Call),
    Type(Type),
    Storage(Rc<Storage>),
    Tensor(Rc<RawTensor>),
    /// What is not looked into.
    Opaque,
}

/// What a pickle leaves.
pub(super) struct Loaded {
    pub top: Value,
    pub lists: Vec<Vec<Value>>,
    pub dicts: Vec<Vec<(Value, Value)>>,
}

/// Runs a pickle.
pub(super) fn load(bytes: &[u8]) -> Result<Loaded, Fault> {
    let mut machine =
        Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), loaded: None };
    let mut loaded = Loaded { top: Value::None, lists: Vec::new(), dicts: Vec::new() };
    loop {
        let at = machine.at;
        match machine.step(&mut loaded).map_err(|error| error.at(at))? {
            true => {}
            false => {
                loaded.top = machine.loaded.take().unwrap_or(Value::None);
                return Ok(loaded);
            }
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    loaded: Option<Value>,
}

/// A rule that an instruction breaks, before its place is known.
pub(super) struct Broken(pub &'static str, pub String);

impl Broken {
    fn at(self, at: usize) -> Fault {
        fault(format!("data.pkl, byte {at:#x}"), self.0, self.1)
    }
}

const STACK: &str = "an instruction must find its operands";

impl<'a> Machine<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Broken> {
        let end = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..end);
        let taken = taken.ok_or_else(|| {
            Broken("the pickle must end with its last instruction", format!("{len} bytes are wanted"))
        })?;
        self.at = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, Broken> {
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(self.take(N)?) {
            *to = *from;
        }
        Ok(u64::from_le_bytes(wide))
    }

    fn length<const N: usize>(&mut self) -> Result<usize, Broken> {
        Ok(usize::try_from(self.number::<N>()?).unwrap_or(usize::MAX))
    }

    fn text(&mut self, len: usize) -> Result<Value, Broken> {
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|_| {
            Broken("texts must be UTF-8", bytes.get(..40).unwrap_or(bytes).escape_ascii().to_string())
        })?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Result<&'a str, Broken> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        // Names of modules are short: a search to the end of the pickle for each would be quadratic.
        let rest = rest.get(..1024).unwrap_or(rest);
        let len = rest.iter().position(|byte| *byte == b'\n');
        let len = len.ok_or_else(|| {
            Broken("a name must end with its line", String::from("1024 bytes without an end"))
        })?;
        let line = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| Broken("names must be UTF-8", line.escape_ascii().to_string()))
    }

    fn pop(&mut self) -> Result<Value, Broken> {
        self.stack.pop().ok_or_else(|| Broken(STACK, String::from("an empty stack")))
    }

    fn top(&self) -> Result<Value, Broken> {
        self.stack.last().cloned().ok_or_else(|| Broken(STACK, String::from("an empty stack")))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    /// What was put on the stack since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Value>, Broken> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        let mark = mark.ok_or_else(|| Broken(STACK, String::from("no mark")))?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, values: Vec<Value>) -> Result<(), Broken> {
        let depth =
            values.iter().map(|value| if let Value::Tuple(_, depth) = value { *depth } else { 0 }).max();
        let depth = depth.unwrap_or(0).saturating_add(1);
        if depth > MAX_DEPTH {
            return Err(Broken("tuples must lie at most 64 deep in each other", depth.to_string()));
        }
        self.push(Value::Tuple(values.into(), depth));
        Ok(())
    }

    fn last(&mut self, count: usize) -> Result<Vec<Value>, Broken> {
        let start = self.stack.len().checked_sub(count);
        let start = start.ok_or_else(|| Broken(STACK, format!("{} values", self.stack.len())))?;
        Ok(self.stack.split_off(start))
    }

    fn get(&mut self, key: u64) -> Result<(), Broken> {
        let value = u32::try_from(key).ok().and_then(|key| self.memo.get(&key).cloned());
        let value =
            value.ok_or_else(|| Broken("the memo must have what is taken from it", key.to_string()))?;
        self.push(value);
        Ok(())
    }

    fn put(&mut self, key: u64) -> Result<(), Broken> {
        let key =
            u32::try_from(key).map_err(|_| Broken("places in the memo have 32 bits", key.to_string()))?;
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    /// One instruction. False at the end.
    fn step(&mut self, to: &mut Loaded) -> Result<bool, Broken> {
        let [code] = *self.take(1)? else { return Ok(false) };
        match code {
            b'.' => {
                self.loaded = Some(self.pop()?);
                return Ok(false);
            }
            // Protocol and frame.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let number = self.number::<1>()?;
                self.push(Value::Int(number.try_into().unwrap_or(0)));
            }
            b'M' => {
                let number = self.number::<2>()?;
                self.push(Value::Int(number.try_into().unwrap_or(0)));
            }
            b'J' => {
                let bytes = self.take(4)?.first_chunk().copied().unwrap_or_default();
                self.push(Value::Int(i32::from_le_bytes(bytes).into()));
            }
            0x8a => {
                let len = self.length::<1>()?;
                let value = long(self.take(len)?);
                self.push(value);
            }
            0x8b => {
                let len = self.length::<4>()?;
                let value = long(self.take(len)?);
                self.push(value);
            }
            b'G' => {
                let bytes = self.take(8)?.first_chunk().copied().unwrap_or_default();
                self.push(Value::Float(f64::from_be_bytes(bytes)));
            }
            b'X' => {
                let len = self.length::<4>()?;
                let text = self.text(len)?;
                self.push(text);
            }
            0x8c => {
                let len = self.length::<1>()?;
                let text = self.text(len)?;
                self.push(text);
            }
            0x8d => {
                let len = self.length::<8>()?;
                let text = self.text(len)?;
                self.push(text);
            }
            b'B' | b'T' => {
                let len = self.length::<4>()?;
                self.take(len)?;
                self.push(Value::Opaque);
            }
            b'C' | b'U' => {
                let len = self.length::<1>()?;
                self.take(len)?;
                self.push(Value::Opaque);
            }
            0x8e | 0x96 => {
                let len = self.length::<8>()?;
                self.take(len)?;
                self.push(Value::Opaque);
            }
            b')' => self.tuple(Vec::new())?,
            0x85..=0x87 => {
                let values = self.last(usize::from(code).saturating_sub(0x84))?;
                self.tuple(values)?;
            }
            b't' => {
                let values = self.since_mark()?;
                self.tuple(values)?;
            }
            b'}' => {
                to.dicts.push(Vec::new());
                self.push(Value::Dict(to.dicts.len().saturating_sub(1)));
            }
            b'd' => {
                let values = self.since_mark()?;
                to.dicts.push(pairs(values)?);
                self.push(Value::Dict(to.dicts.len().saturating_sub(1)));
            }
            b']' => {
                to.lists.push(Vec::new());
                self.push(Value::List(to.lists.len().saturating_sub(1)));
            }
            b'l' => {
                let values = self.since_mark()?;
                to.lists.push(values);
                self.push(Value::List(to.lists.len().saturating_sub(1)));
            }
            // Sets are of no use here.
            0x8f => self.push(Value::Opaque),
            0x90 => drop(self.since_mark()?),
            0x91 => {
                self.since_mark()?;
                self.push(Value::Opaque);
            }
            b'a' => {
                let value = self.pop()?;
                self.extend(to, vec![value])?;
            }
            b'e' => {
                let values = self.since_mark()?;
                self.extend(to, values)?;
            }
            b's' => {
                let values = self.last(2)?;
                self.update(to, values)?;
            }
            b'u' => {
                let values = self.since_mark()?;
                self.update(to, values)?;
            }
            b'q' => {
                let key = self.number::<1>()?;
                self.put(key)?;
            }
            b'r' => {
                let key = self.number::<4>()?;
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            b'h' => {
                let key = self.number::<1>()?;
                self.get(key)?;
            }
            b'j' => {
                let key = self.number::<4>()?;
                self.get(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(global(module, name));
            }
            0x93 => {
                let value = match &self.last(2)?[..] {
                    [Value::Text(module), Value::Text(name)] => global(module, name),
                    _ => Value::Opaque,
                };
                self.push(value);
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(persistent(&id)?);
            }
            b'R' | 0x81 => {
                let (arguments, called) = (self.pop()?, self.pop()?);
                let value = call(&called, &arguments, to)?;
                self.push(value);
            }
            0x92 => {
                self.last(3)?;
                self.push(Value::Opaque);
            }
            // Attributes of what is there: none that tensors need.
            b'b' => drop(self.pop()?),
            other => {
                let rule = "checkpoints are pickles of protocol 2 or later";
                return Err(Broken(rule, format!("the instruction {other:#04x}")));
            }
        }
        Ok(true)
    }

    fn extend(&mut self, to: &mut Loaded, values: Vec<Value>) -> Result<(), Broken> {
        match self.top()? {
            Value::List(number) => {
                to.lists.get_mut(number).into_iter().for_each(|list| list.extend_from_slice(&values));
                Ok(())
            }
            Value::Opaque => Ok(()),
            _ => Err(Broken(STACK, String::from("no list"))),
        }
    }

    fn update(&mut self, to: &mut Loaded, values: Vec<Value>) -> Result<(), Broken> {
        match self.top()? {
            Value::Dict(number) => {
                let pairs = pairs(values)?;
                to.dicts.get_mut(number).into_iter().for_each(|dict| dict.extend_from_slice(&pairs));
                Ok(())
            }
            Value::Opaque => Ok(()),
            _ => Err(Broken(STACK, String::from("no dict"))),
        }
    }
}

fn pairs(values: Vec<Value>) -> Result<Vec<(Value, Value)>, Broken> {
    if !values.len().is_multiple_of(2) {
        return Err(Broken(STACK, format!("{} values for keys and values", values.len())));
    }
    let mut values = values.into_iter();
    let mut pairs = Vec::new();
    while let (Some(key), Some(value)) = (values.next(), values.next()) {
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// A little-endian integer in two's complement; what is longer than 64 bits is not looked into.
fn long(bytes: &[u8]) -> Value {
    let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    if bytes.len() > wide.len() {
        return Value::Opaque;
    }
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    Value::Int(i64::from_le_bytes(wide))
}
