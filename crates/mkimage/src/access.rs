//! Who may read the sources: as their modes say, and their access control lists, as the file system hands those out:
//! POSIX's, in version 2 of the kernel's form (`linux/posix_acl_xattr.h`).

use crate::archive::Archive;
use crate::output::Readers;
use crate::parallel::Threads;
use crate::tree::{Kind, Node, ROOT, Tree};
use crate::{Result, parallel};
use daxfs::format::{S_IFMT, S_IFREG};
use rustix::io::Errno;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

const VERSION: u32 = 2;
/// Bytes of an entry: its kind, what it grants, and whose it is.
const ENTRY: usize = 8;
const NAMED_USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;

impl Tree {
    /// Who may read all files, as their permissions say, and those of the directories in the tree and around the inputs
    /// and what links lead to. Where an access control list keeps somebody out whom the mode lets in, that is nobody but
    /// the owner.
    ///
    /// # Errors
    /// None of its own; what [`parallel::map`] passes on.
    pub(crate) fn readers(&self, threads: Threads) -> Result<Readers> {
        if let Some(archive) = &self.archive {
            return Ok(archive.readers());
        }
        let narrowed = |denied: &HashSet<u32>| {
            let mut rule = Narrowed::default();
            for (number, node) in self.iter() {
                if let Some(needed) = self.needed_of(number, node) {
                    rule.narrow(node.mode, node.gid, needed, || !denied.contains(&number));
                }
            }
            rule
        };
        let mut rule = narrowed(&HashSet::new());
        // Lists cannot give back what modes have taken.
        if !rule.is_nobody() {
            let denied = self.denied(threads)?;
            if !denied.is_empty() {
                rule = narrowed(&denied);
            }
        }
        let inputs = self.inputs.iter().map(|input| input.path.clone());
        let followed = self.iter().filter(|(_, node)| node.followed);
        let paths = inputs.chain(followed.map(|(number, _)| self.source_path(number)));
        Ok(rule.around(paths).unwrap_or(Readers::NOBODY))
    }

    /// What who reads the image must be allowed of a node, as the bits of the mode's last digit.
    fn needed_of(&self, number: u32, node: &Node) -> Option<u32> {
        match node.kind {
            Kind::File => Some(0o4),
            Kind::Directory { .. } if number != ROOT || self.input_at(ROOT).is_some() => Some(0o5),
            _ => None,
        }
    }

    /// Nodes whose access control lists keep somebody out. Each file has to be asked, which takes as long as looking it
    /// up.
    fn denied(&self, threads: Threads) -> Result<HashSet<u32>> {
        const BATCH: usize = 256;
        let look = |_: &mut (), at: usize| {
            let numbers = u32::try_from(at * BATCH).unwrap_or(u32::MAX)..;
            let denies = |number| {
                let needed = self.needed_of(number, self.node(number))?;
                (!lets_in(&self.source_path(number), needed)).then_some(number)
            };
            Ok(numbers
                .take(BATCH)
                .take_while(|number| *number < self.len())
                .filter_map(denies)
                .collect::<Vec<_>>())
        };
        let batches = parallel::map((self.len() as usize).div_ceil(BATCH), threads, || (), look)?;
        Ok(batches.into_iter().flatten().collect())
    }
}

/// Who may read what was looked at so far.
struct Narrowed {
    others: bool,
    /// Those of this group, where not everybody may.
    group: Option<u32>,
    is_first: bool,
}

impl Default for Narrowed {
    fn default() -> Self {
        Self { others: true, group: None, is_first: true }
    }
}

impl Narrowed {
    fn is_nobody(&self) -> bool {
        !self.others && self.group.is_none() && !self.is_first
    }

    /// Takes the directories around some paths: who cannot pass them reaches nothing below. `None`: one of them has no
    /// path any more, and is reached by its descriptor alone.
    fn around(mut self, paths: impl Iterator<Item = PathBuf>) -> Option<Readers> {
        let mut seen = HashSet::new();
        for path in paths {
            let path = path.canonicalize().ok()?;
            for directory in path.ancestors().skip(1) {
                if !seen.insert(directory.to_path_buf()) {
                    break;
                }
                let stat = nix::sys::stat::stat(directory).ok()?;
                self.narrow(stat.st_mode, stat.st_gid, 0o1, || lets_in(directory, 0o1));
            }
        }
        Some(Readers::Of { others: self.others, group: self.group })
    }

    /// Takes one more file or directory; `lets_in` says whether its list keeps nobody out.
    fn narrow(&mut self, mode: u32, gid: u32, needed: u32, lets_in: impl FnOnce() -> bool) {
        if self.is_nobody() {
            return;
        }
        // Beside a list, these bits are what it grants at most to anybody it names.
        let members = mode >> 3 & needed == needed && lets_in();
        // To be one of the others, who is of the group must be allowed, too.
        let all = members && mode & needed == needed;
        self.others &= all;
        if !all {
            let allowed = members.then_some(gid);
            self.group = if self.is_first || self.group == allowed { allowed } else { None };
            self.is_first = false;
        }
    }
}

impl Archive {
    /// Who may read the files that an archive or image lies in: what the permissions in it say is for who runs it.
    fn readers(&self) -> Readers {
        let mut rule = Narrowed::default();
        for path in self.inputs() {
            let Ok(stat) = nix::sys::stat::stat(path) else { return Readers::NOBODY };
            // Nobody can say who may read what comes through a pipe.
            if stat.st_mode & S_IFMT != S_IFREG {
                return Readers::NOBODY;
            }
            rule.narrow(stat.st_mode, stat.st_gid, 0o4, || lets_in(path, 0o4));
        }
        rule.around(self.inputs().map(Path::to_path_buf)).unwrap_or(Readers::NOBODY)
    }
}

/// Whether the list of a file or directory, if it has one, grants `needed` to all whom it names, and to its group; false
/// where nobody can tell. What its mask takes away again, the mode says, whose bits for the group are the mask's.
fn lets_in(path: &Path, needed: u32) -> bool {
    // Room for a hundred entries, which most lists do not have.
    let mut list = vec![0; 4 + 100 * ENTRY];
    loop {
        match rustix::fs::getxattr(path, c"system.posix_acl_access", &mut list[..]) {
            Ok(len) => return list.get(..len).and_then(|list| grants_all(list, needed)).unwrap_or(false),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return true,
            Err(Errno::RANGE) if list.len() < 1 << 16 => list.resize(1 << 16, 0),
            Err(_) => return false,
        }
    }
}

/// `None` for what is no list of this version.
fn grants_all(list: &[u8], needed: u32) -> Option<bool> {
    let (version, entries) = list.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION {
        return None;
    }
    let (entries, []) = entries.as_chunks::<ENTRY>() else { return None };
    let denies = |entry: &[u8; ENTRY]| {
        let [kind, granted] = [[entry[0], entry[1]], [entry[2], entry[3]]].map(u16::from_le_bytes);
        [NAMED_USER, GROUP, NAMED_GROUP].contains(&kind) && u32::from(granted) & needed != needed
    };
    Some(!entries.iter().any(denies))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of the owner, these entries, a mask of everything, and others who may read.
    fn list(entries: &[(u16, u16)]) -> Vec<u8> {
        let ends = [(1, 7), (16, 7), (32, 4)];
        let entry = |(kind, granted): (u16, u16)| [kind, granted, 7, 0].map(u16::to_le_bytes).concat();
        let entries = entries.iter().copied().chain(ends).map(entry);
        [VERSION.to_le_bytes().to_vec(), entries.flatten().collect()].concat()
    }

    #[test]
    fn whoever_is_named_counts() {
        let grants = |entries: &[(u16, u16)], needed| grants_all(&list(entries), needed).unwrap();
        assert!(grants(&[(GROUP, 4)], 4));
        assert!(!grants(&[(GROUP, 4)], 5));
        for named in [NAMED_USER, NAMED_GROUP] {
            assert!(grants(&[(named, 4), (GROUP, 4)], 4));
            assert!(!grants(&[(named, 2), (GROUP, 4)], 4));
            assert!(!grants(&[(named, 4), (GROUP, 0)], 4));
        }
    }

    #[test]
    fn what_is_no_list_says_nothing() {
        let whole = list(&[]);
        for wrong in [&b""[..], &[3, 0, 0, 0], &whole[..whole.len() - 1]] {
            assert_eq!(grants_all(wrong, 4), None);
        }
    }
}
