//! `daxfs://NAME` and `daxfs+unix:///path/to.sock/NAME`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::client::HolderError;
use super::message::is_valid_name;

/// Where an image of a holder is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The holder's socket.
    pub socket: PathBuf,
    /// Name of the image.
    pub name: String,
}

/// The socket that `daxfs://` means: `$DAXFS_SOCKET`, else `$XDG_RUNTIME_DIR/daxfs.sock`, else `/run/daxfs.sock`.
pub fn default_socket() -> PathBuf {
    socket_from(std::env::var_os("DAXFS_SOCKET"), std::env::var_os("XDG_RUNTIME_DIR"))
}

fn socket_from(explicit: Option<OsString>, runtime: Option<OsString>) -> PathBuf {
    let set = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    match (set(explicit), set(runtime)) {
        (Some(socket), _) => socket,
        (None, Some(directory)) => directory.join("daxfs.sock"),
        (None, None) => PathBuf::from("/run/daxfs.sock"),
    }
}

impl Address {
    /// Reads an address; `None` when the text is none, so a path.
    ///
    /// # Errors
    /// [`HolderError::Address`] when it begins as an address and is a wrong one.
    pub fn parse(text: &OsStr) -> Option<Result<Self, HolderError>> {
        let bytes = text.as_bytes();
        let wrong =
            |why: &'static str| HolderError::Address { text: text.to_string_lossy().into_owned(), why };
        let (socket, name) = if let Some(name) = bytes.strip_prefix(b"daxfs://") {
            (default_socket(), name)
        } else {
            let rest = bytes.strip_prefix(b"daxfs+unix://")?;
            let Some(slash) = rest.iter().rposition(|&byte| byte == b'/').filter(|&slash| slash > 0) else {
                return Some(Err(wrong("it needs the form daxfs+unix:///path/to.sock/NAME")));
            };
            let (socket, name) = rest.split_at(slash);
            if !socket.starts_with(b"/") {
                return Some(Err(wrong("the path of the socket must be absolute")));
            }
            (PathBuf::from(OsStr::from_bytes(socket)), name.get(1..).unwrap_or_default())
        };
        match std::str::from_utf8(name) {
            Ok(name) if is_valid_name(name) => Some(Ok(Self { socket, name: name.to_owned() })),
            _ => Some(Err(wrong("a name has 1 to 128 letters, digits, '.', '_' or '-'"))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "daxfs+unix://{}/{}", self.socket.display(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_sockets() {
        let text = |text: &str| Some(OsString::from(text));
        assert_eq!(socket_from(text("/a"), text("/run/user/1")), PathBuf::from("/a"));
        assert_eq!(socket_from(text(""), text("/run/user/1")), PathBuf::from("/run/user/1/daxfs.sock"));
        assert_eq!(socket_from(None, None), PathBuf::from("/run/daxfs.sock"));
    }

    #[test]
    fn addresses() {
        let parse = |text: &str| Address::parse(OsStr::new(text));
        let address = parse("daxfs+unix:///tmp/x.sock/llama-3.1").unwrap().unwrap();
        assert_eq!(address.socket, PathBuf::from("/tmp/x.sock"));
        assert_eq!(address.name, "llama-3.1");
        assert_eq!(parse(&address.to_string()).unwrap().unwrap(), address);
        assert_eq!(parse("daxfs://a").unwrap().unwrap().socket, default_socket());
        assert!(parse("model.daxfs").is_none());
        for wrong in
            ["daxfs://", "daxfs://a/b", "daxfs://.a", "daxfs+unix://a", "daxfs+unix://a/b", "daxfs+unix:///"]
        {
            assert!(parse(wrong).unwrap().is_err(), "{wrong}");
        }
    }
}
