//! Tensors in a device's memory by name: what [`daxfs::Tensors`] and [`daxfs::Tensor`] are on the host.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::ptr::NonNull;

use daxfs::dlpack::{DLDevice, DLManagedTensorVersioned};
use daxfs::{Dtype, Tensor, Tensors};

use crate::placement::Assigned;
use crate::{MappedImage, Place, Result, TensorSlice, dlpack};

/// Tensors of one safetensors file or checkpoint in a device's memory; [`MappedImage::tensors`] gives them. With a
/// placement, only those of which something is there.
#[derive(Debug, Clone)]
pub struct DeviceTensors {
    image: MappedImage,
    tensors: Tensors,
}

/// A tensor, or a part of one, where it lies in a device's memory, in one place. It holds that memory.
///
/// ```no_run
/// use daxfs_device::{Device, ImageExt};
///
/// # fn main() -> daxfs_device::Result<()> {
/// let image = daxfs::Image::open("model.daxfs")?;
/// let tensors = image.to(&Device::parse("cuda:0")?)?.tensors()?;
/// let weight = tensors.get("lm_head.weight")?;
/// println!("{} {:?}, step by {:?}", weight.dtype().name(), weight.shape(), weight.strides());
/// // A kernel of your own takes the address; where a device has none, the buffer and the offset.
/// match weight.address() {
///     Some(address) => println!("at {address:#x}"),
///     None => println!("from byte {} of {:?}", weight.place().offset(), weight.place().buffer()),
/// }
/// let first_rows = weight.slice(0, 0..16)?; // nothing is moved
/// assert_eq!(first_rows.nbytes(), 16 * weight.nbytes() / weight.shape()[0]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct DeviceTensor {
    image: MappedImage,
    tensor: Tensor,
    slice: TensorSlice,
}

impl MappedImage {
    /// The tensors of the one checkpoint or safetensors file that the image holds.
    ///
    /// # Errors
    /// As for [`daxfs::Image::tensors`].
    pub fn tensors(&self) -> Result<DeviceTensors> {
        Ok(self.tensors_of(self.image().tensors()?))
    }

    /// The tensors of a safetensors file, of a checkpoint (its index.json) or of a directory with one of them.
    ///
    /// # Errors
    /// As for [`daxfs::Image::tensors_at`].
    pub fn tensors_at(&self, path: impl AsRef<[u8]>) -> Result<DeviceTensors> {
        Ok(self.tensors_of(self.image().tensors_at(path)?))
    }

    /// These tensors of the image.
    pub fn tensors_of(&self, tensors: Tensors) -> DeviceTensors {
        DeviceTensors { image: self.clone(), tensors }
    }
}

impl DeviceTensors {
    /// The image.
    pub fn image(&self) -> &MappedImage {
        &self.image
    }

    /// The tensors on the host.
    pub fn host(&self) -> &Tensors {
        &self.tensors
    }

    /// The tensor of that name, or with a placement what the rank has of it.
    ///
    /// # Errors
    /// [`daxfs::Error::Tensor`] when there is none; [`DeviceError::NotPlaced`](crate::DeviceError::NotPlaced) when
    /// nothing of it is there; [`DeviceError::NotOnePlace`](crate::DeviceError::NotOnePlace) when it lies in several
    /// places ([`MappedImage::tensor`]).
    pub fn get(&self, name: &str) -> Result<DeviceTensor> {
        let tensor = self.tensors.get(name)?;
        let slice = self.image.part(&tensor)?;
        Ok(DeviceTensor { image: self.image.clone(), tensor, slice })
    }

    /// Names of the tensors of which something is there, sorted.
    ///
    /// # Errors
    /// Those of the tensors' headers, or names that are wrong in the index.
    pub fn names(&self) -> Result<Vec<String>> {
        let Some(placement) = self.image.placement() else {
            return Ok(self.tensors.names().into_iter().collect::<daxfs::Result<_>>()?);
        };
        let mut names = Vec::new();
        for tensor in self.tensors.iter() {
            let tensor = tensor?;
            if placement.assigned(&tensor)? != Assigned::Nothing {
                names.push(tensor.name().to_owned());
            }
        }
        Ok(names)
    }
}

impl DeviceTensor {
    /// Name of the tensor.
    pub fn name(&self) -> &str {
        self.tensor.name()
    }

    /// The whole tensor on the host.
    pub fn host(&self) -> &Tensor {
        &self.tensor
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.slice.dtype()
    }

    /// Elements per dimension.
    pub fn shape(&self) -> &[u64] {
        self.slice.shape()
    }

    /// Elements from one index of a dimension to the next.
    pub fn strides(&self) -> &[u64] {
        self.slice.strides()
    }

    /// Whether nothing lies between the elements.
    pub fn is_contiguous(&self) -> bool {
        self.slice.is_contiguous()
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        // No overflow: they are some of the tensor's, or none.
        if self.shape().contains(&0) { 0 } else { self.shape().iter().product() }
    }

    /// Bytes of the elements, without what may lie between them.
    pub fn nbytes(&self) -> u64 {
        // A part of a tensor is whole bytes and whole blocks, and fits where the tensor does.
        self.dtype().bytes_of(self.elements().into()).unwrap_or(u64::MAX)
    }

    /// From the first byte to the last one: a buffer, and an offset in it.
    pub fn place(&self) -> &Place {
        self.slice.place()
    }

    /// The device's address of the first byte, where the device has addresses; valid while this value or another of the
    /// image lives.
    pub fn address(&self) -> Option<u64> {
        self.place().address()
    }

    /// Whether work of this process on the device may write to it.
    pub fn is_writable(&self) -> bool {
        self.place().buffer().is_writable()
    }

    /// Whether it is all of the tensor.
    pub fn is_whole(&self) -> bool {
        self.shape() == self.tensor.shape() && self.place().len() == self.tensor.nbytes()
    }

    /// The part `range` of dimension `dim` of the tensor, where it lies; `range` counts in the whole tensor.
    ///
    /// # Errors
    /// As for [`MappedImage::slice`].
    pub fn slice(&self, dim: usize, range: Range<u64>) -> Result<Self> {
        let slice = self.image.slice(&self.tensor, dim, range)?;
        Ok(Self { slice, ..self.clone() })
    }

    /// Lends it out in the form of DLPack 1.x; `device` is what the consumer is told that the memory is, or `None` for
    /// what it is by itself ([`Buffer::dl_device`](crate::Buffer::dl_device)).
    ///
    /// # Errors
    /// As for [`dlpack::export_versioned`].
    pub fn export_dlpack(
        &self,
        read_only: bool,
        device: Option<DLDevice>,
    ) -> Result<NonNull<DLManagedTensorVersioned>> {
        let own = self.place().buffer().dl_device();
        // The CPU, which no memory of a device is: the export says so.
        let device = device.or(own).unwrap_or(DLDevice::CPU);
        match self.is_whole() {
            true => dlpack::export_versioned(&self.tensor, self.place(), read_only, device),
            false => dlpack::export_slice_versioned(&self.tensor, &self.slice, read_only, device),
        }
    }
}
