//! What stands for a family of devices that is not compiled in: types without values, so every `match` has the same
//! arms whatever features there are.

#![forbid(unsafe_code)]

use std::convert::Infallible;

use daxfs::Region;

use crate::backend::{Backend, Memory};
use crate::{DeviceError, MapOptions, MappedRegion, Result};

/// A device of a family that is not compiled in: there is none. `FAMILY` only tells the types apart.
#[derive(Clone, Debug)]
pub struct Device<const FAMILY: char>(Infallible);

/// Memory of a device of a family that is not compiled in: there is none.
#[derive(Clone, Debug)]
pub struct Buffer<const FAMILY: char>(Infallible);

impl<const FAMILY: char> Backend for Device<FAMILY> {
    fn open(family: &str, _: usize) -> Result<Self> {
        Err(DeviceError::Unavailable {
            what: format!("{family} support"),
            needs: format!("a build with the feature `{family}` of the crate daxfs-device"),
        }
        .into())
    }

    fn name(&self) -> &str {
        match self.0 {}
    }

    fn map(&self, _: &Region, _: u64, _: &MapOptions) -> Result<MappedRegion> {
        match self.0 {}
    }
}

impl<const FAMILY: char> Memory for Buffer<FAMILY> {
    fn len(&self) -> u64 {
        match self.0 {}
    }

    fn address(&self) -> Option<u64> {
        match self.0 {}
    }
}
