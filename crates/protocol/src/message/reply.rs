//! What the holder answers.

use super::info::{DeviceCopy, ImageInfo};
use super::verb::reply as verb;
use crate::wire::{Builder, Fields, Frame, WireError};

pub(super) fn write_ids(builder: &mut Builder, ids: &[u32]) {
    builder.u32(u32::try_from(ids.len()).unwrap_or(u32::MAX));
    for id in ids {
        builder.u32(*id);
    }
}

pub(super) fn read_ids(fields: &mut Fields<'_>) -> Result<Vec<u32>, WireError> {
    // The body bounds how many can be read; the count allocates nothing.
    (0..fields.u32("ids")?).map(|_| fields.u32("id")).collect()
}

/// Why the holder refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// No image of that name.
    NoSuchName,
    /// The name is taken.
    NameTaken,
    /// The content hash is another one, or the image has none.
    OtherContent,
    /// The caller may not do that.
    NotAllowed,
    /// A limit of memory or number is reached.
    Limit,
    /// The holder could not do it; the text says why.
    Failed,
    /// The request was not understood.
    BadRequest,
    /// The holder is busy with a takeover or is ending.
    Busy,
    /// The holder does not read directories with the rights of this client: it is to pack and to send sealed memory.
    ClientPacks,
    /// The holder holds what is signed only, and this is not.
    NotSigned,
}

impl Refusal {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 10] = [
        Self::NoSuchName,
        Self::NameTaken,
        Self::OtherContent,
        Self::NotAllowed,
        Self::Limit,
        Self::Failed,
        Self::BadRequest,
        Self::Busy,
        Self::ClientPacks,
        Self::NotSigned,
    ];

    fn code(self) -> u32 {
        match self {
            Self::NoSuchName => 1,
            Self::NameTaken => 2,
            Self::OtherContent => 3,
            Self::NotAllowed => 4,
            Self::Limit => 5,
            Self::Failed => 6,
            Self::BadRequest => 7,
            Self::Busy => 8,
            Self::ClientPacks => 9,
            Self::NotSigned => 10,
        }
    }

    /// A short name, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSuchName => "no_such_name",
            Self::NameTaken => "name_taken",
            Self::OtherContent => "other_content",
            Self::NotAllowed => "not_allowed",
            Self::Limit => "limit",
            Self::Failed => "failed",
            Self::BadRequest => "bad_request",
            Self::Busy => "busy",
            Self::ClientPacks => "client_packs",
            Self::NotSigned => "not_signed",
        }
    }
}

/// What the holder answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Done.
    Ok,
    /// Refused.
    Error {
        /// Why, for programs.
        refusal: Refusal,
        /// Why, for people.
        text: String,
    },
    /// The image; its descriptors come with the message, one for each role.
    Attached(ImageInfo),
    /// What a name means now.
    Current {
        /// Generation of the image.
        generation: u64,
        /// Inode number of its first descriptor: generations begin anew with a holder that inherits nothing.
        inode: u64,
    },
    /// Some of the images; ask again after the last name while there are more.
    Page {
        /// In order of names.
        images: Vec<ImageInfo>,
        /// True when others follow.
        more: bool,
    },
    /// A load goes on.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes in all; 0 while nothing is known of them, or the load queues.
        total: u64,
    },
    /// A load goes on, and what it packs has something that its user may want to mend. Before the end of the load.
    Warning {
        /// What it is, for people.
        text: String,
    },
    /// A load or swap is complete.
    Loaded(ImageInfo),
    /// The holder is well.
    Health {
        /// Its process.
        pid: u32,
        /// Images that it holds.
        images: u64,
        /// Bytes of memory that it holds.
        bytes: u64,
        /// Seconds since it started.
        uptime: u64,
    },
    /// An image of a takeover, with what only the holder needs to know; its descriptors come with it.
    Handover {
        /// The image.
        info: ImageInfo,
        /// Users that may attach; empty together with `gids` for everybody who may connect.
        uids: Vec<u32>,
        /// Groups that may attach.
        gids: Vec<u32>,
    },
    /// A copy of the image of the last [`Reply::Handover`] in a device's memory; its descriptor comes with it.
    HandoverCopy(DeviceCopy),
    /// The copy of an image in a device's memory; its descriptor comes with the message.
    Copy {
        /// Bytes of the device's memory.
        size: u64,
    },
    /// Who may attach to an image, before a change and after it.
    Access {
        /// Users and groups before; both empty for everybody who may connect.
        before: (Vec<u32>, Vec<u32>),
        /// Users and groups now.
        after: (Vec<u32>, Vec<u32>),
    },
    /// The last message of a takeover: the listening socket comes with it, and the next generation to hand out.
    Socket {
        /// First generation that was not used.
        next_generation: u64,
        /// Whether a supervisor made the socket and also listens at it, or keeps the images: the holder is not to be
        /// taken over then.
        supervised: bool,
    },
}

impl Reply {
    /// Descriptors that must come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Attached(info) | Self::Handover { info, .. } => info.roles.len(),
            Self::Socket { .. } | Self::Copy { .. } | Self::HandoverCopy(_) => 1,
            _ => 0,
        }
    }

    /// As a message.
    pub fn encode(&self) -> Vec<u8> {
        let begin = |number| Builder::new(number, u32::try_from(self.descriptors()).unwrap_or(0));
        let builder = match self {
            Self::Ok => begin(verb::OK),
            Self::Error { refusal, text } => {
                let mut builder = begin(verb::ERROR);
                builder.u32(refusal.code()).bytes(text.as_bytes());
                builder
            }
            Self::Attached(info) => {
                let mut builder = begin(verb::ATTACHED);
                info.write(&mut builder);
                builder
            }
            Self::Current { generation, inode } => {
                let mut builder = begin(verb::CURRENT);
                builder.u64(*generation).u64(*inode);
                builder
            }
            Self::Page { images, more } => {
                let mut builder = begin(verb::PAGE);
                builder.u8(u8::from(*more)).u32(u32::try_from(images.len()).unwrap_or(u32::MAX));
                for info in images {
                    info.write(&mut builder);
                }
                builder
            }
            Self::Progress { done, total } => {
                let mut builder = begin(verb::PROGRESS);
                builder.u64(*done).u64(*total);
                builder
            }
            Self::Warning { text } => {
                let mut builder = begin(verb::WARNING);
                builder.bytes(text.as_bytes());
                builder
            }
            Self::Loaded(info) => {
                let mut builder = begin(verb::LOADED);
                info.write(&mut builder);
                builder
            }
            Self::Health { pid, images, bytes, uptime } => {
                let mut builder = begin(verb::HEALTH);
                builder.u32(*pid).u64(*images).u64(*bytes).u64(*uptime);
                builder
            }
            Self::Handover { info, uids, gids } => {
                let mut builder = begin(verb::HANDOVER);
                info.write(&mut builder);
                for ids in [uids, gids] {
                    write_ids(&mut builder, ids);
                }
                builder
            }
            Self::Access { before, after } => {
                let mut builder = begin(verb::ACCESS);
                for ids in [&before.0, &before.1, &after.0, &after.1] {
                    write_ids(&mut builder, ids);
                }
                builder
            }
            Self::Copy { size } => {
                let mut builder = begin(verb::COPY);
                builder.u64(*size);
                builder
            }
            Self::HandoverCopy(copy) => {
                let mut builder = begin(verb::HANDOVER_COPY);
                copy.write(&mut builder);
                builder
            }
            Self::Socket { next_generation, supervised } => {
                let mut builder = begin(verb::SOCKET);
                builder.u64(*next_generation).u8((*supervised).into());
                builder
            }
        };
        builder.finish()
    }

    /// From a message that came with `descriptors` descriptors.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(message: &[u8], descriptors: usize) -> Result<Self, WireError> {
        let frame = Frame::parse(message, descriptors)?;
        let mut fields = Fields::new(frame.body);
        let reply = match frame.verb {
            verb::OK => Self::Ok,
            verb::ERROR => {
                let code = fields.u32("refusal")?;
                let known = Refusal::ALL.into_iter().find(|refusal| refusal.code() == code);
                let refusal = known.unwrap_or(Refusal::Failed);
                // Text may have been cut inside a character.
                let text = String::from_utf8_lossy(fields.bytes("text")?).into_owned();
                Self::Error { refusal, text }
            }
            verb::ATTACHED => Self::Attached(ImageInfo::read(&mut fields)?),
            verb::CURRENT => {
                Self::Current { generation: fields.u64("generation")?, inode: fields.u64("inode")? }
            }
            verb::PAGE => {
                let more = fields.u8("more")? != 0;
                let count = fields.u32("count")?;
                // No allocation by the count: the body bounds how many can be read.
                let images = (0..count).map(|_| ImageInfo::read(&mut fields)).collect::<Result<_, _>>()?;
                Self::Page { images, more }
            }
            verb::PROGRESS => Self::Progress { done: fields.u64("done")?, total: fields.u64("total")? },
            verb::LOADED => Self::Loaded(ImageInfo::read(&mut fields)?),
            verb::HEALTH => Self::Health {
                pid: fields.u32("pid")?,
                images: fields.u64("images")?,
                bytes: fields.u64("bytes")?,
                uptime: fields.u64("uptime")?,
            },
            verb::SOCKET => Self::Socket {
                next_generation: fields.u64("generation")?,
                supervised: fields.u8("supervised")? != 0,
            },
            verb::HANDOVER => Self::Handover {
                info: ImageInfo::read(&mut fields)?,
                uids: read_ids(&mut fields)?,
                gids: read_ids(&mut fields)?,
            },
            verb::COPY => Self::Copy { size: fields.u64("size")? },
            verb::HANDOVER_COPY => Self::HandoverCopy(DeviceCopy::read(&mut fields)?),
            verb::ACCESS => {
                let mut both = || Ok((read_ids(&mut fields)?, read_ids(&mut fields)?));
                Self::Access { before: both()?, after: both()? }
            }
            verb::WARNING => {
                Self::Warning { text: String::from_utf8_lossy(fields.bytes("text")?).into_owned() }
            }
            other => return Err(WireError::Verb(other)),
        };
        fields.end()?;
        if descriptors != reply.descriptors() {
            return Err(WireError::Descriptors { came: descriptors, said: reply.descriptors() });
        }
        Ok(reply)
    }
}
