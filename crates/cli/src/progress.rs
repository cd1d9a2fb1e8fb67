//! A progress bar on a terminal, nothing elsewhere.

use crate::output::stderr_is_terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress through a known number of bytes. The bar is drawn on standard error and wiped at the end.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for `bytes`, labelled `verb`; hidden when `quiet` or when standard error is no terminal.
    pub fn new(verb: &'static str, bytes: u64, quiet: bool) -> Self {
        let target = if quiet || !stderr_is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(verb);
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// Another hand on the same bar.
    pub fn another(&self) -> Self {
        Self(self.0.clone())
    }

    /// Takes the bar off the terminal, also for other hands.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }

    /// Counts `bytes` as done.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Says how much is done of how much; nothing is known of a `total` of 0.
    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done.min(total));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
