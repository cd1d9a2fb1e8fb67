//! Where memory lies: binding it to a NUMA node before it is allocated, and asking afterwards.

#![allow(unsafe_code, reason = "system calls that neither libc nor nix wrap")]

use std::collections::BTreeMap;
use std::fs;
use std::io;

use crate::error::{Error, Result};
use crate::map::Mapping;
use crate::view::SharedBytes;

/// `MPOL_DEFAULT` and `MPOL_BIND` of `linux/mempolicy.h`.
const MPOL_DEFAULT: libc::c_long = 0;
const MPOL_BIND: libc::c_long = 2;
/// Nodes that a mask can name: the largest `CONFIG_NODES_SHIFT` is 10.
const NODES: usize = 1024;
const BITS: usize = u64::BITS as usize;

type Mask = [u64; NODES / BITS];

fn mask(node: u32) -> Result<Mask> {
    let mut mask = [0; NODES / BITS];
    let node = node as usize;
    match mask.get_mut(node / BITS) {
        Some(word) => *word |= 1 << (node % BITS),
        None => return Err(no_node(node)),
    }
    Ok(mask)
}

fn no_node(node: usize) -> Error {
    let online = fs::read_to_string("/sys/devices/system/node/online");
    let there = online.as_deref().map_or("none, the kernel has no CONFIG_NUMA", str::trim);
    Error::Unavailable {
        what: format!("NUMA node {node}"),
        needs: format!("a node of this machine with memory; there are: {there}"),
    }
}

/// The kernel reads one bit less than it is told.
const MASK_LEN: libc::c_long = NODES as libc::c_long + 1;

/// Binds all pages of the memory behind a shared mapping to `node`, for whoever allocates them. Pages that are there
/// already stay where they are.
pub(crate) fn bind(map: &Mapping, node: u32) -> Result<()> {
    let mask = mask(node)?;
    let (start, len) = (map.view().as_ptr(), map.view().len());
    // SAFETY: mbind(2) changes where pages come from that are not allocated yet, never contents or mappings; the
    // range is one mapping that `map` keeps, and the mask is a live array of as many bits as the call is told.
    let done = unsafe {
        libc::syscall(libc::SYS_mbind, start, len, MPOL_BIND, mask.as_ptr(), MASK_LEN, 0 as libc::c_long)
    };
    if done == 0 { Ok(()) } else { Err(failed("mbind", node)) }
}

/// Runs `allocate` with this thread's allocations bound to `node`: for memory that a driver allocates in a system call.
pub(crate) fn on_node<T>(node: Option<u32>, allocate: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(node) = node else { return allocate() };
    let mask = mask(node)?;
    // SAFETY: set_mempolicy(2) only decides where this thread's pages come from; the mask is a live array of as many
    // bits as the call is told.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_BIND, mask.as_ptr(), MASK_LEN) };
    if done != 0 {
        return Err(failed("set_mempolicy", node));
    }
    let result = allocate();
    // SAFETY: as above; the default policy takes no mask.
    let done = unsafe {
        libc::syscall(libc::SYS_set_mempolicy, MPOL_DEFAULT, std::ptr::null::<u64>(), 0 as libc::c_long)
    };
    if done != 0 {
        return Err(Error::os("set_mempolicy", "the default policy", io::Error::last_os_error()));
    }
    result
}

fn failed(call: &'static str, node: u32) -> Error {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => no_node(node as usize),
        _ => Error::os(call, format!("NUMA node {node}"), error),
    }
}

/// Bytes of a mapped view by the node that they lie on, judged by one page in every `step` bytes (a power of two);
/// pages that this process has not touched do not count. Empty where the kernel does not say.
///
/// # Errors
/// [`Error::Os`] when the kernel refuses for another reason.
pub fn nodes_of(view: SharedBytes<'_>, step: usize) -> Result<BTreeMap<u32, u64>> {
    let mut found = BTreeMap::new();
    let step = step.max(1);
    let pages: Vec<usize> = (0..view.len()).step_by(step).map(|at| view.as_ptr().addr() + at).collect();
    let mut status = vec![-1_i32; pages.len()];
    let nodes = std::ptr::null::<i32>();
    // SAFETY: without target nodes move_pages(2) moves nothing and only writes one int per address to `status`, which
    // has as many elements as `pages`, both alive; addresses are numbers to it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0 as libc::c_long,
            pages.len(),
            pages.as_ptr(),
            nodes,
            status.as_mut_ptr(),
            0 as libc::c_long,
        )
    };
    if done != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => Ok(found),
            _ => Err(Error::os("move_pages", format!("{view:?}"), error)),
        };
    }
    for (at, node) in (0..view.len()).step_by(step).zip(status) {
        if let Ok(node) = u32::try_from(node) {
            *found.entry(node).or_insert(0) += step.min(view.len() - at) as u64;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::{HugePages, Memfd};
    use std::os::fd::AsFd;

    #[test]
    fn memory_is_bound_to_a_node_that_is_there() {
        let pages = HugePages::No;
        let memfd = match Memfd::create_on("bound", 1 << 20, pages, Some(0)) {
            Err(error @ Error::Unavailable { .. }) => return println!("not run: {error}"),
            memfd => memfd.unwrap(),
        };
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 1 << 20).unwrap();
        assert_eq!(nodes_of(map.view(), 4096).unwrap().values().sum::<u64>(), 0, "nothing is touched yet");
        map.view_mut().unwrap().fill_zero(0, 1 << 20).unwrap();
        assert_eq!(nodes_of(map.view(), 4096).unwrap(), BTreeMap::from([(0, 1 << 20)]));
        assert_eq!(on_node(Some(0), || Ok(7)).unwrap(), 7);
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        for node in [1023, 1024, u32::MAX] {
            for error in [
                Memfd::create_on("nowhere", 4096, HugePages::No, Some(node)).unwrap_err(),
                on_node(Some(node), || Ok(())).unwrap_err(),
            ] {
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
                assert!(error.to_string().contains(&format!("NUMA node {node}")), "{error}");
            }
        }
        assert!(on_node(None, || Ok(())).is_ok());
    }
}
