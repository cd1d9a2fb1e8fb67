//! Containers over images by `daxfs run`: what a command sees, what it may do, and that nothing is left of it.
//!
//! | module | question |
//! |---|---|
//! | `program` | which command runs, as whom, where, with which exit status? |
//! | `files` | what of the image, of the machine and of what was changed does it see? |
//! | `lifetime` | signals, and what is left when something is killed |
//! | `bundle` | the same by the OCI runtimes crun and runc, from what `daxfs bundle` makes |
//! | `rootless` | the same for a user in a user namespace |
//!
//! They need root, a static busybox, and namespaces, and say so where these are missing; with `CI=true` or
//! `DAXFS_REQUIRE_ROOT` in the environment they fail there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod bundle;
mod files;
mod lifetime;
mod program;
mod rootless;
mod support;
