//! The progress bar, for terminals.

use crate::Progress;
use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// A bar on standard error that disappears when packing is done.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar that shows nothing yet.
    pub(super) fn new() -> Bar {
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar(bar)
    }
}

impl Progress for Bar {
    fn fetching(&self, done: u64, total: u64) {
        if total > 0 {
            self.0.set_message("fetching");
            self.0.set_length(total);
            self.0.set_position(done);
        }
    }

    fn start(&self, total: u64) {
        self.0.reset();
        self.0.set_message("packing");
        self.0.set_length(total);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
