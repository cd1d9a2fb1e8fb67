//! Support for the tests across the crates: images made by hand, the golden set, comparison of trees.
//!
//! The tests themselves lie in `tests/tests`, one file per question:
//!
//! | file | question |
//! |---|---|
//! | `golden` | is every entry of every image that other tools made read as its manifest says? |
//! | `own_golden` | do our packer's bytes and our reader's view stay what they were? |
//! | `mutations` | what do we say to damaged images, and is it what the kernel says? |
//! | `mutate_random` | does random damage ever break the reader? |
//! | `hostile`, `hostile_regions`, `hostile_changes`, `hostile_tensors` | do images made to hurt a reader hurt this one? |
//! | `faults`, `faults_holder` | is anything lost, left or hidden when a system call of the packer or the holder fails? |
//! | `roundtrip` | is what was packed what is read, by us and by an independent reader? |
//! | `kerf` | do images of an independent builder open with the same contents? |
//! | `fuse` | does a mount by FUSE behave as a tmpfs with the same tree, whatever the image and its memory are? |
//! | `overlay_changing` | what does a reader see while a kernel writes to the overlay? |
//! | `concurrent_rewrite` | what does a reader see while another process writes? |
//! | `kernel`, `kernel_holder`, `kernel_memory` | do images work on a kernel with udmabuf and dma-heap? |
//! | `kernel_module` | does the kernel's own DAXFS show the same files, and is the memory behind its mounts found? |
//! | `kernel_pci` | what does a reader see when a PCI device is removed? |
//! | `opencl`, `opencl_descriptors` | does OpenCL show an image's bytes, in place, by descriptor and copied? |
//! | `vm_args` | does QEMU take the options that give an image to a machine? |
//! | `vulkan` | does a device read from an image's memory what the CPU reads? |
//!
//! `docs/validation.md` explains the verdicts that `mutations` and the hostile images expect.

#![allow(clippy::unwrap_used, reason = "support code of tests: a test ends at the first thing that fails")]

pub mod cuda;
pub mod delta;
pub mod devices;
pub mod dump;
pub mod examine;
pub mod forge;
pub mod golden;
#[cfg(target_arch = "x86_64")]
pub mod inject;
pub mod mounts;
pub mod overlay;
pub mod tree;
pub mod verdict;
pub mod vgem;
pub mod words;
pub mod writer;
