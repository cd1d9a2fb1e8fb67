//! The thread that sees when another image takes the place of the one that is shown.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::files::State;
use crate::shown::{ROOT, Shown};

/// How often it looks. Reads notice by themselves that memory was written anew.
const EVERY: Duration = Duration::from_secs(1);

/// Looks until the mount is gone: until `state` is, or `ended` says so.
pub fn watch(state: &Weak<State>, notifier: &Notifier, follow: bool, report: fn(&str), ended: &AtomicBool) {
    let mut last = None;
    while !ended.load(Ordering::Relaxed) {
        let Some(state) = state.upgrade() else { return };
        state.wait(EVERY);
        let shown = state.shown();
        if !shown.has_changed(follow) {
            continue;
        }
        match shown.next(follow) {
            Ok(next) => {
                let next = Arc::new(next);
                state.show(next.clone());
                drop_cached(notifier, &shown, &next);
                last = None;
            }
            // Said once, and tried again: an image that is being written is there soon.
            Err(error) => {
                let text = error.to_string();
                if last.as_ref() != Some(&text) {
                    report(&format!("what is mounted has changed, and cannot be opened again: {text}"));
                    last = Some(text);
                }
            }
        }
    }
}

/// Has the kernel forget what it knows of an image: names in the root, below which no path leads then, and attributes
/// and pages of all inodes.
fn drop_cached(notifier: &Notifier, old: &Shown, new: &Shown) {
    // What the kernel does not know, it says so of; and a mount that has gone needs none of this.
    for shown in [old, new] {
        for entry in shown.image().root().children() {
            let _ = notifier.inval_entry(INodeNo(ROOT), OsStr::from_bytes(entry.name()));
        }
    }
    for id in old.ids() {
        let _ = notifier.inval_inode(INodeNo(id), 0, 0);
    }
}
