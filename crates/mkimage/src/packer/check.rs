//! What settings may be, and which exclude each other.

use super::Packer;
use crate::erofs;
use crate::parallel::Threads;
use crate::plan::Format;
use crate::{Error, Result};

/// The largest alignment: that of the largest pages in use.
const LARGEST_ALIGN: u64 = 1 << 30;
/// The block sizes that exist: page sizes of the machines that mount images.
const BLOCK_SIZES: [u32; 3] = [4096, 16384, 65536];

impl Packer {
    pub(super) fn check(&self) -> Result<()> {
        let fail = |option, why: String| Err(Error::Setting { option, why });
        if !self.align.is_power_of_two() || self.align > LARGEST_ALIGN {
            return fail("--align", format!("{} is not a power of two up to {LARGEST_ALIGN}", self.align));
        }
        if let Some(bytes) = self.tensor_align
            && (!bytes.is_power_of_two() || !(8..=LARGEST_ALIGN).contains(&bytes))
        {
            return fail(
                "--align-tensors",
                format!("{bytes} is not a power of two from 8 to {LARGEST_ALIGN}"),
            );
        }
        for (given, option, why) in [
            (self.exact, "--exact", "which packs byte for byte"),
            (self.rules.plain, "--plain", "which leaves out what moved tensors would be moved back by"),
        ] {
            if given && self.tensor_align.is_some() {
                return fail("--align-tensors", format!("excludes {option}, {why}; give one of them"));
            }
        }
        if !BLOCK_SIZES.contains(&self.block_size) {
            return fail("--block-size", format!("{} is none of {BLOCK_SIZES:?}", self.block_size));
        }
        if self.format == Format::V5 && self.block_size != 4096 {
            return fail("--block-size", format!("{}, format 5 has 4096 only", self.block_size));
        }
        if let Some(overlay) = &self.overlay {
            overlay.check()?;
        }
        for (option, given) in
            [("--overlay", self.overlay.is_some()), ("--split", self.settings.split.is_some())]
        {
            if given && self.format == Format::V5 {
                return fail(option, "is of format 8".to_owned());
            }
        }
        let images = self.inputs.iter().any(|input| matches!(daxfs_oci::Source::parse(input), Ok(Some(_))));
        if self.rules.images.platform.is_some() && !images {
            return fail("--platform", "is for container images, and no input is one".to_owned());
        }
        if self.empty {
            if !self.inputs.is_empty() {
                return fail("--empty", "there are inputs; without --empty they are packed".to_owned());
            }
            if self.settings.split.is_some() {
                return fail("--empty", "an empty image has no contents to --split".to_owned());
            }
            if self.overlay.is_none() {
                return fail("--empty", "such an image is its --overlay; say how large it is".to_owned());
            }
        }
        if let Some(why) = self.view_obstacle().filter(|_| self.erofs == Some(true)) {
            return Err(erofs::refuse(why.to_owned()));
        }
        if self.mtimes && !self.has_view() {
            let why = self.view_obstacle().map_or(String::new(), |why| format!(": {why}"));
            return fail("--mtimes", format!("is for images with an EROFS view, and this one has none{why}"));
        }
        if let Some(mode) = self.settings.mode.filter(|mode| *mode > 0o777) {
            return fail("--mode", format!("{mode:o} is not within 0 to 777"));
        }
        if self.settings.threads == Threads::Most(0) {
            return fail("--threads", "at least 1 is needed".to_owned());
        }
        Ok(())
    }
}
