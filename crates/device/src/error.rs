//! What goes wrong between an image and a device: what is missing, what the driver answered, what was tried.

#![forbid(unsafe_code)]

use std::fmt;

use daxfs::Escaped;
use daxfs_protocol::{DeviceUuid, Hex};

use crate::placement::PlanError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: with the device, a plan, or the image itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device lacks something, refuses the memory, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),

    /// A placement plan is wrong, or cannot be followed for an image.
    #[error(transparent)]
    Plan(#[from] PlanError),

    /// The image, its memory or its holder.
    #[error(transparent)]
    Image(#[from] daxfs::Error),
}

impl From<dmabuf::Error> for Error {
    fn from(error: dmabuf::Error) -> Self {
        Self::Image(error.into())
    }
}

/// How the memory of a region gets to the device. Only [`Route::Copy`] copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// The device imports the descriptor: a dma-buf, or a memfd where the driver takes those; with CUDA, memory that
    /// another process filled.
    Descriptor,
    /// The device imports the pages that this process has mapped, by their address.
    Mapping,
    /// The bytes were copied into the device's own memory, or into host memory for it
    /// ([`ImageExt::to`](crate::ImageExt::to)).
    Copy,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptor => "descriptor",
            Self::Mapping => "mapping",
            Self::Copy => "copy",
        })
    }
}

/// Why a device or an image in its memory cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The machine or the driver lacks something.
    #[error("{what} is not available: it needs {needs}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What would make it available.
        needs: String,
    },

    /// The text names no device.
    #[error("{text:?} is no device: expected one of {}, with a number from 0, such as {}:0", families.join(", "), families.first().unwrap_or(&"cuda"))]
    NotADevice {
        /// What was given.
        text: String,
        /// What a name begins with.
        families: &'static [&'static str],
    },

    /// There is no device of that number.
    #[error("there is no device {number}: {}", devices(.names))]
    NoSuchDevice {
        /// The number, from 0.
        number: usize,
        /// Names of the devices that there are.
        names: Vec<String>,
    },

    /// A call of the driver failed.
    #[error("{device}: {call}: {meaning} ({code})")]
    Driver {
        /// Name of the device, or of the loader.
        device: String,
        /// The call.
        call: &'static str,
        /// The driver's number for it.
        code: i32,
        /// The driver's words for it.
        meaning: String,
    },

    /// The device cannot use this memory in place.
    #[error("{device} cannot use {memory} in place{}; {advice}", list(.refusals))]
    NotImportable {
        /// Name of the device.
        device: String,
        /// What the memory is.
        memory: String,
        /// Each way that was tried or ruled out, and why.
        refusals: Vec<Refusal>,
        /// What to do.
        advice: &'static str,
    },

    /// One place was asked for, but the bytes lie in several, or in none.
    #[error("{}: its bytes lie in {places} places of the device, not in one; go through them, or copy", Escaped(.path))]
    NotOnePlace {
        /// The file.
        path: Vec<u8>,
        /// How many.
        places: usize,
    },

    /// A tensor has no such part, or none that begins and ends with a byte.
    #[error("tensor {tensor:?} of shape {shape:?}: {}..{} of dimension {dim}: {why}", .range.start, .range.end)]
    NoSuchSlice {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        shape: Vec<u64>,
        /// The dimension, from 0.
        dim: usize,
        /// The range of it.
        range: std::ops::Range<u64>,
        /// What is wrong.
        why: &'static str,
    },

    /// Something is not in the device's memory, to which only a placement was copied.
    #[error("{what} is not on rank {rank}, which has {has} by its plan")]
    NotPlaced {
        /// The tensor, the file or the bytes.
        what: String,
        /// The rank whose placement it is.
        rank: usize,
        /// What it has of them instead.
        has: &'static str,
    },

    /// Bytes of a file are not in the image at all.
    #[error("{}: bytes {start:#x}.. are a hole: zeros that lie nowhere in memory", Escaped(.path))]
    Hole {
        /// The file.
        path: Vec<u8>,
        /// The first such byte, from the start of the file.
        start: u64,
    },

    /// The file is one of another image than the mapped one.
    #[error("{}: the file belongs to another image than the one that was mapped", Escaped(.path))]
    OtherImage {
        /// The file.
        path: Vec<u8>,
    },

    /// A place is too long for how it is to be bound.
    #[error(
        "{len} bytes exceed the {bound} bytes that {device} can bind as a storage buffer; use the device address, or split the place"
    )]
    TooLongToBind {
        /// Name of the device.
        device: String,
        /// Bytes from the aligned start of the binding to the end of the place.
        len: u64,
        /// The device's limit.
        bound: u64,
    },

    /// The device has not enough memory.
    #[error("{device}: {need} bytes of device memory are needed, and {free} are free")]
    OutOfMemory {
        /// Name of the device.
        device: String,
        /// Bytes that were asked for.
        need: u64,
        /// Bytes that the driver calls free.
        free: u64,
    },

    /// The host has not enough memory on the device's node.
    #[error(
        "{device}: {need} bytes of host memory are needed, and the driver does not get them on NUMA node {node}"
    )]
    OutOfHostMemory {
        /// Name of the device.
        device: String,
        /// Bytes that were asked for.
        need: u64,
        /// The node.
        node: i32,
    },

    /// The caller ended a copy.
    #[error("{device}: the copy was cancelled")]
    Cancelled {
        /// Name of the device.
        device: String,
    },

    /// What is in the device's memory is not the image's.
    #[error("{device}: {}: the copy's hash is {}, not {}", Escaped(.path), hex(.found), hex(.wanted))]
    Mismatch {
        /// Name of the device.
        device: String,
        /// The file. What a rank of a plan has is compared by ranges, which may hold several: the first one.
        path: Vec<u8>,
        /// Hash that it should have: the index's, or that of the image's own bytes.
        wanted: Box<[u8; 32]>,
        /// Hash of what is there; for a file that was changed after packing, or is one of a range, both are of the part
        /// that was compared.
        found: Box<[u8; 32]>,
    },

    /// Memory that was shared lies on another device.
    #[error("the memory lies on device {}, and {device} is {}", .wanted, .found)]
    OtherDevice {
        /// Name of the device that was asked.
        device: String,
        /// Identity of the device that has the memory.
        wanted: DeviceUuid,
        /// Identity of the device that was asked.
        found: DeviceUuid,
    },

    /// This device does not keep images in memory of its own.
    #[error("{device} has no memory of its own for images: {advice}")]
    NotResident {
        /// Name of the device.
        device: String,
        /// What to do.
        advice: &'static str,
    },

    /// A holder cannot be given this copy.
    #[error("{device}: the copy cannot be kept by a holder: {why}")]
    NotKept {
        /// Name of the device.
        device: String,
        /// Why.
        why: &'static str,
    },

    /// Memory of this device cannot be exported, or was not.
    #[error("{device}: the memory cannot be exported: {why}")]
    NotExportable {
        /// Name of the device.
        device: String,
        /// Why.
        why: String,
    },
}

/// One way to the device that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The way.
    pub route: Route,
    /// Why it does not do.
    pub why: String,
}

fn devices(names: &[String]) -> String {
    match names {
        [] => "there are none; a driver has to be installed".into(),
        names => format!("there are {}, counted from 0: {}", names.len(), names.join(", ")),
    }
}

/// A hash, as users write it.
fn hex(hash: &[u8; 32]) -> String {
    format!("blake3:{}", Hex(hash))
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("; by {}: {}", refusal.route, refusal.why)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_was_tried_and_what_helps() {
        let error = DeviceError::NotImportable {
            device: "card".into(),
            memory: "a sealed memfd of 4096 bytes".into(),
            refusals: vec![
                Refusal { route: Route::Descriptor, why: "it is sealed".into() },
                Refusal { route: Route::Mapping, why: "no extension".into() },
            ],
            advice: "pack into a dma-heap",
        };
        let text = "card cannot use a sealed memfd of 4096 bytes in place; by descriptor: it is sealed; by mapping: no \
                    extension; pack into a dma-heap";
        assert_eq!(error.to_string(), text);
        let none = DeviceError::NoSuchDevice { number: 3, names: vec!["a".into(), "b".into()] };
        assert_eq!(none.to_string(), "there is no device 3: there are 2, counted from 0: a, b");
    }
}
