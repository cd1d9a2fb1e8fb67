//! The tensors of two images, by name.

use super::bytes::Bytes;
use super::{Change, Report};
use crate::args::DiffArgs;
use anyhow::Context;
use daxfs::tensor::TensorError;
use daxfs::{Error, Image, Tensor, Tensors};
use std::cmp::Ordering;
use std::os::unix::ffi::OsStrExt;

/// Compares the sets that are meant, and returns how many names there are in both together. Images without tensors have
/// none to compare; where one of several sets is to be chosen, the error says so.
pub(super) fn compare(
    first: &Image,
    second: &Image,
    args: &DiffArgs,
    bytes: &mut Bytes,
    report: &mut Report<'_>,
) -> anyhow::Result<u64> {
    let first = set(first, args).with_context(|| "the first image")?;
    let second = set(second, args).with_context(|| "the second image")?;
    let (mut left, mut right, mut seen) = (0_usize, 0_usize, 0_u64);
    loop {
        let (one, other) = (nth(first.as_ref(), left)?, nth(second.as_ref(), right)?);
        let order = match (&one, &other) {
            (None, None) => return Ok(seen),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.name().cmp(other.name()),
        };
        seen = seen.saturating_add(1);
        left = left.saturating_add(usize::from(order != Ordering::Greater));
        right = right.saturating_add(usize::from(order != Ordering::Less));
        match (order, one, other) {
            (Ordering::Less, Some(one), _) => {
                report.tensor(one.name(), Change::Removed, Some(&described(&one)))?;
            }
            (Ordering::Greater, _, Some(other)) => {
                report.tensor(other.name(), Change::Added, Some(&described(&other)))?;
            }
            (_, Some(one), Some(other)) => {
                let (was, is) = (described(&one), described(&other));
                if was != is {
                    report.tensor(one.name(), Change::Changed, Some(&format!("{was}, then {is}")))?;
                } else if !bytes.same_tensors(&one, &other)? {
                    report.tensor(one.name(), Change::Changed, Some(&format!("other values of {was}")))?;
                }
            }
            _ => return Ok(seen),
        }
    }
}

fn set(image: &Image, args: &DiffArgs) -> daxfs::Result<Option<Tensors>> {
    let found = match &args.tensors {
        Some(path) => image.tensors_at(path.as_bytes()),
        None => image.tensors(),
    };
    match found {
        Ok(tensors) => Ok(Some(tensors)),
        Err(Error::Tensor(TensorError::NoTensors { .. })) if args.tensors.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

fn nth(tensors: Option<&Tensors>, at: usize) -> daxfs::Result<Option<Tensor>> {
    tensors.map_or(Ok(None), |tensors| tensors.nth(at))
}

fn described(tensor: &Tensor) -> String {
    format!("{} {:?}", tensor.dtype(), tensor.shape())
}
