//! Images that are mounted by FUSE: they behave as the same tree in a tmpfs does, whatever the image is, and leave
//! nothing behind.
//!
//! | module | question |
//! |---|---|
//! | `conformance` | does each system call answer as on a tmpfs with the same tree? |
//! | `large` | long names, deep paths, 100,000 names, files beyond 4 GiB |
//! | `programs` | do programs and libraries run from a mount, below chroot? |
//! | `lifetime` | what ends a mount, and what is left of it then? |
//! | `options` | `-o`, mount(8), fstab's options, other users, user namespaces |
//! | `changing` | what shows when another image takes the place? |
//! | `hostile` | do images made to hurt a reader hurt a mount? |
//! | `ways` | which way of mounting does the command take? |
//!
//! They need root, as mounting for all users does, and say so where it is missing; with `CI=true` or
//! `DAXFS_REQUIRE_ROOT` in the environment they fail there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod changing;
mod conformance;
mod hostile;
mod large;
mod lifetime;
mod options;
mod probe;
mod programs;
mod support;
mod ways;
