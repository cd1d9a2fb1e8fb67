//! Points at which the fault tests kill the process. Without the feature `crash-points` they are nothing.

/// Aborts here if `$DAXFS_CRASH_AT` names this point.
#[cfg(feature = "crash-points")]
pub fn crash_point(name: &str) {
    if std::env::var_os("DAXFS_CRASH_AT").is_some_and(|point| point == name) {
        std::process::abort();
    }
}

/// Does nothing: the feature `crash-points` is off.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_name: &str) {}
