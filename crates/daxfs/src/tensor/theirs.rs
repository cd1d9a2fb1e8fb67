//! Tensors as values of the `safetensors` crate, for what takes those.

#![forbid(unsafe_code)]

use ::safetensors::tensor::TensorView;

use super::{Tensor, TensorError};
use crate::Result;

impl Tensor {
    /// The tensor as the `safetensors` crate has it, for libraries that take its views: type, shape and the data itself,
    /// without a copy. The crate is `daxfs::safetensors`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let header = br#"{"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}       "#;
    /// # let mut file = (header.len() as u64).to_le_bytes().to_vec();
    /// # file.extend(header);
    /// # file.extend([0, 1, 2, 3, 4, 5, 6, 7]);
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("model.safetensors"), file)?;
    /// # let model = dir.path().join("model.daxfs");
    /// # mkimage::Packer::new().input(dir.path().join("model.safetensors")).plan()?.write_file(&model)?;
    /// let image = daxfs::OpenOptions::new().sealed_copy(true).open(&model)?;
    /// let weight = image.tensors()?.get("w")?;
    /// let view = weight.as_safetensors()?;
    /// assert_eq!((view.dtype(), view.shape()), (daxfs::safetensors::Dtype::BF16, &[2, 2][..]));
    /// assert_eq!(view.data().as_ptr(), weight.as_slice()?.as_ptr());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As for [`Tensor::as_slice`]: only memory that nobody can write is handed out like this.
    /// [`TensorError::UnknownDtype`] for the quantised types of GGUF, which the crate does not have.
    pub fn as_safetensors(&self) -> Result<TensorView<'_>> {
        let dtype = self.dtype().try_into().map_err(|fault| self.fault(fault))?;
        let overflow = || {
            self.fault(TensorError::Overflow {
                tensor: self.name().into(),
                dtype: self.dtype(),
                shape: self.shape().to_vec(),
            })
        };
        let shape = self.shape().iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>();
        let shape = shape.ok_or_else(overflow)?;
        // The crate multiplies in this order and does not check: the header or the index was, in 64 bits.
        TensorView::new(dtype, shape, self.as_slice()?).map_err(|_| overflow())
    }
}

#[cfg(test)]
mod tests {
    use crate::tensor::test_image::{TestImage, safetensors};
    use crate::{Dtype, Region};

    /// What the crate itself reads of the file is what the views are.
    #[test]
    fn views_are_those_of_the_crate() {
        let tensors: [(&str, Dtype, &[u64], &[u8]); 5] = [
            ("half", Dtype::BF16, &[2, 2], b"01234567"),
            ("packed", Dtype::F4, &[3, 2], b"abc"),
            ("scalar", Dtype::F32, &[], b"1234"),
            ("none", Dtype::F64, &[1 << 20, 0, 1 << 40], b""),
            ("flag", Dtype::BOOL, &[1], b"\x01"),
        ];
        let file = safetensors(&tensors, "");
        let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        let image = TestImage::new().file("/m.safetensors", file.clone()).open();
        let ours = image.tensors().unwrap();
        for (name, ..) in tensors {
            let tensor = ours.get(name).unwrap();
            let (view, wanted) = (tensor.as_safetensors().unwrap(), theirs.tensor(name).unwrap());
            assert_eq!(view, wanted, "{name}");
            assert_eq!(view.data().as_ptr(), tensor.as_slice().unwrap().as_ptr(), "{name}");
        }
    }

    #[test]
    fn memory_that_can_change_gives_no_view() {
        let bytes = TestImage::new().file("/m.safetensors", safetensors(&[("w", Dtype::U8, &[1], b"1")], ""));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), bytes.bytes()).unwrap();
        let region = Region::open(dir.path().join("image")).unwrap();
        let image = crate::Image::from_region(region).unwrap();
        let tensor = image.tensors().unwrap().get("w").unwrap();
        assert!(tensor.as_slice().is_err() && tensor.as_safetensors().is_err());
    }
}
