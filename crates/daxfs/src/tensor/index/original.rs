//! The bytes that a file had in its source, where the packer moved its tensors.
//!
//! An original is the bytes that it begins with, which the index keeps, and then runs of the file in the image. The
//! runs follow each other there, so an original is never longer than its file and what the index keeps of it, and
//! reading all originals of an image takes no longer than reading the image.
//!
//! An original stands for its file in comparisons with a source and with published sums. So it is one only where both
//! have the same tensors in the same bytes: else an image could have one file and show another.

use std::collections::HashSet;
use std::sync::Arc;

use super::record::{Section, place};
use super::verify::same;
use super::{Index, IndexedFile};
use crate::format::index as raw;
use crate::tensor::container::{Beginning, header_as, read_exact};
use crate::tensor::header::Header;
use crate::tensor::{ContainerKind, Dtype, TensorError, TensorInfo};
use crate::{Error, File, Result, SharedBytes};

/// Where the bytes of an original lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedOriginal {
    /// Bytes of the original.
    pub size: u64,
    /// What its tensors were moved to multiples of.
    pub alignment: u64,
    /// BLAKE3 of the original, if the packer computed it.
    pub hash: Option<[u8; 32]>,
    /// Where its first bytes lie in the index, and how many they are.
    pub(super) start: (u64, u64),
    /// What follows: first byte in the original, first byte in the file, and how many.
    runs: Vec<(u64, u64, u64)>,
}

impl IndexedOriginal {
    /// How many bytes it begins with that the index keeps.
    pub(crate) fn start_len(&self) -> u64 {
        self.start.1
    }

    /// Where the bytes from `offset` on lie in the file, and how many follow each other there. `offset` lies behind the
    /// first bytes and before the end.
    pub(crate) fn run(&self, offset: u64) -> Option<(u64, u64)> {
        let at = self.runs.partition_point(|(from, _, len)| from + len <= offset);
        let (from, in_file, len) = *self.runs.get(at)?;
        let skip = offset.checked_sub(from)?;
        Some((in_file + skip, len - skip))
    }

    /// Whether the bytes of a tensor of the file are the original's, all of them.
    fn has(&self, info: &TensorInfo) -> bool {
        let at = self.runs.partition_point(|(_, in_file, len)| in_file + len <= info.offset);
        let end = info.offset.saturating_add(info.size);
        self.runs.get(at).is_some_and(|(_, in_file, len)| *in_file <= info.offset && end <= in_file + len)
    }
}

/// The header of a file in the container that its record takes it for.
fn header_by(file: &File, record: &IndexedFile) -> Result<(ContainerKind, Arc<Header>)> {
    let kind = match ContainerKind::from_code(record.container) {
        Some(kind) => kind,
        None => ContainerKind::of_file(file)?,
    };
    Ok((kind, header_as(kind, file)?))
}

/// Checks that what originals refer to follows each other, so that they share nothing and are not longer than it.
pub(super) fn check(
    view: SharedBytes<'_>,
    originals: &Section<raw::OriginalRecord>,
    runs: u32,
    bytes: u64,
) -> Result<()> {
    let (mut run, mut start) = (0u32, 0u64);
    for number in 0..originals.count() {
        let record = originals.read(view, number)?;
        let fault = |rule, found: String| -> Error {
            TensorError::Index { place: place("original", number), rule, found }.into()
        };
        let (first, from) = (record.first_run.get(), record.start_offset.get());
        if (first, from) != (run, start) {
            let found = format!("run {first} and byte {from}, {run} and {start} come next");
            return Err(fault("it must begin where the one before it ends", found));
        }
        let ends = first.checked_add(record.run_count.get()).zip(from.checked_add(record.start_len.get()));
        match ends {
            Some((last, end)) if last <= runs && end <= bytes => (run, start) = (last, end),
            _ => {
                let found = format!("{} runs, {} bytes", record.run_count, record.start_len);
                return Err(fault("its runs and bytes must be in the index", found));
            }
        }
    }
    Ok(())
}

impl Index {
    /// The original of a file; `None` for one that lies in the image as it is.
    ///
    /// # Errors
    /// [`TensorError::Index`] when its runs are not stretches of the file in their order, or not as long as it.
    pub fn original(&self, file: &IndexedFile) -> Result<Option<IndexedOriginal>> {
        let Some(number) = file.original else { return Ok(None) };
        let view = self.view()?;
        let fault = |rule, found: String| -> Error {
            TensorError::Index { place: place("original", number), rule, found }.into()
        };
        if number >= self.originals.count() {
            let found = format!("{number} of {}", self.originals.count());
            return Err(fault("it must be in the index", found));
        }
        let record = self.originals.read(view, number)?;
        if record.file.get() != file.number {
            let found = format!("{}, reached from {}", record.file, file.number);
            return Err(fault("it must name the file record that names it", found));
        }
        let (size, start) = (record.size.get(), record.start_len.get());
        let (mut at, mut end) = (start, 0u64);
        let mut runs = Vec::new();
        // In range: all of them were looked at when the index was opened.
        for run in record.first_run.get()..record.first_run.get().saturating_add(record.run_count.get()) {
            let run = self.runs.read(view, run)?;
            let (offset, len) = (run.offset.get(), run.len.get());
            let next = offset.checked_add(len).filter(|next| len > 0 && offset >= end && *next <= file.size);
            let Some(next) = next else {
                let found =
                    format!("{len:#x} bytes from {offset:#x} on, behind {end:#x} of {:#x}", file.size);
                return Err(fault(
                    "its runs must be stretches of the file in their order, none empty",
                    found,
                ));
            };
            runs.push((at, offset, len));
            // No overflow: all runs together are not longer than the file, and the first bytes are in the index.
            at += len;
            end = next;
        }
        if at != size {
            return Err(fault("it must be as long as its parts", format!("{size:#x}, parts of {at:#x}")));
        }
        let hash = (record.flags.get() & raw::ORIGINAL_HASH != 0).then_some(record.hash);
        let start = (record.start_offset.get(), start);
        Ok(Some(IndexedOriginal { size, alignment: record.alignment.get(), hash, start, runs }))
    }

    /// The bytes that an original begins with.
    pub(crate) fn original_start(&self, original: &IndexedOriginal) -> Result<SharedBytes<'_>> {
        let (offset, len) = original.start;
        Ok(self.view()?.get(self.bytes.start.saturating_add(offset), len)?)
    }

    /// Proves that an original and its file have the same tensors: names, types, shapes, metadata, and bytes, which lie in
    /// the runs. Reads both headers.
    ///
    /// # Errors
    /// [`TensorError::IndexMismatch`] with the first difference, and what is wrong with a header.
    pub(crate) fn check_original(
        &self,
        file: &File,
        record: &IndexedFile,
        original: &IndexedOriginal,
    ) -> Result<()> {
        let (kind, header) = header_by(file, record)?;
        let source = self.original_header(file, kind, original)?;
        let metadata = if source.metadata() == header.metadata() { "the same" } else { "other" };
        same(file, || "metadata of the original".into(), &metadata, &"the same")?;
        same(file, || "number of the original's tensors".into(), &source.len(), &header.len())?;
        for (was, is) in source.visible().zip(header.visible()) {
            let what = |what: &str| format!("{what} of tensor {:?} of the original", is.name);
            same(file, || what("name"), &was.name, &is.name)?;
            same(file, || what("data type"), &was.dtype, &is.dtype)?;
            same(file, || what("shape"), &was.shape, &is.shape)?;
            if is.size > 0 {
                let run = original.run(was.offset).filter(|(_, len)| *len >= is.size);
                same(file, || what("place"), &run.map(|(at, _)| at), &Some(is.offset))?;
            }
        }
        Ok(())
    }

    /// The header that the original begins with: all that the index keeps of it.
    fn original_header(
        &self,
        file: &File,
        kind: ContainerKind,
        original: &IndexedOriginal,
    ) -> Result<Header> {
        let fault = |fault: TensorError| -> Error { fault.in_file(&file.path()).into() };
        let len = original.start_len();
        file.image().charge("headers of originals", len)?;
        let bytes = self.original_start(original)?.to_vec();
        let header = match kind.parse(&Beginning { bytes: &bytes, len: original.size }) {
            Err(Error::Tensor(error)) => Err(fault(error)),
            // It reads behind what is kept.
            Err(Error::OutsideFile { .. }) => Err(fault(TensorError::TooShort { len })),
            parsed => parsed,
        }?;
        same(file, || "bytes of the original's header".into(), &len, &header.data_start())?;
        Ok(header)
    }

    /// Proves that what a file has beside its original is padding: fillers of zeros.
    pub(super) fn check_padding(
        &self,
        file: &File,
        record: &IndexedFile,
        original: &IndexedOriginal,
    ) -> Result<()> {
        let (_, header) = header_by(file, record)?;
        let visible: HashSet<&str> = header.visible().map(|info| info.name.as_str()).collect();
        let mut buffer = vec![0; 64 << 10];
        for filler in header.all().iter().filter(|info| !visible.contains(info.name.as_str())) {
            if original.has(filler) {
                continue;
            }
            let what = |what: &str| format!("{what} of the filler {:?}", filler.name);
            same(file, || what("data type"), &filler.dtype, &Dtype::U8)?;
            let (mut at, end) = (filler.offset, filler.offset.saturating_add(filler.size));
            while at < end {
                let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let (part, _) = buffer.split_at_mut(len);
                read_exact(file, at, part)?;
                same(
                    file,
                    || what("bytes that are not 0"),
                    &part.iter().filter(|byte| **byte != 0).count(),
                    &0,
                )?;
                at += len as u64;
            }
        }
        Ok(())
    }
}
