//! How a checkpoint puts tensors together: the functions and types of PyTorch that its pickle may name, and what calling
//! them gives. None of them is run.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::rc::Rc;

use super::pickle::{Broken, Loaded, Value};
use crate::tensor::Dtype;

/// Most dimensions of a tensor: those of the index. A tuple of a million sizes may be named by a million tensors.
const MAX_RANK: usize = 64;

/// What a pickle may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    OrderedDict,
    Size,
    /// A tensor from its storage, with the place of a data type among the arguments, if there is one.
    Rebuild(Option<usize>),
    /// The first argument.
    Parameter,
    /// The first argument called with the third.
    FromType,
}

/// What the elements of a storage or a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Of(Dtype),
    /// One that has no name here, such as quantised ones.
    Other,
}

/// The bytes that tensors are views of.
#[derive(Debug)]
pub(super) struct Storage {
    pub key: Rc<str>,
    pub dtype: Type,
}

/// A view of a storage.
#[derive(Debug)]
pub(super) struct RawTensor {
    pub storage: Rc<Storage>,
    pub dtype: Type,
    /// In elements.
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// What a name in a pickle stands for.
pub(super) fn global(module: &str, name: &str) -> Value {
    let call = match (module, name) {
        ("collections", "OrderedDict") => Call::OrderedDict,
        ("torch", "Size") => Call::Size,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Call::Rebuild(None),
        ("torch._utils", "_rebuild_tensor_v3") => Call::Rebuild(Some(6)),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Call::Parameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Call::FromType,
        ("torch" | "torch.storage" | "torch.cuda", name) => {
            return types(name).map_or(Value::Opaque, Value::Type);
        }
        _ => return Value::Opaque,
    };
    Value::Call(call)
}

/// Types by the names of their storages, and by their own.
fn types(name: &str) -> Option<Type> {
    Some(Type::Of(match name {
        "DoubleStorage" | "float64" | "double" => Dtype::F64,
        "FloatStorage" | "float32" | "float" => Dtype::F32,
        "HalfStorage" | "float16" | "half" => Dtype::F16,
        "BFloat16Storage" | "bfloat16" => Dtype::BF16,
        "LongStorage" | "int64" | "long" => Dtype::I64,
        "IntStorage" | "int32" | "int" => Dtype::I32,
        "ShortStorage" | "int16" | "short" => Dtype::I16,
        "CharStorage" | "int8" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" | "_UntypedStorage" | "uint8" => Dtype::U8,
        "BoolStorage" | "bool" => Dtype::BOOL,
        "ComplexFloatStorage" | "complex64" | "cfloat" => Dtype::C64,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "float8_e4m3fnuz" => Dtype::F8_E4M3FNUZ,
        "float8_e5m2fnuz" => Dtype::F8_E5M2FNUZ,
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        _ if name.ends_with("Storage") || matches!(name, "complex128" | "cdouble") => {
            return Some(Type::Other);
        }
        _ => return None,
    }))
}

/// What a storage's place in the archive is called: `("storage", type, key, device, elements)`.
pub(super) fn persistent(id: &Value) -> Result<Value, Broken> {
    match id {
        Value::Tuple(id, _) => match &id[..] {
            [Value::Text(kind), Value::Type(dtype), Value::Text(key), ..] if &**kind == "storage" => {
                Ok(Value::Storage(Rc::new(Storage { key: Rc::clone(key), dtype: *dtype })))
            }
            _ => {
                Err(Broken("what lies outside the pickle must be a storage", format!("{} values", id.len())))
            }
        },
        _ => Err(Broken(
            "what lies outside the pickle must be named by a tuple",
            String::from("another value"),
        )),
    }
}

/// What a call gives. A call that is not known is not made.
pub(super) fn call(called: &Value, arguments: &Value, to: &mut Loaded) -> Result<Value, Broken> {
    let (Value::Call(called), Value::Tuple(arguments, _)) = (called, arguments) else {
        return Ok(Value::Opaque);
    };
    match (called, &arguments[..]) {
        (Call::OrderedDict, given) => {
            to.dicts.push(Vec::new());
            let number = to.dicts.len().saturating_sub(1);
            // A list of pairs, as old versions of Python write it.
            if let [Value::List(list)] = given {
                let items = to.lists.get_mut(*list).map(std::mem::take).unwrap_or_default();
                let pairs = items.into_iter().filter_map(|item| match item {
                    Value::Tuple(pair, _) => match &pair[..] {
                        [key, value] => Some((key.clone(), value.clone())),
                        _ => None,
                    },
                    _ => None,
                });
                let pairs: Vec<_> = pairs.collect();
                to.dicts.get_mut(number).into_iter().for_each(|dict| dict.extend_from_slice(&pairs));
            }
            Ok(Value::Dict(number))
        }
        (Call::Size, [size @ Value::Tuple(..)]) => Ok(size.clone()),
        (Call::Parameter, [tensor, ..]) => Ok(tensor.clone()),
        (Call::FromType, [inner @ Value::Call(function), _, arguments, ..])
            if *function != Call::FromType =>
        {
            call(inner, arguments, to)
        }
        (Call::Rebuild(dtype), arguments) => rebuild(*dtype, arguments),
        _ => Ok(Value::Opaque),
    }
}

fn rebuild(dtype: Option<usize>, arguments: &[Value]) -> Result<Value, Broken> {
    let wrong = || {
        Broken(
            "a tensor is made of storage, offset, sizes and strides",
            format!("{} values", arguments.len()),
        )
    };
    let [Value::Storage(storage), Value::Int(offset), Value::Tuple(shape, _), Value::Tuple(strides, _), ..] =
        arguments
    else {
        return Err(wrong());
    };
    let dtype = match dtype {
        None => storage.dtype,
        Some(at) => match arguments.get(at) {
            Some(Value::Type(dtype)) => *dtype,
            _ => Type::Other,
        },
    };
    let numbers = |values: &[Value]| {
        let number = |value: &Value| match value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        values.iter().map(number).collect::<Option<Vec<u64>>>()
    };
    if shape.len() != strides.len() || shape.len() > MAX_RANK {
        let found = format!("{} sizes and {} strides", shape.len(), strides.len());
        return Err(Broken("a tensor has at most 64 dimensions, and a stride for each", found));
    }
    let offset = u64::try_from(*offset).map_err(|_| wrong())?;
    let (shape, strides) = (numbers(shape).ok_or_else(wrong)?, numbers(strides).ok_or_else(wrong)?);
    Ok(Value::Tensor(Rc::new(RawTensor { storage: Rc::clone(storage), dtype, offset, shape, strides })))
}
