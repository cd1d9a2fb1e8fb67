//! Images that lie elsewhere: the program `daxfs-remote` (crate `daxfs-remote`) fetches them into sealed memory, in a
//! process of its own, so that neither network, TLS nor credentials are this process' business.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use dmabuf::{FdKind, Seals};

use crate::error::Error;
use crate::{ContentHash, Region, Result};

/// The variable with the path of the program, where it is not found on the `PATH` or beside this one.
const PROGRAM: &str = "DAXFS_REMOTE";

/// The program's name.
const NAME: &str = "daxfs-remote";

/// What addresses begin with.
const SCHEMES: [&str; 7] = ["s3://", "gs://", "az://", "oci://", "hf://", "https://", "http://"];

/// What the program says first, with the version of what both say.
const HELLO: &str = "daxfs-remote 1";

/// How long that may take.
const GREETING: Duration = Duration::from_secs(10);

/// Time between two looks at whether the image is still wanted, while the program is silent.
const PAUSE: Duration = Duration::from_millis(100);

/// The program itself ends what takes too long.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where else the program is looked for; see [`RemoteAddress::look_in`].
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// The longest message of the program.
const LONGEST: usize = 8 << 10;

/// The longest address.
const LONGEST_ADDRESS: usize = 8 << 10;

/// The address of an image that lies elsewhere: `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `az://CONTAINER/KEY`,
/// `oci://REGISTRY/REPOSITORY[:TAG]`, `hf://ORG/NAME[@REVISION]/PATH`, `https://HOST/PATH`, `http://HOST/PATH`; or that of a
/// tree of files, which is packed ([`RemoteAddress::is_tree`]). Its text form, also in errors, has neither user nor query,
/// which may be secret; [`RemoteAddress::fetch`] has them.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteAddress(String);

/// Why an image that lies elsewhere cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The program is not there.
    #[error(
        "{address}: the program daxfs-remote, which fetches such images, is neither on the PATH nor beside this one: \
         {source}; install it (the Python package or the crate daxfs-remote), or name it by DAXFS_REMOTE"
    )]
    NotInstalled {
        /// The address.
        address: RemoteAddress,
        /// What the system said.
        source: io::Error,
    },
    /// The program says why not.
    #[error("{text}")]
    Failed {
        /// One word: `address`, `not-found`, `denied`, `no-memory`, `stalled`, `cancelled`, `other-content`, `format`,
        /// `failed`.
        kind: String,
        /// Its words, which name the address.
        text: String,
    },
    /// The program ended without a word, or with one that this version does not know.
    #[error("{address}: daxfs-remote ended {how}")]
    Ended {
        /// The address.
        address: RemoteAddress,
        /// How.
        how: String,
    },
}

impl RemoteError {
    /// Whether the server has nothing there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed { kind, .. } if kind == "not-found")
    }

    /// Whether the image is another one than was expected.
    pub fn is_other_content(&self) -> bool {
        matches!(self, Self::Failed { kind, .. } if kind == "other-content")
    }

    /// Whether what is there is no image, or a damaged one.
    pub fn is_format(&self) -> bool {
        matches!(self, Self::Failed { kind, .. } if kind == "format")
    }

    /// The number of the system's error that this is like, if there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::NotInstalled { source, .. } => source.raw_os_error(),
            Self::Failed { kind, .. } => match kind.as_str() {
                "denied" => Some(libc_numbers::EACCES),
                "no-memory" => Some(libc_numbers::ENOMEM),
                "stalled" => Some(libc_numbers::ETIMEDOUT),
                _ => None,
            },
            Self::Ended { .. } => None,
        }
    }
}

/// Of every Linux.
mod libc_numbers {
    pub(super) const ENOMEM: i32 = 12;
    pub(super) const EACCES: i32 = 13;
    pub(super) const ETIMEDOUT: i32 = 110;
}

/// What is wanted of an image that lies elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wanted {
    /// All of it.
    Image,
    /// What names, shapes and listings need: superblock, inodes, directories, links, index. The files read as zeros.
    Metadata,
}

impl RemoteAddress {
    /// Reads an address; `None` for a text that does not begin as one.
    ///
    /// # Errors
    /// [`Error::Source`] for one that is too long or no UTF-8. What else is wrong with it the program says.
    pub fn parse(text: &OsStr) -> Option<Result<Self>> {
        let bytes = text.as_bytes();
        SCHEMES.iter().find(|scheme| bytes.starts_with(scheme.as_bytes()))?;
        let wrong = |why| {
            let shown = Self(text.to_string_lossy().into()).to_string();
            Some(Err(Error::Source { text: shown.chars().take(100).collect(), why }))
        };
        match text.to_str() {
            Some(text) if text.len() <= LONGEST_ADDRESS => Some(Ok(Self(text.to_owned()))),
            Some(_) => wrong("an address has at most 8192 bytes"),
            None => wrong("an address is UTF-8"),
        }
    }

    /// Has this process look for the program in a folder, too, where it is neither on the `PATH` nor beside this one:
    /// the programs of Python's packages lie in a folder of their environment, which its interpreter does not say. The
    /// first folder that is named holds for good; `false` for another one.
    pub fn look_in(folder: PathBuf) -> bool {
        FOLDER.get_or_init(|| folder.clone()) == &folder
    }

    /// Has the program fetch the image into sealed memory. It compares each file of an image that has hashes with its
    /// hash, and the content with `expect`, before it fetches the files. `progress` is told how many bytes of how many
    /// are there, several times a second also while nothing comes; `false` ends it.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn fetch(
        &self,
        wanted: Wanted,
        expect: Option<ContentHash>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<OwnedFd> {
        let hash = expect.map_or_else(|| "-".to_owned(), |hash| hash.digits().to_string());
        let word = match wanted {
            Wanted::Image => "image",
            Wanted::Metadata => "metadata",
        };
        let request = format!("fetch {word} {hash} {}", self.0);
        match self.ask(&request, None, word, progress)? {
            (_, Some(fd)) => self.sealed(fd),
            _ => Err(RemoteError::Ended { address: self.clone(), how: "without memory".into() }.into()),
        }
    }

    /// Has the program push an image into a registry (`oci://`), and gives the digest of its manifest there. `progress` is
    /// as for [`RemoteAddress::fetch`].
    ///
    /// # Errors
    /// [`Error::Source`] for a region that no other process can have, [`Error::Remote`].
    pub fn push(&self, region: &Region, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<String> {
        let fd = region.fd().ok_or_else(|| Error::Source {
            text: self.to_string(),
            why: "what is pushed lies in memory with a descriptor, such as a file or a memfd",
        })?;
        let request = format!("push {} {} {}", region.offset(), region.len(), self.0);
        Ok(self.ask(&request, Some(fd), "pushed", progress)?.0)
    }

    /// Has the program fetch a container image out of a registry (`oci://`) into an image layout, as much of it as a machine
    /// of `platform` needs (`OS/ARCHITECTURE[/VARIANT]`), and gives the digest that the address names. `folder` is an empty
    /// directory. `progress` is as for [`RemoteAddress::fetch`].
    ///
    /// # Errors
    /// [`Error::Remote`]. What was written until then stays in the folder.
    pub fn pull_layout(
        &self,
        folder: BorrowedFd<'_>,
        platform: &str,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<String> {
        let request = format!("layout {} {}", platform.replace(' ', ""), self.0);
        Ok(self.ask(&request, Some(folder), "layout", progress)?.0)
    }

    /// Whether it names a tree of files, and no image: a folder of a store (`s3://BUCKET/FOLDER/`), or a repository of a hub of
    /// models (`hf://ORG/NAME[@REVISION]`). Whether there is one the program says.
    pub fn is_tree(&self) -> bool {
        let Some((scheme, path)) = self.0.split_once("://") else { return false };
        match scheme {
            "s3" | "gs" | "az" => path.ends_with('/'),
            "hf" => {
                let kinds = ["datasets/", "spaces/"];
                let path = kinds.iter().find_map(|kind| path.strip_prefix(kind)).unwrap_or(path);
                let path = path.trim_end_matches('/');
                // Revisions that hubs make themselves have two slashes.
                let ours = if path.contains("@refs/") { 3 } else { 1 };
                path.matches('/').count() <= ours
            }
            _ => false,
        }
    }

    /// Has the program list a tree of files into the file `listing` of `folder`, a directory: a record `BYTES SHA256|- TAG|- PATH`
    /// and a NUL for each file, sorted by path. Gives the address that has this content: of a repository that at the commit of
    /// now. `progress` is as for [`RemoteAddress::fetch`].
    ///
    /// # Errors
    /// [`Error::Remote`], and [`Error::Source`] when the program says what is no address.
    pub fn list_tree(
        &self,
        folder: BorrowedFd<'_>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Self> {
        let (listed, _) = self.ask(&format!("list {}", self.0), Some(folder), "listed", progress)?;
        match Self::parse(OsStr::new(&listed)) {
            Some(address) => address,
            None => {
                Err(RemoteError::Ended { address: self.clone(), how: format!("saying {listed:?}") }.into())
            }
        }
    }

    /// Has the program fetch files of a tree into `files` of `folder`: those in its file `wanted`, which has the form of the
    /// listing. Each is compared with its size, and with its SHA-256 where the record has one. `progress` is as for
    /// [`RemoteAddress::fetch`].
    ///
    /// # Errors
    /// [`Error::Remote`]. What was written until then stays in the folder.
    pub fn pull_tree(
        &self,
        folder: BorrowedFd<'_>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<()> {
        self.ask(&format!("tree {}", self.0), Some(folder), "tree", progress).map(drop)
    }

    /// Has the program do something, until it says `word`; gives what follows it.
    fn ask(
        &self,
        request: &str,
        memory: Option<BorrowedFd<'_>>,
        word: &str,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(String, Option<OwnedFd>)> {
        let (ours, theirs) = dmabuf::pair_seqpacket()?;
        // It ends when this is dropped: its socket is closed, whatever happens here.
        let program = Program { child: self.start(theirs)?, socket: ours };
        program.greeting(self)?;
        let memory: Vec<_> = memory.into_iter().collect();
        match dmabuf::send_fds(program.socket.as_fd(), request.as_bytes(), &memory) {
            Err(error) if error.io_kind() == io::ErrorKind::BrokenPipe => return Err(program.ended(self)),
            sent => sent?,
        }
        let (mut done, mut total) = (0, 0);
        loop {
            // Anything but time that has passed is for the receiving to say.
            if let Err(error) = dmabuf::wait_readable(program.socket.as_fd(), Some(PAUSE))
                && [io::ErrorKind::TimedOut, io::ErrorKind::Interrupted].contains(&error.kind())
            {
                if !progress(done, total) {
                    return Err(Error::Cancelled);
                }
                continue;
            }
            let mut message = vec![0; LONGEST];
            let (len, fds) = match dmabuf::recv_fds(program.socket.as_fd(), &mut message, 1) {
                // It ended before it read the request.
                Err(error) if error.io_kind() == io::ErrorKind::ConnectionReset => {
                    return Err(program.ended(self));
                }
                received => received?,
            };
            let text = String::from_utf8_lossy(message.get(..len).unwrap_or_default());
            let (verb, rest) = text.split_once(' ').unwrap_or((&text, ""));
            match (verb, fds.into_iter().next()) {
                ("progress", None) => {
                    let (now, all) = rest.split_once(' ').unwrap_or_default();
                    if let (Ok(now), Ok(all)) = (now.parse(), all.parse()) {
                        (done, total) = (now, all);
                        if !progress(done, total) {
                            return Err(Error::Cancelled);
                        }
                    }
                }
                (verb, fd) if verb == word => return Ok((rest.to_owned(), fd)),
                ("error", None) => {
                    let (kind, text) = rest.split_once(' ').unwrap_or(("failed", rest));
                    return Err(RemoteError::Failed { kind: kind.to_owned(), text: text.to_owned() }.into());
                }
                _ if len == 0 => return Err(program.ended(self)),
                _ => {
                    return Err(RemoteError::Ended {
                        address: self.clone(),
                        how: format!("saying {verb:?}"),
                    }
                    .into());
                }
            }
        }
    }

    /// Starts the program with a socket as its standard input.
    fn start(&self, socket: OwnedFd) -> Result<Child> {
        let (mut socket, mut failed) = (Some(socket), io::Error::from(io::ErrorKind::NotFound));
        for program in programs() {
            let Some(input) = socket.as_ref().and_then(|socket| socket.try_clone().ok()) else { break };
            let mut command = Command::new(program);
            command.stdin(Stdio::from(input)).stdout(Stdio::null());
            match command.spawn() {
                Ok(child) => {
                    socket.take();
                    return Ok(child);
                }
                Err(error) => failed = error,
            }
        }
        Err(RemoteError::NotInstalled { address: self.clone(), source: failed }.into())
    }

    /// Memory that nobody can change, or an error: the program's word for the bytes holds for good then.
    fn sealed(&self, fd: OwnedFd) -> Result<OwnedFd> {
        match dmabuf::describe(fd.as_fd())?.kind {
            FdKind::Memfd { seals, .. } if seals.contains(Seals::IMMUTABLE) => Ok(fd),
            kind => {
                let how = format!("with memory that is not sealed ({kind:?})");
                Err(RemoteError::Ended { address: self.clone(), how }.into())
            }
        }
    }
}

/// The program, which is waited for.
struct Program {
    child: Child,
    socket: OwnedFd,
}

impl Program {
    /// Waits for the program's greeting: another program that is named by mistake has none.
    fn greeting(&self, address: &RemoteAddress) -> Result<()> {
        dmabuf::set_timeout(&self.socket, GREETING)?;
        let mut message = [0; 64];
        let said = match dmabuf::recv_bytes(self.socket.as_fd(), &mut message) {
            Ok((len, _)) => String::from_utf8_lossy(message.get(..len).unwrap_or_default()).into_owned(),
            Err(error) => error.to_string(),
        };
        if said != HELLO {
            let how = if said.is_empty() { "without a word".to_owned() } else { format!("saying {said:?}") };
            return Err(RemoteError::Ended { address: address.clone(), how }.into());
        }
        dmabuf::set_timeout(&self.socket, FOREVER)?;
        Ok(())
    }

    /// Why it ended without a word.
    fn ended(mut self, address: &RemoteAddress) -> Error {
        let how = match self.child.wait() {
            Ok(status) => format!("without a word ({status})"),
            Err(error) => format!("without a word ({error})"),
        };
        RemoteError::Ended { address: address.clone(), how }.into()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Nothing of what it does has to be finished: the memory that counts was handed over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the program is looked for.
fn programs() -> Vec<OsString> {
    if let Some(program) = std::env::var_os(PROGRAM).filter(|program| !program.is_empty()) {
        return vec![program];
    }
    let beside =
        std::env::current_exe().ok().and_then(|program| Some(PathBuf::from(program.parent()?).join(NAME)));
    let there = FOLDER.get().map(|folder| folder.join(NAME));
    [Some(OsString::from(NAME)), beside.map(Into::into), there.map(Into::into)]
        .into_iter()
        .flatten()
        .collect()
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        let end = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        match has_port(host) {
            true => write!(f, "{scheme}://{host}{path}"),
            false => write!(f, "{scheme}://..."),
        }
    }
}

/// Whether what stands behind the colon of a host, if there is one, is the number of a port. Otherwise it is the beginning
/// of a password with a character that has to be escaped in an address, and the host is farther on.
fn has_port(host: &str) -> bool {
    let name = host.rfind(']').map_or(host, |end| &host[end..]);
    name.rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Debug for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees() {
        let is_tree = |text: &str| RemoteAddress::parse(OsStr::new(text)).unwrap().unwrap().is_tree();
        for tree in [
            "s3://models/llama/",
            "s3://models/",
            "hf://org/name",
            "hf://org/name@v1",
            "hf://org/name/",
            "hf://org/name@refs/pr/1",
            "hf://datasets/org/name",
        ] {
            assert!(is_tree(tree), "{tree}");
        }
        for image in ["s3://models/a", "hf://org/name/a.daxfs", "hf://datasets/org/name@v1/a", "https://h/a/"]
        {
            assert!(!is_tree(image), "{image}");
        }
    }

    #[test]
    fn addresses_show_no_secrets() {
        let parse = |text: &str| RemoteAddress::parse(OsStr::new(text));
        let address = parse("https://user:secret@host:1/a@b?sig=secret#x").unwrap().unwrap();
        assert_eq!(address.to_string(), "https://host:1/a@b");
        assert_eq!(format!("{address:?}"), "RemoteAddress(https://host:1/a@b)");
        assert_eq!(parse("s3://models/a").unwrap().unwrap().to_string(), "s3://models/a");
        assert_eq!(parse("http://[::1]:80/a").unwrap().unwrap().to_string(), "http://[::1]:80/a");
        for wrong in
            ["https://user:se/cret@host/a", "https://user:se?cret@host/a", "https://user:se#cret@host/a"]
        {
            assert_eq!(parse(wrong).unwrap().unwrap().to_string(), "https://...");
        }
        assert!(parse("daxfs://a").is_none() && parse("s3:/a").is_none() && parse("ftp://a/b").is_none());
        let long = format!("https://user:secret@host/{}", "x".repeat(9000));
        let error = parse(&long).unwrap().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
