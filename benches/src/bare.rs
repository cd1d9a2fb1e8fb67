//! The floor for packing into memory: several threads read files into fresh shared memory, and nothing else.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use dmabuf::{HugePages, Mapping, Memfd, SharedBytesMut, allocate_huge};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

const HUGE: u64 = 2 << 20;
/// What goes through the second-level cache at once on the way into small pages.
const BUFFER: u64 = 256 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files to read.
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Pages of the memory.
    #[arg(long, value_enum, default_value_t = Pages::Huge)]
    pages: Pages,

    /// Threads; by default as many as there are processors.
    #[arg(long)]
    threads: Option<usize>,

    /// MiB that a thread takes at a time.
    #[arg(long, default_value_t = 4)]
    window: u64,
}

/// The fastest plain way into each kind of page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pages {
    /// read(2) straight into a mapping of 2 MiB pages
    Huge,
    /// read(2) and write(2) through a small buffer: faulting 4 KiB pages one by one costs more
    Small,
}

/// A part of a file and where it goes.
struct Piece<'f> {
    file: &'f File,
    from: u64,
    to: u64,
    len: u64,
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let started = Instant::now();
    let open = |path: &PathBuf| File::open(path).with_context(|| path.display().to_string());
    let files = args.files.iter().map(open).collect::<Result<Vec<_>>>()?;
    let (pieces, total) = cut(&files, args.window.max(2) << 20)?;
    let memfd = Memfd::create("bare", total, HugePages::No)?;
    let threads = args.threads.unwrap_or(std::thread::available_parallelism()?.get()).max(1);
    let next = AtomicUsize::new(0);
    let huge = AtomicU64::new(0);
    let worker = || -> Result<()> {
        let mut buffer = vec![0; usize::try_from(BUFFER)?];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            match args.pages {
                Pages::Huge => huge.fetch_add(piece.map(&memfd, &mut buffer)?, Ordering::Relaxed),
                Pages::Small => piece.write(&memfd, &mut buffer).map(|()| 0)?,
            };
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        worker()?;
        others.into_iter().try_for_each(|other| other.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({ "seconds": seconds, "bytes": total, "huge_bytes": huge.into_inner() }))
}

/// Cuts the files into pieces. Each file goes to a multiple of 2 MiB, as the packer places it.
fn cut(files: &[File], window: u64) -> Result<(Vec<Piece<'_>>, u64)> {
    let mut pieces = Vec::new();
    let mut total = 0;
    for file in files {
        let len = file.metadata()?.len();
        for from in (0..len).step_by(usize::try_from(window)?) {
            pieces.push(Piece { file, from, to: total + from, len: window.min(len - from) });
        }
        total = (total + len).next_multiple_of(HUGE);
    }
    Ok((pieces, total))
}

impl Piece<'_> {
    /// Reads straight into huge pages and returns how many bytes of them there are. Without contiguous memory for
    /// them it goes through `buffer`.
    fn map(&self, memfd: &Memfd, buffer: &mut [u8]) -> Result<u64> {
        let len = self.len.next_multiple_of(HUGE);
        let mut map = Mapping::read_write(memfd.as_fd(), self.to, usize::try_from(len)?)?;
        let huge = match allocate_huge(&map, 0..len) {
            Err(dmabuf::Error::Os { .. }) => 0,
            other => other?,
        };
        if huge < len {
            self.write(memfd, buffer)?;
            return Ok(huge);
        }
        let mut view = map.view_mut()?;
        let mut done = 0;
        while done < self.len {
            let mut rest: SharedBytesMut<'_> = view.get_mut(done, self.len - done)?;
            let count = rest.pread_from(self.file.as_fd(), self.from + done)?;
            ensure!(count > 0, "a file has become shorter");
            done += count as u64;
        }
        Ok(huge)
    }

    /// Reads and writes through `buffer`.
    fn write(&self, memfd: &Memfd, buffer: &mut [u8]) -> Result<()> {
        let target = File::from(memfd.as_fd().try_clone_to_owned()?);
        let mut done = 0;
        while done < self.len {
            let want = usize::try_from(BUFFER.min(self.len - done))?;
            let count = self.file.read_at(&mut buffer[..want], self.from + done)?;
            ensure!(count > 0, "a file has become shorter");
            target.write_all_at(&buffer[..count], self.to + done)?;
            done += count as u64;
        }
        Ok(())
    }
}
