use super::*;
use crate::tensor::test_image::{TestImage, gguf};
use crate::{Error, Image};

fn image(kind: u32, dims: &[u64], bytes: &[u8]) -> Image {
    TestImage::new().file("/m.gguf", gguf(&[], &[("w", kind, dims, bytes)], 32)).open()
}

fn values(kind: u32, dims: &[u64], bytes: &[u8]) -> Vec<f32> {
    image(kind, dims, bytes).tensors().unwrap().get("w").unwrap().dequantize().unwrap()
}

/// Bytes that look like anything.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn half_precision_is_exact() {
    for bits in 0..=u16::MAX {
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
        };
        let expected = if bits >> 15 == 0 { magnitude } else { -magnitude };
        let found = half(bits.to_le_bytes());
        assert!(f64::from(found) == expected || found.is_nan() && expected.is_nan(), "{bits:#06x}: {found}");
        assert_eq!(found.is_sign_negative(), bits >> 15 == 1, "{bits:#06x}");
    }
}

#[test]
fn blocks_become_the_values_that_they_stand_for() {
    let two = 0x4000u16.to_le_bytes();
    let q8 = [&two[..], &[0xff, 3], &[0; 30]].concat();
    assert_eq!(values(8, &[32], &q8)[..3], [-2.0, 6.0, 0.0]);
    let q4 = [&two[..], &[0x9f], &[0x88; 15]].concat();
    let found = values(2, &[32], &q4);
    assert_eq!((found[0], found[16], found[1]), (14.0, 2.0, 0.0), "low halves come first");
    assert_eq!(values(30, &[2], &[0x80, 0x3f, 0, 0xc0]), [1.0, -2.0]);
    assert_eq!(values(1, &[2, 1], &[0, 0x3c, 0, 0xc0]), [1.0, -2.0]);
    assert_eq!(values(0, &[], &1.5f32.to_le_bytes()), [1.5]);
    assert_eq!(values(8, &[0], &[]), [0.0; 0]);
}

/// What several threads make is what one makes, and every type fills all of its elements.
#[test]
fn many_threads_make_what_one_makes() {
    for (kind, dtype) in [(8u32, Dtype::Q8_0), (14, Dtype::Q6_K), (1, Dtype::F16), (39, Dtype::MXFP4)] {
        let rows = 4 * PER_THREAD / 512 + 3;
        let bytes = noise(usize::try_from(dtype.bytes_of(u128::from(rows) * 512).unwrap()).unwrap());
        let found = values(kind, &[512, rows], &bytes);
        let block = dtype.block();
        let mut expected = vec![0.0; block.elements as usize];
        let decode = decoder(dtype).unwrap();
        let blocks = bytes.chunks(block.bytes as usize);
        for (bytes, found) in blocks.zip(found.chunks(block.elements as usize)) {
            decode(bytes, &mut expected);
            assert!(expected.iter().zip(found).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype}");
        }
        assert_eq!(found.len() as u64, rows * 512);
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let image = image(16, &[256], &[0; 66]);
    let tensor = image.tensors().unwrap().get("w").unwrap();
    assert!(!tensor.dtype().can_dequantize());
    let text = tensor.dequantize().unwrap_err().to_string();
    assert!(text.contains("\"w\": IQ2_XXS[256] cannot be dequantized here; take its bytes"), "{text}");
    let image = self::image(8, &[32], &[0; 34]);
    let tensor = image.tensors().unwrap().get("w").unwrap();
    let error = tensor.dequantize_to(SharedBytesMut::from_slice(&mut [0; 127])).unwrap_err();
    assert!(
        matches!(&error, Error::Tensor(TensorError::InFile { fault, .. })
        if matches!(**fault, TensorError::WrongLength { got: 127, wanted: 128, .. })),
        "{error}"
    );
}
