//! Where a holder is, and how its images are named: what all verbs of holders take.

use clap::Args;
use daxfs_protocol::message::is_valid_name;
use std::path::PathBuf;

/// Where the holder is.
#[derive(Debug, Clone, Args)]
pub struct SocketArgs {
    /// Socket of the holder; by default $DAXFS_SOCKET, else $XDG_RUNTIME_DIR/daxfs.sock, else /run/daxfs.sock
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl SocketArgs {
    /// The socket that is meant.
    pub fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(daxfs_protocol::default_socket)
    }
}

/// Reads the name of an image.
pub(super) fn parse_name(text: &str) -> Result<String, String> {
    if is_valid_name(text) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 128 letters, digits, '.', '_' or '-' and begins with none of '.' and '-'".to_owned())
}
