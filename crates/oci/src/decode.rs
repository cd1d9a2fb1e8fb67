//! The bytes of an archive, whatever they are compressed with: counted, hashed, and bounded by what goes in.

use crate::digest::{Digest, Hashed, Hasher};
use crate::error::{Error, Result};
use crate::input::{Fault, Raw, Shared};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::BlockDecodingStrategy;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use std::io::{self, BufRead, BufReader, Read};

/// Bytes that are asked of a file at a time.
const BUFFER: usize = 256 << 10;
/// Bytes that are thrown away at a time.
const SKIPPED: usize = 64 << 10;

/// What archives are compressed with, by the bytes that they begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Bytes that tell.
    pub(crate) const START: usize = 6;

    /// Judges by the first bytes. No tar archive begins so: names do not.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is compressed in another way.
    pub(crate) fn of(start: &[u8], place: &str) -> Result<Compression> {
        let other = |name: &str, tool: &str| {
            let what = format!(
                "is compressed with {name}, which is not taken (in a pipe it is: {tool} -dc FILE | daxfs-pack tar:-)"
            );
            Err(Error::Unsupported { place: place.to_owned(), what })
        };
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            // A frame to skip, as in front of what is cut into chunks.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => other("xz", "xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => other("bzip2", "bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => other("lz4", "lz4"),
            _ => Ok(Compression::None),
        }
    }
}

type Source<'a> = BufReader<Hashed<Raw<'a>>>;

enum Decoder<'a> {
    None(Box<Source<'a>>),
    Gzip(Box<MultiGzDecoder<Source<'a>>>),
    Zstd(Box<Zstd<'a>>),
}

/// The frames of a zstd stream, one after the other.
struct Zstd<'a> {
    source: Source<'a>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl Zstd<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if self.source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.decoder.init(&mut self.source) {
                    Ok(()) => self.in_frame = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length,
                        ..
                    })) => {
                        let length = u64::from(length);
                        if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        continue;
                    }
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                }
            }
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                continue;
            }
            let count = Read::read(&mut self.decoder, buf)?;
            if count > 0 {
                return Ok(count);
            }
            if self.decoder.is_finished() {
                self.in_frame = false;
                let wanted = self.decoder.get_checksum_from_data();
                if wanted.is_some() && wanted != self.decoder.get_calculated_checksum() {
                    let why = "the checksum of a frame is wrong";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
        }
    }
}

/// The bytes of an archive.
pub(crate) struct Unpacked<'a> {
    decoder: Decoder<'a>,
    /// Of the decompressed bytes.
    hasher: Option<Hasher>,
    /// Decompressed bytes that were read or passed over.
    position: u64,
    place: String,
    shared: Shared<'a>,
    fault: Fault,
}

impl<'a> Unpacked<'a> {
    /// The bytes that `raw` becomes, hashed by `stored` as they are read and by `unpacked` as they come out.
    pub(crate) fn new(
        raw: Raw<'a>,
        compression: Compression,
        hashers: (Option<Hasher>, Option<Hasher>),
        place: &str,
        shared: Shared<'a>,
    ) -> Unpacked<'a> {
        let fault = raw.fault();
        let (stored, unpacked) = hashers;
        let source = BufReader::with_capacity(BUFFER, Hashed::new(raw, stored));
        let decoder = match compression {
            Compression::None => Decoder::None(Box::new(source)),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => {
                Decoder::Zstd(Box::new(Zstd { source, decoder: FrameDecoder::new(), in_frame: false }))
            }
        };
        Unpacked { decoder, hasher: unpacked, position: 0, place: place.to_owned(), shared, fault }
    }

    /// Messages name the archive so.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Decompressed bytes before the next one.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Where the next byte lies in the file, when it lies there as it comes out.
    pub(crate) fn in_file(&self) -> Option<u64> {
        match &self.decoder {
            Decoder::None(source) => {
                let read = source.get_ref().get_ref().position()?;
                read.checked_sub(source.buffer().len() as u64)
            }
            _ => None,
        }
    }

    /// Reads some bytes; 0 at the end.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let count = loop {
            let count = match &mut self.decoder {
                Decoder::None(source) => source.read(buf),
                Decoder::Gzip(decoder) => decoder.read(buf),
                Decoder::Zstd(decoder) => decoder.read(buf),
            };
            match count {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fault.take().unwrap_or_else(|| failed(&self.place, &error))),
            }
        };
        if let (Some(hasher), Some(bytes)) = (&mut self.hasher, buf.get(..count)) {
            hasher.update(bytes);
        }
        self.advance(count as u64)?;
        Ok(count)
    }

    /// Fills `buf`. `false`: there was nothing any more.
    ///
    /// # Errors
    /// [`Error::Truncated`] where there was something, and not enough.
    pub(crate) fn read_exact(&mut self, buf: &mut [u8], inside: &'static str) -> Result<bool> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read(rest)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(self.truncated(inside)),
                count => filled = filled.saturating_add(count),
            }
        }
        Ok(true)
    }

    /// Passes over bytes.
    pub(crate) fn skip(&mut self, mut count: u64, inside: &'static str) -> Result<()> {
        if let Decoder::None(source) = &mut self.decoder
            && self.hasher.is_none()
            && source.get_ref().is_plain()
            && source.get_ref().get_ref().position().is_some()
        {
            let buffered = (source.buffer().len() as u64).min(count);
            source.consume(usize::try_from(buffered).unwrap_or(usize::MAX));
            self.advance(buffered)?;
            count = count.saturating_sub(buffered);
            let Decoder::None(source) = &mut self.decoder else { return Ok(()) };
            if !source.get_mut().get_mut().pass(count) {
                return Err(self.truncated(inside));
            }
            return self.advance(count);
        }
        let mut scrap = vec![0; SKIPPED.min(usize::try_from(count).unwrap_or(SKIPPED))];
        while count > 0 {
            let len = usize::try_from(count).unwrap_or(SKIPPED).min(scrap.len());
            match self.read(scrap.get_mut(..len).unwrap_or_default())? {
                0 => return Err(self.truncated(inside)),
                read => count = count.saturating_sub(read as u64),
            }
        }
        Ok(())
    }

    /// Reads what is left, and compares what was read with the digests of the stored bytes and of what came out.
    pub(crate) fn finish(mut self, stored: Option<&Digest>, unpacked: Option<&Digest>) -> Result<()> {
        if stored.is_some() || unpacked.is_some() || !matches!(self.decoder, Decoder::None(_)) {
            let mut scrap = vec![0; SKIPPED];
            while self.read(&mut scrap)? > 0 {}
        }
        let source = match self.decoder {
            Decoder::None(source) => *source,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.source,
        };
        let (_, hasher) = source.into_inner().into_parts();
        if let (Some(digest), Some(hasher)) = (stored, hasher) {
            digest.check(hasher, &self.place)?;
        }
        if let (Some(digest), Some(hasher)) = (unpacked, self.hasher) {
            digest.check(hasher, &format!("{}, decompressed", self.place))?;
        }
        Ok(())
    }

    pub(crate) fn truncated(&self, inside: &'static str) -> Error {
        Error::Truncated { place: self.place.clone(), offset: self.position, inside }
    }

    fn advance(&mut self, count: u64) -> Result<()> {
        self.position = self.position.saturating_add(count);
        self.shared.budget.unpacked(count, &self.place)
    }
}

/// What a decoder says of its input.
fn failed(place: &str, error: &io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    };
    Error::Compression { place: place.to_owned(), why }
}
