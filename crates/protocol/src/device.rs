//! The identity of a device, as drivers give it and as people write it.

use std::fmt;
use std::str::FromStr;

use dmabuf::Hex;

/// UUID of a device: of a whole GPU, or of a part of one. It is the same in all processes of a machine, whatever number
/// the device has there.
///
/// It is written as RFC 9562 has it, and read with or without the prefix that NVIDIA's tools write, `GPU-` or `MIG-`: the
/// number alone does not tell a whole GPU from a part.
///
/// ```
/// use daxfs_protocol::DeviceUuid;
///
/// let uuid: DeviceUuid = "GPU-00010203-0405-0607-0809-0A0B0C0D0E0F".parse()?;
/// assert_eq!(uuid.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
/// assert_eq!(uuid.as_bytes()[15], 15);
/// assert!("00010203-0405".parse::<DeviceUuid>().is_err());
/// # Ok::<(), daxfs_protocol::DeviceUuidError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceUuid([u8; 16]);

/// A text that is not the UUID of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the UUID of a device is 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12, with or without GPU- before them"
)]
pub struct DeviceUuidError;

impl DeviceUuid {
    /// Stands for host memory, which all devices of the machine read: all zero.
    pub const HOST: Self = Self([0; 16]);

    /// Where the groups of digits end, in bytes.
    const GROUPS: [std::ops::Range<usize>; 5] = [0..4, 4..6, 6..8, 8..10, 10..16];

    /// The 16 bytes, in the order of their digits.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether it stands for host memory.
    pub fn is_host(&self) -> bool {
        *self == Self::HOST
    }
}

impl From<[u8; 16]> for DeviceUuid {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl From<DeviceUuid> for [u8; 16] {
    fn from(uuid: DeviceUuid) -> Self {
        uuid.0
    }
}

impl FromStr for DeviceUuid {
    type Err = DeviceUuidError;

    fn from_str(text: &str) -> Result<Self, DeviceUuidError> {
        let bare = text.strip_prefix("GPU-").or_else(|| text.strip_prefix("MIG-")).unwrap_or(text);
        let mut groups = bare.split('-');
        let mut digits = String::with_capacity(32);
        for range in Self::GROUPS {
            let group = groups.next().filter(|group| group.len() == 2 * range.len());
            digits.push_str(group.ok_or(DeviceUuidError)?);
        }
        match (groups.next(), Hex::array(&digits)) {
            (None, Some(bytes)) => Ok(Self(bytes)),
            _ => Err(DeviceUuidError),
        }
    }
}

impl fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in Self::GROUPS.into_iter().enumerate() {
            let dash = if at == 0 { "" } else { "-" };
            write!(f, "{dash}{}", Hex(&self.0[range]))?;
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceUuid({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_as_they_are_written() {
        let uuid = DeviceUuid::from(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let text = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        assert_eq!((uuid.to_string(), format!("{uuid:?}")), (text.to_owned(), format!("DeviceUuid({text})")));
        let written = [text.to_owned(), text.to_uppercase(), format!("GPU-{text}"), format!("MIG-{text}")];
        for written in written {
            assert_eq!(written.parse(), Ok(uuid), "{written}");
        }
        assert!(!uuid.is_host() && DeviceUuid::HOST.is_host());
    }

    #[test]
    fn other_texts_are_refused() {
        let text = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        let dashless = text.replace('-', "");
        let wrong = [
            "",
            "GPU-",
            &dashless,
            &text[1..],
            &format!("{text}0"),
            &format!("{text}-"),
            &format!("GPU-GPU-{text}"),
            &format!(" {text}"),
            &text.replace('f', "g"),
            &text.replace("04", "+4"),
            &text.replace("04", "é"),
            &text.replace("0203", "02-3"),
        ];
        for wrong in wrong {
            assert_eq!(wrong.parse::<DeviceUuid>(), Err(DeviceUuidError), "{wrong}");
        }
    }
}
