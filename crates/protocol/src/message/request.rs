//! What clients ask.

use super::info::{DeviceCopy, read_name};
use super::reply::{read_ids, write_ids};
use super::verb::request as verb;
use crate::wire::{Builder, Fields, Frame, WireError};
use crate::{ContentHash, DeviceUuid};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Send the image's descriptors. With `expect`, only if its content hash is this one.
    Attach {
        /// Which image.
        name: String,
        /// The content hash that it must have.
        expect: Option<ContentHash>,
    },
    /// Which generation does the name have?
    Current {
        /// Which image.
        name: String,
    },
    /// Images whose names come after `after`.
    List {
        /// Empty at first.
        after: String,
    },
    /// Hold what the one descriptor is: a directory (packed with the client's rights), an image file (copied into
    /// memory), or memory that holds an image (kept as it is where nobody can write it, else copied).
    Load {
        /// Under this name.
        name: String,
        /// Replace the image of that name (a swap); otherwise the name must be free.
        replace: bool,
        /// Options of the packer and the target, as `key=value` texts; the server names those it knows.
        options: Vec<String>,
    },
    /// Forget an image. Clients that have it keep it.
    Drop {
        /// Which image.
        name: String,
    },
    /// End the holder.
    Stop,
    /// Answer if all is well.
    Health,
    /// Hand everything over to the process that asks, and end.
    Takeover,
    /// The process that asked for a takeover has everything.
    TakeoverDone,
    /// Keep a copy of an image in a device's memory, whose descriptor comes with it.
    Keep {
        /// Of which image.
        of: Version,
        /// Where it is, and what of the image.
        copy: DeviceCopy,
    },
    /// Send the descriptor of an image's copy in a device's memory; `Ok` is the answer where there is none.
    Copy {
        /// Of which image.
        of: Version,
        /// The device.
        device: DeviceUuid,
        /// What of the image it is to hold: see [`DeviceCopy::placement`].
        placement: [u8; 32],
    },
    /// Say who may attach to an image, and change that.
    Access {
        /// Which image.
        name: String,
        /// The users and groups that may from now on, both empty for everybody who may connect; `None` changes nothing.
        change: Option<(Vec<u32>, Vec<u32>)>,
    },
    /// Answer as for [`Request::Current`], but only once the name means another image than this one, or none. Nothing
    /// else is read from the connection meanwhile.
    Watch {
        /// The image that the client has.
        of: Version,
    },
}

/// An image as a client has it: what its name meant at that time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Which image.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// Inode number of its memory: generations begin anew with a holder that inherits nothing.
    pub inode: u64,
}

impl Version {
    fn write<'a>(&self, builder: &'a mut Builder) -> &'a mut Builder {
        builder.bytes(self.name.as_bytes()).u64(self.generation).u64(self.inode)
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let name = read_name(fields)?;
        Ok(Self { name, generation: fields.u64("generation")?, inode: fields.u64("inode")? })
    }
}

impl Request {
    /// Descriptors that must come with it.
    pub fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::Load { .. } | Self::Keep { .. }))
    }

    /// As a message.
    pub fn encode(&self) -> Vec<u8> {
        let begin = |number| Builder::new(number, u32::try_from(self.descriptors()).unwrap_or(0));
        let builder = match self {
            Self::Attach { name, expect } => {
                let mut builder = begin(verb::ATTACH);
                builder.bytes(name.as_bytes()).hash(expect.as_ref());
                builder
            }
            Self::Current { name } => {
                let mut builder = begin(verb::CURRENT);
                builder.bytes(name.as_bytes());
                builder
            }
            Self::List { after } => {
                let mut builder = begin(verb::LIST);
                builder.bytes(after.as_bytes());
                builder
            }
            Self::Load { name, replace, options } => {
                let mut builder = begin(verb::LOAD);
                builder.bytes(name.as_bytes()).u8(u8::from(*replace));
                builder.u8(u8::try_from(options.len()).unwrap_or(u8::MAX));
                for option in options.iter().take(usize::from(u8::MAX)) {
                    builder.bytes(option.as_bytes());
                }
                builder
            }
            Self::Drop { name } => {
                let mut builder = begin(verb::DROP);
                builder.bytes(name.as_bytes());
                builder
            }
            Self::Stop => begin(verb::STOP),
            Self::Health => begin(verb::HEALTH),
            Self::Takeover => begin(verb::TAKEOVER),
            Self::TakeoverDone => begin(verb::TAKEOVER_DONE),
            Self::Keep { of, copy } => {
                let mut builder = begin(verb::KEEP);
                copy.write(of.write(&mut builder));
                builder
            }
            Self::Copy { of, device, placement } => {
                let mut builder = begin(verb::COPY);
                of.write(&mut builder).raw(device.as_bytes()).raw(placement);
                builder
            }
            Self::Access { name, change } => {
                let mut builder = begin(verb::ACCESS);
                builder.bytes(name.as_bytes()).u8(u8::from(change.is_some()));
                for ids in change.iter().flat_map(|(uids, gids)| [uids, gids]) {
                    write_ids(&mut builder, ids);
                }
                builder
            }
            Self::Watch { of } => {
                let mut builder = begin(verb::WATCH);
                of.write(&mut builder);
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
        let request = match frame.verb {
            verb::ATTACH => Self::Attach { name: read_name(&mut fields)?, expect: fields.hash("expect")? },
            verb::CURRENT => Self::Current { name: read_name(&mut fields)? },
            verb::LIST => Self::List { after: fields.text("after")? },
            verb::LOAD => {
                let name = read_name(&mut fields)?;
                let replace = fields.u8("replace")? != 0;
                let count = fields.u8("options")?;
                let options = (0..count).map(|_| fields.text("option")).collect::<Result<_, _>>()?;
                Self::Load { name, replace, options }
            }
            verb::DROP => Self::Drop { name: read_name(&mut fields)? },
            verb::STOP => Self::Stop,
            verb::HEALTH => Self::Health,
            verb::TAKEOVER => Self::Takeover,
            verb::TAKEOVER_DONE => Self::TakeoverDone,
            verb::KEEP => {
                Self::Keep { of: Version::read(&mut fields)?, copy: DeviceCopy::read(&mut fields)? }
            }
            verb::COPY => Self::Copy {
                of: Version::read(&mut fields)?,
                device: DeviceUuid::from(fields.array("device")?),
                placement: fields.array("placement")?,
            },
            verb::ACCESS => {
                let name = read_name(&mut fields)?;
                let change = match fields.u8("change")? {
                    0 => None,
                    _ => Some((read_ids(&mut fields)?, read_ids(&mut fields)?)),
                };
                Self::Access { name, change }
            }
            verb::WATCH => Self::Watch { of: Version::read(&mut fields)? },
            other => return Err(WireError::Verb(other)),
        };
        fields.end()?;
        if descriptors != request.descriptors() {
            return Err(WireError::Descriptors { came: descriptors, said: request.descriptors() });
        }
        Ok(request)
    }
}
