//! Reads one archive: its members go to whoever applies them, and their bytes to the spool, unless they lie in the file
//! as they are.

use crate::decode::{Compression, Unpacked};
use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::input::{Opened, Shared};
use crate::spool::{Spool, Writer};
use crate::tar::{Kind, Map, Member, Reader};
use crate::tree::{Content, Record};
use std::sync::Arc;

/// Bytes that are copied at a time.
const STEP: usize = 256 << 10;

/// Number of the spool among the sources.
pub(crate) const SPOOL: u32 = 0;

/// Where an archive lies, and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    pub(crate) opened: Opened,
    /// Its first byte in that file, and its bytes; `None`: all of it, or a pipe.
    pub(crate) part: Option<(u64, u64)>,
    /// Number of the file among the sources.
    pub(crate) source: u32,
    /// Messages name it so.
    pub(crate) place: String,
    /// Digest of the bytes in the file, where one is known.
    pub(crate) stored: Option<Digest>,
    /// Digest of what they are decompressed to.
    pub(crate) unpacked: Option<Digest>,
}

impl Archive {
    /// Reads the archive from front to back and gives each member to `each`.
    ///
    /// # Errors
    /// What is wrong with it, also behind the last member: its digests are compared when all of it was read. And what
    /// `each` returns.
    pub(crate) fn read(
        &self,
        spool: &Arc<Spool>,
        shared: Shared<'_>,
        mut each: impl FnMut(Record) -> Result<()>,
    ) -> Result<()> {
        let mut raw = match self.part {
            Some((offset, len)) => self.opened.part(offset, len, shared),
            None => self.opened.whole(shared),
        };
        let start = raw.peek::<{ Compression::START }>()?;
        let compression = Compression::of(&start, &self.place)?;
        // Without compression the two are digests of the same bytes.
        let is_same =
            compression == Compression::None && self.stored.is_some() && self.stored == self.unpacked;
        let unpacked = self.unpacked.as_ref().filter(|_| !is_same);
        let hashers = (self.stored.as_ref().map(Digest::hasher), unpacked.map(Digest::hasher));
        let source = Unpacked::new(raw, compression, hashers, &self.place, shared);
        let mut reader = Reader::new(source, shared);
        let mut contents = Contents {
            source: self.source,
            place: &self.place,
            writer: spool.writer(),
            buffer: Vec::new(),
            shared,
        };
        while let Some(member) = reader.next()? {
            let content = match member.kind {
                Kind::File => contents.place(&member, &mut reader)?,
                _ => Content::default(),
            };
            let Member { name, kind, mode, uid, gid, mtime, link, attributes, .. } = member;
            let (name, link, attributes) = (name.into(), link.into(), attributes.into());
            each(Record { name, kind, mode, uid, gid, mtime, link, attributes, content })?;
        }
        contents.writer.flush()?;
        reader.into_source().finish(self.stored.as_ref(), unpacked)
    }
}

/// Puts the bytes of members where they can be read again.
struct Contents<'a> {
    source: u32,
    place: &'a str,
    writer: Writer,
    buffer: Vec<u8>,
    shared: Shared<'a>,
}

impl Contents<'_> {
    fn place(&mut self, member: &Member, reader: &mut Reader<'_>) -> Result<Content> {
        let len = member.map.as_ref().map_or(member.stored, |map| map.len);
        self.shared.budget.contents(len, self.place)?;
        if len == 0 {
            reader.skip()?;
            return Ok(Content::default());
        }
        if member.map.is_none()
            && let Some(offset) = reader.source().in_file()
        {
            reader.skip()?;
            return Ok(Content { source: self.source, offset, len });
        }
        let offset = self.writer.begin(len)?;
        match &member.map {
            None => self.copy(reader, member.stored)?,
            Some(Map { len, stretches }) => {
                let mut at = 0_u64;
                for &(start, count) in stretches {
                    self.writer.hole(start.saturating_sub(at))?;
                    self.copy(reader, count)?;
                    at = start.saturating_add(count);
                }
                self.writer.hole(len.saturating_sub(at))?;
            }
        }
        Ok(Content { source: SPOOL, offset, len })
    }

    fn copy(&mut self, reader: &mut Reader<'_>, mut count: u64) -> Result<()> {
        self.buffer.resize(STEP, 0);
        while count > 0 {
            let len = usize::try_from(count).unwrap_or(STEP).min(STEP);
            match reader.read(self.buffer.get_mut(..len).unwrap_or_default())? {
                0 => return Err(reader.source().truncated("a file")),
                read => {
                    self.writer.put(self.buffer.get(..read).unwrap_or_default())?;
                    count = count.saturating_sub(read as u64);
                }
            }
        }
        Ok(())
    }
}

/// Copies all of an input that cannot be read twice into the spool, decompressed, so that it can. Nobody else
/// writes there meanwhile.
pub(crate) fn spooled(opened: &Opened, spool: &Arc<Spool>, shared: Shared<'_>) -> Result<(u64, u64)> {
    let place = opened.path.display().to_string();
    let mut raw = opened.whole(shared);
    let start = raw.peek::<{ Compression::START }>()?;
    let compression = Compression::of(&start, &place)?;
    let mut source = Unpacked::new(raw, compression, (None, None), &place, shared);
    let mut buffer = vec![0; STEP];
    let offset = spool.append(&[])?;
    let mut len = 0_u64;
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok((offset, len)),
            count => {
                spool.append(buffer.get(..count).unwrap_or_default())?;
                len = len.saturating_add(count as u64);
            }
        }
    }
}

/// The SHA-256 of a document.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}
