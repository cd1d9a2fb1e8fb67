//! Standard output and standard error: buffered, locked, and never a panic when the reader goes away.

use crate::text::escape_message;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

/// How a verb ended; the exit status of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All went well.
    Clean,
    /// `verify` or `diff` found differences.
    Differences,
    /// Errors were reported on standard error.
    Failed,
    /// A command was run, and this is its exit status.
    Status(u8),
}

impl From<Outcome> for u8 {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Clean => 0,
            Outcome::Differences => 1,
            Outcome::Failed => 2,
            Outcome::Status(status) => status,
        }
    }
}

/// The locked standard output with a buffer, which remembers when its reader has left.
#[derive(Debug)]
pub struct Output {
    writer: BufWriter<Watched>,
}

#[derive(Debug)]
struct Watched {
    stdout: StdoutLock<'static>,
    reader_left: bool,
}

impl Watched {
    fn watch<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            self.reader_left |= error.kind() == io::ErrorKind::BrokenPipe;
            io::Error::new(error.kind(), format!("standard output: {error}"))
        })
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.stdout.write(bytes);
        self.watch(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.stdout.flush();
        self.watch(result)
    }
}

impl Output {
    /// Locks standard output for the rest of the command.
    pub fn stdout() -> Self {
        let watched = Watched { stdout: io::stdout().lock(), reader_left: false };
        Self { writer: BufWriter::with_capacity(64 << 10, watched) }
    }

    /// True when a write failed because nobody reads the pipe any more.
    pub fn reader_left(&self) -> bool {
        self.writer.get_ref().reader_left
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// What the operating system says of standard output.
    pub fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes an error with its causes as one line to standard error.
pub fn report(error: &anyhow::Error) {
    // When standard error is gone there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "daxfs: {}", one_line(error));
}

/// Writes a remark that is no error to standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "daxfs: {}", escape_message(text));
}

/// True when a progress bar makes sense.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// The error and its causes, joined by colons. A cause that its error's text already holds is left out.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    escape_message(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_once() {
        let cause = io::Error::other("disk on fire");
        let error = anyhow::Error::new(cause).context("write: disk on fire").context("a\nb");
        assert_eq!(one_line(&error), "a\\nb: write: disk on fire");
        let error = anyhow::Error::new(io::Error::other("why")).context("no holder: why; start one");
        assert_eq!(one_line(&error), "no holder: why; start one");
    }

    #[test]
    fn exit_status() {
        assert_eq!(
            [Outcome::Clean, Outcome::Differences, Outcome::Failed, Outcome::Status(137)].map(u8::from),
            [0, 1, 2, 137]
        );
    }
}
