//! Where memory lies: binding it to a NUMA node before it is allocated, and asking afterwards.

#![allow(unsafe_code, reason = "system calls that neither libc nor nix wrap")]

use std::collections::BTreeMap;
use std::fs;
use std::io;

use crate::error::{Error, Result};
use crate::map::Mapping;
use crate::view::SharedBytes;

/// `MPOL_DEFAULT` and `MPOL_BIND` of `linux/mempolicy.h`.
const MPOL_DEFAULT: libc::c_int = 0;
const MPOL_BIND: libc::c_int = 2;
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

/// The kernel reads and writes one bit less than it is told.
const MASK_LEN: libc::c_long = NODES as libc::c_long + 1;

/// Binds all pages of the memory behind a shared mapping to `node`, for whoever allocates them. Pages that are there
/// already stay where they are.
pub(crate) fn bind(map: &Mapping, node: u32) -> Result<()> {
    let mask = mask(node)?;
    let (start, len) = (map.view().as_ptr(), map.view().len());
    let mode = libc::c_long::from(MPOL_BIND);
    // SAFETY: mbind(2) changes where pages come from that are not allocated yet, never contents or mappings; the
    // range is one mapping that `map` keeps, and the mask is a live array of the bits that are read, one less than
    // told.
    let done = unsafe {
        libc::syscall(libc::SYS_mbind, start, len, mode, mask.as_ptr(), MASK_LEN, 0 as libc::c_long)
    };
    if done == 0 { Ok(()) } else { Err(failed("mbind", node, io::Error::last_os_error())) }
}

/// Runs `allocate` with this thread's allocations bound to `node`: for memory that is allocated in a system call and
/// keeps no policy itself. Afterwards the thread has the policy that it had before.
pub(crate) fn on_node<T>(node: Option<u32>, allocate: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(node) = node else { return allocate() };
    let bound = Policy { mode: MPOL_BIND, nodes: mask(node)? };
    let _before = Restored(Policy::of_this_thread().map_err(|e| failed("get_mempolicy", node, e))?);
    bound.set().map_err(|e| failed("set_mempolicy", node, e))?;
    allocate()
}

/// Where a thread's pages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    /// With the mode's flags.
    mode: libc::c_int,
    nodes: Mask,
}

impl Policy {
    fn of_this_thread() -> io::Result<Self> {
        let (mut mode, mut nodes) = (0, [0; NODES / BITS]);
        // SAFETY: without flags get_mempolicy(2) writes the mode, and of the mask one bit less than it is told, which
        // is all of the array: both are alive. The address is not used.
        let done = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut mode,
                nodes.as_mut_ptr(),
                MASK_LEN,
                0 as libc::c_long,
                0 as libc::c_long,
            )
        };
        if done == 0 { Ok(Self { mode, nodes }) } else { Err(io::Error::last_os_error()) }
    }

    fn set(&self) -> io::Result<()> {
        let mode = libc::c_long::from(self.mode);
        // SAFETY: set_mempolicy(2) only decides where this thread's pages come from; the mask is a live array of the
        // bits that are read, one less than told.
        let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, self.nodes.as_ptr(), MASK_LEN) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Gives the thread its policy back when it is dropped.
struct Restored(Policy);

impl Drop for Restored {
    fn drop(&mut self) {
        if self.0.set().is_err() {
            // Its nodes are not this process's any more. The default policy has none, and cannot be refused.
            let _ = Policy { mode: MPOL_DEFAULT, nodes: [0; NODES / BITS] }.set();
        }
    }
}

fn failed(call: &'static str, node: u32, error: io::Error) -> Error {
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
            _ => Err(Error::os("move_pages", "for the nodes of this process' memory", error)),
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

    /// What `create` makes; `None`, with a message, where there are no NUMA nodes or a filter of system calls forbids
    /// to ask for one.
    fn allowed<T>(made: Result<T>) -> Option<T> {
        match made {
            Err(error @ Error::Unavailable { .. }) => println!("not run: {error}"),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => println!("not run: {error}"),
            made => return Some(made.unwrap()),
        }
        None
    }

    #[test]
    fn memory_is_bound_to_a_node_that_is_there() {
        let made = Memfd::create_on("bound", 1 << 20, HugePages::No, Some(0));
        let Some(memfd) = allowed(made) else { return };
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 1 << 20).unwrap();
        assert_eq!(nodes_of(map.view(), 4096).unwrap().values().sum::<u64>(), 0, "nothing is touched yet");
        map.view_mut().unwrap().fill_zero(0, 1 << 20).unwrap();
        assert_eq!(nodes_of(map.view(), 4096).unwrap(), BTreeMap::from([(0, 1 << 20)]));
    }

    #[test]
    fn the_thread_keeps_its_policy() {
        const MPOL_PREFERRED: libc::c_int = 1;
        let own = Policy { mode: MPOL_PREFERRED, nodes: mask(0).unwrap() };
        let set = own.set().map_err(|e| failed("set_mempolicy", 0, e));
        if allowed(set).is_none() {
            return;
        }
        let bound = Policy { mode: MPOL_BIND, nodes: mask(0).unwrap() };
        let inside = on_node(Some(0), || Ok(Policy::of_this_thread().unwrap())).unwrap();
        assert_eq!((inside, Policy::of_this_thread().unwrap()), (bound, own.clone()));
        let panicked = std::panic::catch_unwind(|| on_node::<()>(Some(0), || panic!("while it is bound")));
        assert!(panicked.is_err());
        assert_eq!(Policy::of_this_thread().unwrap(), own);
        // A node that is not there changes nothing.
        on_node(Some(1023), || Ok(())).unwrap_err();
        assert_eq!(Policy::of_this_thread().unwrap(), own);
        Policy { mode: MPOL_DEFAULT, nodes: [0; NODES / BITS] }.set().unwrap();
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        for node in [1023, 1024, u32::MAX] {
            for error in [
                Memfd::create_on("nowhere", 4096, HugePages::No, Some(node)).unwrap_err(),
                on_node(Some(node), || Ok(())).unwrap_err(),
            ] {
                assert!(error.to_string().contains(&format!("NUMA node {node}")), "{error}");
                if node == 1023 && error.raw_os_error() == Some(libc::EPERM) {
                    println!("not run: {error}");
                    continue;
                }
                assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            }
        }
        assert!(on_node(None, || Ok(())).is_ok());
    }
}
