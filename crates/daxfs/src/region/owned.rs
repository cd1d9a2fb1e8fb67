//! Bytes of this process at the alignment that a mapping has, so that what is said of a tensor's alignment holds for
//! them, too. The vector is never changed or moved once it is made.

/// What every region begins on a multiple of, whatever a page of the machine has.
const SMALL: usize = 4096;

/// The largest alignment that is said of a tensor, kept by what has as many bytes.
const LARGE: usize = 2 << 20;

/// Bytes that begin on a multiple of 4096; of 2 MiB where there are as many.
pub(super) struct Bytes {
    bytes: Vec<u8>,
    /// What lies before them for the sake of their alignment.
    start: usize,
}

impl Bytes {
    /// Takes the bytes, or a copy of them where they lie elsewhere.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let align = if bytes.len() < LARGE { SMALL } else { LARGE };
        if bytes.as_ptr().addr().is_multiple_of(align) {
            return Self { bytes, start: 0 };
        }
        let mut aligned: Vec<u8> = Vec::with_capacity(bytes.len() + align);
        // Less than `align`, so there is room for both without another allocation.
        let start = aligned.as_ptr().addr().next_multiple_of(align) - aligned.as_ptr().addr();
        aligned.resize(start, 0);
        aligned.extend_from_slice(&bytes);
        Self { bytes: aligned, start }
    }

    /// The bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        // `start` is within the vector since `new`.
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_values_and_are_aligned() {
        for len in [0, 1, 4095, 4096, 10_000, LARGE - 1, LARGE, LARGE + 5] {
            let wanted: Vec<u8> = (0..=250).cycle().take(len).collect();
            let bytes = Bytes::new(wanted.clone());
            assert_eq!(bytes.as_slice(), wanted);
            let align = if len < LARGE { SMALL } else { LARGE };
            assert!(bytes.as_slice().as_ptr().addr().is_multiple_of(align), "{len}");
        }
    }
}
