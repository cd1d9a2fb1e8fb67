//! The families of devices: one row of a table for each.

#![forbid(unsafe_code)]

use std::fmt;

use daxfs::DeviceUuid;
use daxfs::dlpack::DLDevice;

use crate::backend::{Backend, Memory};
use crate::{DeviceError, Result, Shared, cuda, opencl, vulkan};

/// Makes the enums from the rows: documentation, variant, module, name in texts, and the method that gives the module's
/// own type.
macro_rules! families {
    ($($(#[$doc:meta])* $variant:ident = $module:ident, $name:literal, $as:ident;)*) => {
        /// A device that reads images in place, or keeps copies of them. Cloning shares it; it is given back when
        /// nothing uses it any more.
        ///
        /// A family that is not compiled in has no values: opening one is [`DeviceError::Unavailable`].
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub enum Device {
            $($(#[$doc])* $variant($module::Device),)*
        }

        /// Memory as a device sees it. Cloning shares it; it is freed when the last clone and the last
        /// [`Place`](crate::Place) in it go.
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub enum Buffer {
            $($(#[$doc])* $variant($module::Buffer),)*
        }

        impl Device {
            /// Names of the families, as [`Device::parse`] takes them.
            pub const FAMILIES: &'static [&'static str] = &[$($name),*];

            /// Opens device number `number`, counted from 0, of a family, of [`Device::FAMILIES`].
            ///
            /// # Errors
            /// As for [`DeviceName::open`]; [`DeviceError::NotADevice`] for another family.
            pub fn open(family: &str, number: usize) -> Result<Self> {
                match family {
                    $($name => <$module::Device as Backend>::open($name, number).map(Self::$variant),)*
                    _ => Err(no_device(&format!("{family}:{number}")).into()),
                }
            }

            $(
                /// The device of this family, if it is one.
                pub fn $as(&self) -> Option<&$module::Device> {
                    match self {
                        Self::$variant(device) => Some(device),
                        #[allow(unreachable_patterns, reason = "families that are not compiled in have no values")]
                        _ => None,
                    }
                }
            )*

            pub(crate) fn backend(&self) -> &dyn Backend {
                match self {
                    $(Self::$variant(device) => device,)*
                }
            }
        }

        impl Buffer {
            $(
                /// The buffer of this family, if it is one.
                pub fn $as(&self) -> Option<&$module::Buffer> {
                    match self {
                        Self::$variant(buffer) => Some(buffer),
                        #[allow(unreachable_patterns, reason = "families that are not compiled in have no values")]
                        _ => None,
                    }
                }
            )*

            fn memory(&self) -> &dyn Memory {
                match self {
                    $(Self::$variant(buffer) => buffer,)*
                }
            }
        }

        $(
            impl From<$module::Device> for Device {
                fn from(device: $module::Device) -> Self {
                    Self::$variant(device)
                }
            }

            impl From<$module::Buffer> for Buffer {
                fn from(buffer: $module::Buffer) -> Self {
                    Self::$variant(buffer)
                }
            }
        )*
    };
}

families! {
    /// A device of the CUDA driver.
    Cuda = cuda, "cuda", as_cuda;
    /// A device of an OpenCL driver.
    OpenCl = opencl, "opencl", as_opencl;
    /// A device of a Vulkan driver.
    Vulkan = vulkan, "vulkan", as_vulkan;
}

/// What a device is called before it is opened: `cuda:0`, `vulkan:1`; `cuda` is `cuda:0`. `cuda-host:0` is host memory
/// beside a device, where copies can be, too ([`UploadOptions::in_host`](crate::UploadOptions::in_host)).
///
/// ```
/// let name: daxfs_device::DeviceName = "cuda-host:1".parse().unwrap();
/// assert_eq!((name.family(), name.number(), name.is_host()), ("cuda", 1, true));
/// assert_eq!(name.to_string(), "cuda-host:1");
/// assert!("cuda:x".parse::<daxfs_device::DeviceName>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceName {
    family: &'static str,
    number: usize,
    is_host: bool,
}

impl DeviceName {
    /// The family, of [`Device::FAMILIES`].
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// The number of the device, counted from 0. One that fits nothing is one of no device, which opening it says.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether host memory beside the device is meant.
    pub fn is_host(&self) -> bool {
        self.is_host
    }

    /// Opens the device, also where host memory beside it is meant.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when the family is not compiled in or the machine has no driver of it;
    /// [`DeviceError::NoSuchDevice`]; [`DeviceError::Driver`] with what else the driver answers.
    pub fn open(&self) -> Result<Device> {
        Device::open(self.family, self.number)
    }
}

impl std::str::FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (name, number) = text.split_once(':').unwrap_or((text, "0"));
        let (base, is_host) = name.strip_suffix("-host").map_or((name, false), |base| (base, true));
        let family =
            Device::FAMILIES.iter().find(|family| **family == base).ok_or_else(|| no_device(text))?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match is_number {
            true => Ok(Self { family, number: number.parse().unwrap_or(usize::MAX), is_host }),
            false => Err(no_device(text)),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.is_host { "-host" } else { "" };
        write!(f, "{}{host}:{}", self.family, self.number)
    }
}

/// The text names no device.
fn no_device(text: &str) -> DeviceError {
    DeviceError::NotADevice { text: text.into(), families: Device::FAMILIES }
}

impl Device {
    /// Opens a device by name, such as `cuda:0`; see [`DeviceName`].
    ///
    /// # Errors
    /// [`DeviceError::NotADevice`] for another text, and for host memory beside a device; as for [`DeviceName::open`].
    pub fn parse(text: &str) -> Result<Self> {
        let name: DeviceName = text.parse()?;
        if name.is_host { Err(no_device(text).into()) } else { name.open() }
    }

    /// Name, as the driver gives it.
    pub fn name(&self) -> &str {
        self.backend().name()
    }

    /// The device, whatever number a process sees it under; `None` where its memory cannot be shared.
    pub fn uuid(&self) -> Option<DeviceUuid> {
        self.backend().uuid()
    }
}

impl Buffer {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.memory().len()
    }

    /// True for a buffer without bytes; none is ever made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device's address of the first byte, where the device has addresses; valid while the buffer lives.
    pub fn address(&self) -> Option<u64> {
        self.memory().address()
    }

    /// Whether the bytes are in the device's own memory; else the device reads the host's.
    pub fn is_resident(&self) -> bool {
        self.memory().is_resident()
    }

    /// Whether work that this process gives the device may write: only to a copy that was asked for
    /// ([`UploadOptions::writable`](crate::UploadOptions::writable)).
    pub fn is_writable(&self) -> bool {
        self.memory().is_writable()
    }

    /// The memory for other processes; `None` where the family of devices shares none.
    ///
    /// # Errors
    /// [`DeviceError::NotExportable`] for an image that is only mapped, whose own descriptor can be passed;
    /// [`DeviceError::Driver`].
    pub fn share(&self) -> Option<Result<Shared>> {
        self.memory().share()
    }

    /// Copies bytes back to the host, and waits for them. The image's own file is the place to read from; this is for
    /// those who want to see what the device has.
    ///
    /// # Errors
    /// [`daxfs::Error::Memory`] for a range outside of the buffer, [`DeviceError::Driver`].
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory().read(offset, bytes)
    }

    /// Where the memory is, in the terms of DLPack: a GPU, or the host where a GPU reads it. `None` where DLPack's
    /// consumers do not share it.
    pub fn dl_device(&self) -> Option<DLDevice> {
        Some(self.dl_own()?.0)
    }

    /// The GPU that reads it in place, in the terms of DLPack, also where the memory is the host's.
    pub fn dl_gpu(&self) -> Option<DLDevice> {
        Some(self.dl_reader()?.0)
    }

    pub(crate) fn dl_own(&self) -> Option<(DLDevice, u64)> {
        self.memory().dl_own()
    }

    pub(crate) fn dl_reader(&self) -> Option<(DLDevice, u64)> {
        self.memory().dl_reader()
    }

    /// Whether the bytes are a copy of the image's, in whatever memory.
    pub(crate) fn is_copy(&self) -> bool {
        self.memory().is_copy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_and_written() {
        for (text, family, number, is_host) in [
            ("cuda", "cuda", 0, false),
            ("cuda:3", "cuda", 3, false),
            ("cuda-host", "cuda", 0, true),
            ("vulkan:12", "vulkan", 12, false),
            ("cuda:99999999999999999999999", "cuda", usize::MAX, false),
        ] {
            let name: DeviceName = text.parse().unwrap();
            assert_eq!((name.family(), name.number(), name.is_host()), (family, number, is_host), "{text}");
            assert_eq!(name.to_string().parse::<DeviceName>().unwrap(), name);
        }
        for text in
            ["", "gpu:0", "cuda:", "cuda:-1", "cuda:+1", "cuda:1:2", "host", "-host:0", "CUDA:0", "cuda: 1"]
        {
            assert!(matches!(text.parse::<DeviceName>(), Err(DeviceError::NotADevice { .. })), "{text}");
        }
        assert!(Device::parse("cuda-host:0").unwrap_err().to_string().contains("cuda-host:0"));
    }

    #[cfg(not(feature = "vulkan"))]
    #[test]
    fn a_family_that_is_not_compiled_in_is_an_error_that_says_so() {
        let error = Device::parse("vulkan:0").unwrap_err().to_string();
        assert!(error.contains("feature `vulkan`"), "{error}");
    }
}
