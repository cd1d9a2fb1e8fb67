//! What the holder says of an image.

use crate::wire::{Builder, Fields, WireError};
use crate::{ContentHash, DeviceUuid};

/// Longest name of an image.
pub const NAME_MAX: usize = 128;

/// Copies of one image on devices at most.
pub const COPIES_MAX: usize = 32;

/// Longest signature of an image's content, in bytes, or longest sum of several: minisign's own have about 400, those
/// of cosign about 1000. It fits into one text of a message.
pub const SIGNATURE_MAX: usize = 4000;

/// Images in one page of a listing: with the longest names and the most copies they stay below the size of a message.
pub const PAGE_MAX: usize = 24;

/// A name: 1 to 128 bytes of letters, digits, `.`, `_`, `-`; it does not begin with a dot or a dash.
pub fn is_valid_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What kind of memory holds an image, and so what its descriptor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryKind {
    /// memfd sealed against write, shrink and grow: proven immutable.
    SealedMemfd,
    /// memfd that clients may map writable, so that devices can pin it.
    SharedMemfd,
    /// dma-buf in host memory (udmabuf, dma-heap).
    DmaBuf,
    /// CUDA virtual memory descriptor; not mappable by the CPU, carries no size.
    CudaVmm,
    /// dma-buf of device memory, for third parties.
    DeviceDmaBuf,
    /// Regular file or another mappable descriptor that the holder was given.
    File,
}

impl MemoryKind {
    const ALL: [(u8, Self, &'static str); 6] = [
        (1, Self::SealedMemfd, "sealed memfd"),
        (2, Self::SharedMemfd, "shared memfd"),
        (3, Self::DmaBuf, "dma-buf"),
        (4, Self::CudaVmm, "CUDA VMM"),
        (5, Self::DeviceDmaBuf, "device dma-buf"),
        (6, Self::File, "file"),
    ];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(_, kind, _)| *kind == self).map_or(0, |(code, _, _)| *code)
    }

    /// For people.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind, _)| *kind == self).map_or("unknown", |(_, _, name)| *name)
    }
}

/// What a descriptor that comes with an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The whole image, mappable by the CPU.
    Image,
    /// Superblock, inodes and directories only: beside device memory, which the CPU cannot map.
    Metadata,
    /// The device memory.
    Device,
    /// Sealed memory with the signature of the image's content, see `daxfs::signature`. The holder may not have checked
    /// it.
    Signature,
}

impl Role {
    fn code(self) -> u8 {
        match self {
            Self::Image => 1,
            Self::Metadata => 2,
            Self::Device => 3,
            Self::Signature => 4,
        }
    }
}

/// What the holder says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Name, see [`is_valid_name`].
    pub name: String,
    /// Counts up with every load and swap in this holder's life and across takeovers; never reused.
    pub generation: u64,
    /// Bytes of the memory.
    pub size: u64,
    /// Kind of memory.
    pub kind: MemoryKind,
    /// Page size that was obtained, in bytes; 0 when it is not known.
    pub page_size: u64,
    /// Content hash, see `daxfs::format::index`.
    pub content_hash: Option<ContentHash>,
    /// The device that holds the memory; [`DeviceUuid::HOST`] for host memory.
    pub device: DeviceUuid,
    /// When it was loaded: seconds since 1970.
    pub loaded: u64,
    /// How often it was attached.
    pub attaches: u64,
    /// The descriptors that an attach brings, in order.
    pub roles: Vec<Role>,
    /// Copies in the memory of devices.
    pub copies: Vec<DeviceCopy>,
}

impl ImageInfo {
    /// An image in host memory that nobody attached to yet, of which one descriptor is given, and nothing else is known.
    pub fn new(name: impl Into<String>, kind: MemoryKind, size: u64) -> Self {
        Self {
            name: name.into(),
            generation: 0,
            size,
            kind,
            page_size: 0,
            content_hash: None,
            device: DeviceUuid::HOST,
            loaded: 0,
            attaches: 0,
            roles: vec![Role::Image],
            copies: Vec::new(),
        }
    }
}

/// A copy of an image in the memory of a device, or in host memory that a driver allocated for devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCopy {
    /// The device; [`DeviceUuid::HOST`] for host memory.
    pub device: DeviceUuid,
    /// What of the image it holds: [`DeviceCopy::WHOLE`], or the identity of a placement
    /// (`daxfs_device::Placement::identity`).
    pub placement: [u8; 32],
    /// Bytes of the device's memory, which its descriptor does not say.
    pub size: u64,
}

impl DeviceCopy {
    /// All of the image, as it lies in its own memory.
    pub const WHOLE: [u8; 32] = [0; 32];

    /// Whether it lies in host memory.
    pub fn is_on_host(&self) -> bool {
        self.device.is_host()
    }

    /// Whether it holds all of the image.
    pub fn is_whole(&self) -> bool {
        self.placement == Self::WHOLE
    }

    /// Whether the other one would take its place.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.device, self.placement) == (other.device, other.placement)
    }

    pub(super) fn write<'a>(&self, builder: &'a mut Builder) -> &'a mut Builder {
        builder.raw(self.device.as_bytes()).raw(&self.placement).u64(self.size)
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let (device, placement) = (DeviceUuid::from(fields.array("device")?), fields.array("placement")?);
        Ok(Self { device, placement, size: fields.u64("size")? })
    }
}

impl ImageInfo {
    pub(super) fn write(&self, builder: &mut Builder) {
        builder.bytes(self.name.as_bytes()).u64(self.generation).u64(self.size).u8(self.kind.code());
        builder.u64(self.page_size).hash(self.content_hash.as_ref()).raw(self.device.as_bytes());
        builder.u64(self.loaded).u64(self.attaches);
        builder.u8(u8::try_from(self.roles.len()).unwrap_or(u8::MAX));
        for role in &self.roles {
            builder.u8(role.code());
        }
        builder.u8(u8::try_from(self.copies.len()).unwrap_or(u8::MAX));
        for copy in &self.copies {
            copy.write(builder);
        }
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, WireError> {
        let name = read_name(fields)?;
        let generation = fields.u64("generation")?;
        let size = fields.u64("size")?;
        let code = fields.u8("kind")?;
        let kind = MemoryKind::ALL.iter().find(|(known, _, _)| *known == code).map(|(_, kind, _)| *kind);
        let kind = kind.ok_or(WireError::Field { field: "kind", what: "an unknown kind of memory" })?;
        let page_size = fields.u64("page size")?;
        let content_hash = fields.hash("content hash")?;
        let device = DeviceUuid::from(fields.array("device")?);
        let loaded = fields.u64("loaded")?;
        let attaches = fields.u64("attaches")?;
        let mut roles = Vec::new();
        for _ in 0..fields.u8("roles")? {
            roles.push(match fields.u8("role")? {
                1 => Role::Image,
                2 => Role::Metadata,
                3 => Role::Device,
                4 => Role::Signature,
                _ => return Err(WireError::Field { field: "role", what: "an unknown role" }),
            });
        }
        let copies = (0..fields.u8("copies")?).map(|_| DeviceCopy::read(fields)).collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            generation,
            size,
            kind,
            page_size,
            content_hash,
            device,
            loaded,
            attaches,
            roles,
            copies,
        })
    }
}

/// A name, checked.
pub(super) fn read_name(fields: &mut Fields<'_>) -> Result<String, WireError> {
    let name = fields.text("name")?;
    if !is_valid_name(&name) {
        let what =
            "a name has 1 to 128 letters, digits, '.', '_' or '-' and begins with none of the last but '_'";
        return Err(WireError::Field { field: "name", what });
    }
    Ok(name)
}
