//! The numbers of data types.

use crate::tensor::Dtype;

/// All types of the format, by their numbers.
const TYPES: [(u32, Dtype); 35] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (9, Dtype::Q8_1),
    (10, Dtype::Q2_K),
    (11, Dtype::Q3_K),
    (12, Dtype::Q4_K),
    (13, Dtype::Q5_K),
    (14, Dtype::Q6_K),
    (15, Dtype::Q8_K),
    (16, Dtype::IQ2_XXS),
    (17, Dtype::IQ2_XS),
    (18, Dtype::IQ3_XXS),
    (19, Dtype::IQ1_S),
    (20, Dtype::IQ4_NL),
    (21, Dtype::IQ3_S),
    (22, Dtype::IQ2_S),
    (23, Dtype::IQ4_XS),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (29, Dtype::IQ1_M),
    (30, Dtype::BF16),
    (34, Dtype::TQ1_0),
    (35, Dtype::TQ2_0),
    (39, Dtype::MXFP4),
    (40, Dtype::NVFP4),
    (41, Dtype::Q1_0),
    (42, Dtype::Q2_0),
];

/// The type with this number.
pub(super) fn dtype(number: u32) -> Option<Dtype> {
    TYPES.iter().find(|(known, _)| *known == number).map(|(_, dtype)| *dtype)
}

/// Whether files once had a type of this number that no version reads any more.
pub(super) fn is_removed(number: u32) -> bool {
    matches!(number, 4 | 5 | 31..=33 | 36..=38)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quantised_type_has_a_number_and_each_number_is_one_type() {
        for dtype in Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
            assert_eq!(TYPES.iter().filter(|(_, known)| *known == dtype).count(), 1, "{dtype}");
        }
        assert!(TYPES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(TYPES.iter().all(|(number, _)| !is_removed(*number)));
        assert_eq!((dtype(4), dtype(43), dtype(u32::MAX)), (None, None, None));
    }
}
