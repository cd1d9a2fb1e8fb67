//! Points at which the fault tests kill the process, make it panic, or hold it up. Without the feature `crash-points`
//! they are nothing.

/// Aborts here if `$DAXFS_CRASH_AT` names this point, panics if `$DAXFS_PANIC_AT` does; waits here for the file
/// `$DAXFS_PAUSE_UNTIL` if `$DAXFS_PAUSE_AT` does.
#[cfg(feature = "crash-points")]
pub fn crash_point(name: &str) {
    let is_here = |variable| std::env::var_os(variable).is_some_and(|point| point == name);
    if is_here("DAXFS_CRASH_AT") {
        std::process::abort();
    }
    assert!(!is_here("DAXFS_PANIC_AT"), "at {name}, as asked for");
    if let Some(file) = std::env::var_os("DAXFS_PAUSE_UNTIL").filter(|_| is_here("DAXFS_PAUSE_AT")) {
        while !std::path::Path::new(&file).exists() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// Does nothing: the feature `crash-points` is off.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_name: &str) {}
