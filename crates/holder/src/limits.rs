//! Refusing an image before memory runs out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Bytes that images take together, held or being loaded.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    taken: Arc<AtomicU64>,
    max: Option<u64>,
}

/// Bytes counted against the budget; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    taken: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Budget {
    /// A budget of `max` bytes, or without an upper bound of its own.
    pub fn new(max: Option<u64>) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// Bytes taken now.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Counts memory that is there already, whatever the bound: a takeover or a restart must not lose it.
    pub fn adopt(&self, bytes: u64) -> Reservation {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Reservation { taken: Arc::clone(&self.taken), bytes }
    }

    /// Takes `bytes`, of which `fresh` are still to be allocated.
    ///
    /// # Errors
    /// [`Error::Limit`] when they exceed the budget, or when `fresh` exceeds what the machine or the control group has
    /// left.
    pub fn reserve(&self, bytes: u64, fresh: u64) -> Result<Reservation> {
        if fresh > 0 {
            let (have, what) = available()?;
            if fresh > have {
                return Err(Error::Limit { need: fresh, have, what });
            }
        }
        let max = self.max.unwrap_or(u64::MAX);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            taken.checked_add(bytes).filter(|sum| *sum <= max)
        });
        match taken {
            Ok(_) => Ok(Reservation { taken: Arc::clone(&self.taken), bytes }),
            Err(taken) => Err(Error::Limit {
                need: bytes,
                have: max.saturating_sub(taken),
                what: format!("--max-bytes is {max}, and {taken} are taken"),
            }),
        }
    }
}

/// Bytes that can still be allocated, and what says so: the machine, or the tightest control group above us.
fn available() -> Result<(u64, String)> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| Error::system("/proc/meminfo", e))?;
    let machine = mem_available(&text).unwrap_or(u64::MAX);
    let mut tightest = (machine, format!("the machine has {machine} bytes available"));
    if let Ok(groups) = std::fs::read_to_string("/proc/self/cgroup") {
        for directory in cgroup_directories(Path::new("/sys/fs/cgroup"), &groups) {
            if let Some((max, used)) = group_limit(&directory)
                && max.saturating_sub(used) < tightest.0
            {
                let what = format!("{} has memory.max {max} and {used} in use", directory.display());
                tightest = (max.saturating_sub(used), what);
            }
        }
    }
    Ok(tightest)
}

/// Limit of a control group, and what it uses of it for good: cached files, such as the sources of a load, count
/// against the group, but the kernel takes them away when memory is needed. Shared memory is not among them.
fn group_limit(directory: &Path) -> Option<(u64, u64)> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
    let max = read("memory.max")?.trim().parse::<u64>().ok()?;
    let current = read("memory.current")?.trim().parse::<u64>().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let bytes = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    let cached = bytes("active_file ").unwrap_or(0).saturating_add(bytes("inactive_file ").unwrap_or(0));
    Some((max, current.saturating_sub(cached)))
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The directories of our control group (version 2) and all above it.
fn cgroup_directories(root: &Path, groups: &str) -> Vec<PathBuf> {
    let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Vec::new();
    };
    let relative = Path::new(own.trim_start_matches('/'));
    relative.ancestors().map(|ancestor| root.join(ancestor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_kept_and_given_back() {
        let budget = Budget::new(Some(100));
        let first = budget.reserve(60, 0).unwrap();
        let error = budget.reserve(50, 0).unwrap_err().to_string();
        assert!(error.contains("takes 50 bytes, but 40 are left"), "{error}");
        drop(first);
        let _all = budget.reserve(100, 0).unwrap();
        let _adopted = budget.adopt(10);
        assert_eq!(budget.taken(), 110);
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        let error = Budget::new(None).reserve(1 << 50, 1 << 50).unwrap_err().to_string();
        assert!(error.contains("1125899906842624"), "{error}");
        assert!(Budget::new(None).reserve(1 << 50, 0).is_ok(), "memory that is there already needs none");
    }

    #[test]
    fn a_control_group_is_not_charged_for_cached_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(group_limit(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(group_limit(dir.path()), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(group_limit(dir.path()), Some((1000, 700)));
        write("memory.stat", "anon 50\nshmem 300\ninactive_file 100\nactive_file 250\nactive_anon 1\n");
        assert_eq!(group_limit(dir.path()), Some((1000, 350)));
    }

    #[test]
    fn parsing() {
        assert_eq!(mem_available("MemFree: 1 kB\nMemAvailable:  2048 kB\n"), Some(2 << 20));
        let directories = cgroup_directories(Path::new("/c"), "1:cpu:/x\n0::/a/b\n");
        assert_eq!(directories, ["/c/a/b", "/c/a", "/c/"].map(PathBuf::from));
        assert!(cgroup_directories(Path::new("/c"), "1:memory:/x\n").is_empty());
    }
}
