//! What the holder is told when it starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use daxfs::signature::PublicKeys;
use dmabuf::HugePages;
use mkimage::Memory;

use crate::helper::Helper;

/// Where images are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// memfd: `memfd` (transparent huge pages where the kernel gives them), `memfd:4K`, `memfd:2M`, `memfd:1G`.
    Memfd(HugePages),
    /// `udmabuf`: a dma-buf over a memfd.
    Udmabuf,
    /// `heap:NAME`: a dma-buf of a dma-heap.
    Heap(String),
}

impl Target {
    /// As the packer names it.
    pub fn memory(&self) -> Memory {
        match self {
            Self::Memfd(pages) => Memory::Memfd(*pages),
            Self::Udmabuf => Memory::Udmabuf,
            Self::Heap(name) => Memory::Heap(name.clone()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memfd(HugePages::No) => f.write_str("memfd:4K"),
            Self::Memfd(HugePages::Hugetlb2M) => f.write_str("memfd:2M"),
            Self::Memfd(HugePages::Hugetlb1G) => f.write_str("memfd:1G"),
            Self::Memfd(HugePages::Auto | HugePages::Thp) => f.write_str("memfd"),
            Self::Udmabuf => f.write_str("udmabuf"),
            Self::Heap(name) => write!(f, "heap:{name}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').map_or((text, ""), |pair| pair) {
            ("memfd", "") => Ok(Self::Memfd(HugePages::Auto)),
            ("memfd", "4K") => Ok(Self::Memfd(HugePages::No)),
            ("memfd", "2M") => Ok(Self::Memfd(HugePages::Hugetlb2M)),
            ("memfd", "1G") => Ok(Self::Memfd(HugePages::Hugetlb1G)),
            ("udmabuf", "") => Ok(Self::Udmabuf),
            ("heap", name) if !name.is_empty() => Ok(Self::Heap(name.to_owned())),
            ("cuda", _) => {
                Err("images lie in host memory; `daxfs upload NAME cuda:N` makes a copy on a GPU".to_owned())
            }
            _ => Err("expected memfd, memfd:4K, memfd:2M, memfd:1G, udmabuf or heap:NAME".to_owned()),
        }
    }
}

/// Tells how many log lines were lost so far: the writer of the log counts them, and the metrics show the count.
#[derive(Clone)]
pub struct LostLines(Arc<dyn Fn() -> u64 + Send + Sync>);

impl LostLines {
    /// Asks `count` whenever the number is wanted.
    pub fn new(count: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }

    /// How many.
    pub fn count(&self) -> u64 {
        (self.0)()
    }
}

impl fmt::Debug for LostLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LostLines").field(&self.count()).finish()
    }
}

/// What the holder is told when it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub socket: PathBuf,
    /// Permission bits of the socket: who may connect may attach.
    pub mode: u32,
    /// Group of the socket.
    pub group: Option<u32>,
    /// Where images are put, unless a load says otherwise.
    pub into: Target,
    /// Leave memfds unsealed against writing, so that devices can pin them.
    pub shared: bool,
    /// Most bytes of memory that all images may take together.
    pub max_bytes: Option<u64>,
    /// Users that may load, drop, swap and stop, besides root and the holder's own.
    pub control: Vec<u32>,
    /// Where metrics and health are served by HTTP.
    pub metrics: Option<SocketAddr>,
    /// Most connections at a time; fewer where the limit of open files (RLIMIT_NOFILE) is low.
    pub max_connections: usize,
    /// Counts the log lines that were lost, for the metrics.
    pub lost_log_lines: Option<LostLines>,
    /// Keys one of which must have signed what is held. Without any everything is held.
    pub require_signed: Option<PublicKeys>,
    /// How a helper is started, which packs directories with the rights of other users. Without one their clients pack
    /// them.
    pub helper: Option<Helper>,
}

impl Config {
    /// Listens at `socket` for its own user only.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: 0o600,
            group: None,
            into: Target::Memfd(HugePages::Auto),
            shared: false,
            max_bytes: None,
            control: Vec::new(),
            metrics: None,
            max_connections: 4096,
            lost_log_lines: None,
            require_signed: None,
            helper: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let parse = |text: &str| text.parse::<Target>();
        assert_eq!(parse("memfd"), Ok(Target::Memfd(HugePages::Auto)));
        assert_eq!(parse("memfd:2M"), Ok(Target::Memfd(HugePages::Hugetlb2M)));
        assert_eq!(parse("heap:system"), Ok(Target::Heap("system".into())));
        assert_eq!(parse("udmabuf"), Ok(Target::Udmabuf));
        for text in ["memfd", "memfd:4K", "memfd:2M", "memfd:1G", "udmabuf", "heap:system"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for wrong in ["", "memfd:3M", "heap:", "heap", "cuda:0", "udmabuf:x", "disk"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
