//! Slices of Rust's types and rows: what they hold, and what is refused.

use std::io::Write;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable};

use super::test_image::{TestImage, safetensors};
use super::{Dtype, Tensor, TensorError};
use crate::{Error, Provenance, Region, Result};

/// An image whose data begins `odd` bytes behind a multiple of 8: files begin 1 byte behind one.
fn image(odd: usize, tensors: &[(&str, Dtype, &[u64], &[u8])]) -> TestImage {
    let file = |spaces: usize| safetensors(tensors, &format!("{{\"x\":\"{}\"}}", "-".repeat(spaces)));
    let data: usize = tensors.iter().map(|(.., bytes)| bytes.len()).sum();
    let spaces = (0..8).find(|spaces| (1 + file(*spaces).len() - data) % 8 == odd).unwrap();
    TestImage::new().file("/m.safetensors", file(spaces))
}

fn fault<T: std::fmt::Debug>(result: Result<T>) -> TensorError {
    match result.unwrap_err() {
        Error::Tensor(TensorError::InFile { file, fault }) => {
            assert_eq!(file, "/m.safetensors");
            Arc::into_inner(fault).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn fits<T: FromBytes + Immutable + 'static>(tensor: &Tensor) -> bool {
    match tensor.as_slice_of::<T>() {
        Ok(slice) => slice.len() as u64 == tensor.elements(),
        Err(_) => {
            let is_type =
                matches!(fault(tensor.as_slice_of::<T>().map(<[T]>::len)), TensorError::WrongType { .. });
            assert!(is_type, "{tensor:?}");
            false
        }
    }
}

#[test]
fn elements_are_those_of_the_bytes() {
    let floats: Vec<u8> =
        [1.5_f32, -2.0, 0.25, 4.0, 5.0, 6.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let image = image(0, &[("w", Dtype::F32, &[3, 2], &floats), ("none", Dtype::F32, &[0, 2], b"")]).open();
    let tensors = image.tensors().unwrap();
    let w = tensors.get("w").unwrap();
    assert_eq!(w.as_slice_of::<f32>().unwrap(), [1.5, -2.0, 0.25, 4.0, 5.0, 6.0]);
    assert_eq!(w.as_slice_of::<u32>().unwrap()[0], 1.5_f32.to_bits());
    assert_eq!(w.as_slice_of::<f32>().unwrap().as_ptr().cast(), w.as_slice().unwrap().as_ptr());
    assert!(tensors.get("none").unwrap().as_slice_of::<f32>().unwrap().is_empty());

    assert_eq!(w.row(1).unwrap().as_slice_of::<f32>().unwrap(), [0.25, 4.0]);
    let rows = w.rows(1..3).unwrap();
    assert_eq!(rows.as_slice_of::<f32>().unwrap(), [0.25, 4.0, 5.0, 6.0]);
    assert_eq!((rows.range(), rows.row_shape(), rows.nbytes()), (1..3, &[2][..], 16));
    assert_eq!(rows.bytes().unwrap().to_vec(), floats[8..]);
    assert_eq!(rows.as_slice().unwrap(), &floats[8..]);
    assert_eq!(rows.tensor().name(), "w");
    for empty in [0..0, 3..3] {
        assert!(w.rows(empty).unwrap().as_slice_of::<f32>().unwrap().is_empty());
    }
    assert_eq!(w.dims::<2>().unwrap(), [3, 2]);
}

#[test]
fn a_type_is_taken_for_no_other() {
    let types =
        Dtype::ALL.into_iter().filter_map(|dtype| Some((dtype.name(), dtype, vec![0; 8 * dtype.bits()?])));
    let types: Vec<_> = types.collect();
    let tensors: Vec<_> =
        types.iter().map(|(name, dtype, bytes)| (*name, *dtype, &[64][..], &bytes[..])).collect();
    let image = image(0, &tensors).open();
    for tensor in image.tensors().unwrap().iter() {
        let tensor = tensor.unwrap();
        let dtype = tensor.dtype();
        assert_eq!(fits::<f32>(&tensor), dtype == Dtype::F32, "{dtype}");
        assert_eq!(fits::<f64>(&tensor), dtype == Dtype::F64, "{dtype}");
        assert_eq!(fits::<i8>(&tensor), dtype == Dtype::I8, "{dtype}");
        assert_eq!(fits::<i16>(&tensor), dtype == Dtype::I16, "{dtype}");
        assert_eq!(fits::<i32>(&tensor), dtype == Dtype::I32, "{dtype}");
        assert_eq!(fits::<i64>(&tensor), dtype == Dtype::I64, "{dtype}");
        assert_eq!(fits::<u8>(&tensor), dtype.bits() == Some(8), "{dtype}");
        assert_eq!(fits::<u16>(&tensor), dtype.bits() == Some(16), "{dtype}");
        assert_eq!(fits::<u32>(&tensor), dtype.bits() == Some(32), "{dtype}");
        assert_eq!(fits::<u64>(&tensor), dtype.bits() == Some(64), "{dtype}");
        assert_eq!(fits::<[f32; 2]>(&tensor), dtype.bits() == Some(64), "{dtype}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let bytes: Vec<u8> = (0..24).collect();
    for odd in 0..8 {
        let image = image(odd, &[("w", Dtype::I32, &[3, 2], &bytes)]).open();
        let w = image.tensors().unwrap().get("w").unwrap();
        assert_eq!(w.as_slice_of::<u8>().is_err(), w.as_slice_of::<i16>().is_err());
        match w.as_slice_of::<i32>() {
            Ok(slice) => assert!(odd % 4 == 0 && slice[0] == 0x0302_0100 && slice.len() == 6),
            error => match fault(error) {
                TensorError::Misaligned { address, wanted, align, .. } => {
                    assert_eq!((address % 8, wanted, align), (odd as u64, "i32", 4));
                    assert_ne!(odd % 4, 0);
                }
                other => panic!("{other:?}"),
            },
        }
    }
    let image = image(0, &[("w", Dtype::I32, &[3, 2], &bytes), ("s", Dtype::F32, &[], &bytes[..4])]).open();
    let tensors = image.tensors().unwrap();
    let w = tensors.get("w").unwrap();
    assert_eq!(
        fault(w.as_slice_of::<f32>()).to_string(),
        "tensor \"w\": its elements are I32 (32 bits), which are not values of f32 (4 bytes); take its bytes, or an \
         unsigned integer of its size for the bits"
    );
    assert_eq!(fault(w.dims::<3>()).to_string(), "tensor \"w\": I32[3, 2] has 2 dimensions, not 3");
    assert_eq!(fault(w.rows(2..4)).to_string(), "tensor \"w\": rows 2..4 are outside of the 3 that it has");
    let outside = |result| matches!(fault(result), TensorError::OutsideRows { .. });
    #[allow(clippy::reversed_empty_ranges, reason = "what is refused")]
    let turned = 2..1;
    assert!(outside(w.rows(turned)) && outside(w.row(3)) && outside(w.row(u64::MAX)));
    let scalar = tensors.get("s").unwrap();
    assert!(outside(scalar.row(0)) && outside(scalar.rows(0..0)));
    assert_eq!(scalar.dims::<0>().unwrap(), [0; 0]);
}

#[test]
fn rows_of_packed_types_are_whole_bytes() {
    let image = image(0, &[("w", Dtype::F4, &[4, 3], &[1, 2, 3, 4, 5, 6])]).open();
    let w = image.tensors().unwrap().get("w").unwrap();
    assert_eq!(w.rows(0..2).unwrap().as_slice().unwrap(), [1, 2, 3]);
    assert_eq!(w.rows(2..4).unwrap().as_slice().unwrap(), [4, 5, 6]);
    for range in [0..1, 1..2, 1..4] {
        assert!(matches!(fault(w.rows(range)), TensorError::PartialRows { .. }));
    }
}

#[test]
fn memory_that_others_can_write_is_no_slice() {
    let image = image(0, &[("w", Dtype::I32, &[2], &[1, 0, 0, 0, 2, 0, 0, 0])]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image.bytes()).unwrap();
    let shared = crate::Image::from_region(Region::from_fd(file.into()).unwrap()).unwrap();
    let w = shared.tensors().unwrap().get("w").unwrap();
    for result in [w.as_slice_of::<i32>(), w.row(0).unwrap().as_slice_of()] {
        assert!(matches!(result, Err(Error::NotImmutable(Provenance::Shared))));
    }
    assert_eq!(w.row(1).unwrap().bytes().unwrap().to_vec(), [2, 0, 0, 0]);
}
