//! Reads tar archives, member by member, from front to back: V7, POSIX with its records, GNU with its long names, and
//! sparse files of all forms.
//!
//! Where readers of archives disagree, this one does as Go's `archive/tar` does, by which container engines read
//! layers; what that one refuses is refused.

mod header;
mod pax;
mod sparse;

pub use pax::{Attribute, Time};
pub(crate) use sparse::Map;

use crate::decode::Unpacked;
use crate::error::{Result, shown};
use crate::input::Shared;
use crate::limits::{FIXED, Limits, within};
use header::{BLOCK, Placed};
use pax::Records;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// A further name of an earlier member.
    HardLink,
    Symlink,
    Character,
    Block,
    Fifo,
}

/// A member of an archive. Its bytes, if it has any, are read next.
#[derive(Debug)]
pub(crate) struct Member {
    /// As the archive has it: not checked, and perhaps with a root, with `..`, or empty.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions: twelve bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Target of a link, as it stands there.
    pub(crate) link: Vec<u8>,
    pub(crate) attributes: Vec<Attribute>,
    /// Bytes that the archive has of it, in front of the next member.
    pub(crate) stored: u64,
    /// Where they belong in the file, when that has holes.
    pub(crate) map: Option<Map>,
}

/// An archive that is being read.
pub(crate) struct Reader<'a> {
    source: Unpacked<'a>,
    shared: Shared<'a>,
    /// Bytes of the last member that were not read.
    left: u64,
    /// Bytes behind them, up to the next header.
    padding: u64,
    ended: bool,
}

/// What was found in front of a member's own header.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Records>,
    /// Bytes of all of them.
    len: u64,
}

impl<'a> Reader<'a> {
    /// An archive that begins with the next byte of `source`.
    pub(crate) fn new(source: Unpacked<'a>, shared: Shared<'a>) -> Reader<'a> {
        Reader { source, shared, left: 0, padding: 0, ended: false }
    }

    /// The bytes of the archive.
    pub(crate) fn source(&self) -> &Unpacked<'a> {
        &self.source
    }

    /// The bytes of the archive, of which no more were read than the last member's.
    pub(crate) fn into_source(self) -> Unpacked<'a> {
        self.source
    }

    /// Reads bytes of the last member; 0 behind the last one.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let len = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        match self.source.read(buf.get_mut(..len).unwrap_or_default())? {
            0 => Err(self.source.truncated("a file")),
            count => {
                self.left = self.left.saturating_sub(count as u64);
                Ok(count)
            }
        }
    }

    /// Passes over what is left of the last member.
    pub(crate) fn skip(&mut self) -> Result<()> {
        let left = std::mem::take(&mut self.left);
        self.source.skip(left, "a file")
    }

    /// Goes on to the next member. `None`: there are no more.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        let mut before = Extensions::default();
        loop {
            let Some(placed) = self.header(before.len > 0)? else { return Ok(None) };
            let size = placed.size()?;
            match placed.header.typeflag {
                b'L' => before.name = Some(self.long(size, &mut before.len)?),
                b'K' => before.link = Some(self.long(size, &mut before.len)?),
                b'x' | b'X' => {
                    let bytes = self.extension(size, &mut before.len)?;
                    before.records = Some(Records::read(&bytes, &placed)?);
                }
                // Records for all that follows, and the name of the volume: container engines pass over them.
                b'g' | b'V' => {
                    let mut len = 0;
                    self.extension(size, &mut len)?;
                }
                _ => return self.member(&placed, size, before).map(Some),
            }
        }
    }

    /// The next header, behind what is left of the last member. `None`: the archive ends here.
    fn header(&mut self, is_expected: bool) -> Result<Option<Placed>> {
        self.skip()?;
        let padding = std::mem::take(&mut self.padding);
        self.source.skip(padding, "padding")?;
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let offset = self.source.position();
        let placed = match self.source.read_exact(&mut block, "a header")? {
            true => Placed::new(&block, offset, self.source.place())?,
            false => None,
        };
        if placed.is_none() {
            self.ended = true;
            if is_expected {
                return Err(self.source.truncated("the headers of a member"));
            }
            // Archives end with two such blocks. A single one that is followed by something else is none.
            let offset = self.source.position();
            if self.source.read_exact(&mut block, "the end")?
                && let Some(placed) = Placed::new(&block, offset, self.source.place())?
            {
                let rule = "behind a block of zeros there must be another one, or nothing";
                return Err(placed.wrong(rule, "a header"));
            }
        }
        Ok(placed)
    }

    /// The bytes of an extension header.
    fn extension(&mut self, size: u64, total: &mut u64) -> Result<Vec<u8>> {
        *total = total.saturating_add(size).saturating_add(BLOCK as u64);
        within(*total, Limits::EXTENSION, self.source.place(), "bytes of headers of one member", FIXED)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        if !bytes.is_empty() && !self.source.read_exact(&mut bytes, "an extended header")? {
            return Err(self.source.truncated("an extended header"));
        }
        self.padding = padding(size);
        Ok(bytes)
    }

    /// A name in an extension header of GNU's.
    fn long(&mut self, size: u64, total: &mut u64) -> Result<Vec<u8>> {
        let mut name = self.extension(size, total)?;
        name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    /// The member that a header and what stood in front of it describe.
    fn member(&mut self, placed: &Placed, size: u64, before: Extensions) -> Result<Member> {
        self.shared.budget.member(self.source.place())?;
        let Extensions { name, link, records, .. } = before;
        let mut records = records.unwrap_or_default();
        let mut name = name.or_else(|| records.path.take()).unwrap_or_else(|| placed.name());
        if let Some(real) = records.sparse.name.take() {
            name = real;
        }
        let link = link.or_else(|| records.link.take()).unwrap_or_else(|| placed.link());
        for text in [&name, &link] {
            if text.contains(&0) {
                return Err(placed.wrong("a name must hold no NUL", format!("\"{}\"", shown(text))));
            }
        }
        let kind = match placed.header.typeflag {
            // Before there were directories, a slash at the end made one.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let rule = "a member must be a file, a directory, a link, a device or a FIFO";
                return Err(
                    placed.wrong(rule, format!("type '{}' of \"{}\"", other.escape_ascii(), shown(&name)))
                );
            }
        };
        // The size of what has no bytes means nothing, as in Go.
        let stored = if kind == Kind::File { records.size.unwrap_or(size) } else { 0 };
        self.left = stored;
        self.padding = padding(stored);
        let map = match placed.header.typeflag {
            _ if kind != Kind::File => None,
            b'S' => Some(sparse::old(placed, stored, &mut self.source, self.shared.budget)?),
            _ => {
                let found = records.sparse.finish(stored, placed, &mut self.source, self.shared.budget)?;
                found.map(|(map, left)| {
                    self.left = left;
                    map
                })
            }
        };
        self.shared.budget.attributes(attribute_bytes(&records.attributes), self.source.place())?;
        Ok(Member {
            kind,
            mode: placed.mode()?,
            uid: records.uid.map_or_else(|| placed.uid(), Ok)?,
            gid: records.gid.map_or_else(|| placed.gid(), Ok)?,
            mtime: match records.mtime {
                Some(time) => time,
                None => Time { seconds: placed.mtime()?, nanoseconds: 0 },
            },
            name,
            link,
            attributes: records.attributes,
            stored: self.left,
            map,
        })
    }
}

fn attribute_bytes(attributes: &[Attribute]) -> u64 {
    attributes.iter().fold(0, |sum, (name, value)| {
        sum.saturating_add(name.len() as u64).saturating_add(value.len() as u64).saturating_add(64)
    })
}

/// Bytes between the end of `size` bytes and the next header.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() & (BLOCK as u64).saturating_sub(1)
}
