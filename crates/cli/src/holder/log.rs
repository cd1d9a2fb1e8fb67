//! The holder's log: lines on standard error that never hold it up and never end it.
//!
//! A thread writes them. When nobody reads the pipe, its disk is full or its terminal has gone, lines are lost and
//! counted; the holder serves on.

use crate::args::Log;
use crate::output::stderr_is_terminal;
use anyhow::anyhow;
use daxfs_holder::LostLines;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for a slow reader; further ones are lost.
const WAITING_MAX: usize = 4096;

/// Writes out what waits when it is dropped, if that does not take long.
#[derive(Debug)]
pub struct Begun {
    _guard: WorkerGuard,
    /// Counts the lines that were lost.
    pub lost: LostLines,
}

/// Standard error; what it does not take is counted instead of being an error.
#[derive(Debug)]
struct Stderr {
    /// A descriptor of its own: a write that blocks must not keep the lock of the standard library's.
    file: File,
    unwritten: Arc<AtomicU64>,
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.write_all(bytes).is_err() {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Log lines go to standard error: one for each attach, refusal, load, drop, swap and takeover.
///
/// # Errors
/// When `$RUST_LOG` is wrong.
pub fn begin(form: Log) -> anyhow::Result<Begun> {
    let filter = match std::env::var_os("RUST_LOG") {
        None => EnvFilter::new("info"),
        Some(_) => EnvFilter::try_from_default_env().map_err(|e| anyhow!("RUST_LOG: {e}"))?,
    };
    let unwritten = Arc::new(AtomicU64::new(0));
    let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let stderr = Stderr { file, unwritten: Arc::clone(&unwritten) };
    // Signals are the holder's, which waits for them: the thread must not take them.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(WAITING_MAX);
    // Without a thread the library panics, and has no other way to say so.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let made = panic::catch_unwind(AssertUnwindSafe(|| builder.thread_name("log").finish(stderr)));
    panic::set_hook(hook);
    before.thread_set_mask()?;
    let (writer, guard) = made.map_err(|_| anyhow!("log: no thread can be started for it"))?;
    let dropped = writer.error_counter();
    let lost = LostLines::new(move || {
        unwritten.load(Ordering::Relaxed).saturating_add(dropped.dropped_lines() as u64)
    });
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let begun = match form {
        Log::Text => lines.with_ansi(stderr_is_terminal()).with_target(false).try_init(),
        Log::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    };
    begun.map_err(|error| anyhow!("log: {error}"))?;
    Ok(Begun { _guard: guard, lost })
}
