//! Verbs of the holder: start it, ask it, control it.

use super::socket::{SocketArgs, parse_name};
use super::upload::{Gpu, UploadArgs, parse_gpu};
use super::{parse_size, parse_tensor_alignment};
use clap::{Args, Subcommand, ValueEnum};
use daxfs_holder::{Packing, Target};
use dmabuf::HugePages;
use mkimage::{Links, Packer};
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// Verbs of the holder.
#[derive(Debug, Subcommand)]
pub enum HolderVerb {
    /// Keep images in memory and pass them to other processes
    ///
    /// Loads the given sources, then serves until SIGTERM, SIGINT, `daxfs stop`, or until another holder takes over.
    /// Clients that have an image keep it whatever happens to the holder.
    ///
    /// Under systemd the listening socket and the images of an earlier life are taken from it; an image that is there
    /// already is not loaded again.
    Serve(ServeArgs),
    /// List the images of a holder
    Ps(PsArgs),
    /// Let a holder keep another image
    ///
    /// SOURCE is opened here and sent as a descriptor. A directory is packed with the rights of this user: by the holder
    /// where it has the same or is root, else here. An image file is copied into memory, and so is memory that can
    /// still be written; a memfd sealed against writing, shrinking and growing is kept as it is. With --shared, or where
    /// the image is to be in a dma-buf, all memory that cannot shrink is kept. Everything is validated, with the hashes
    /// that the image carries.
    Load(LoadArgs),
    /// Replace an image under its name, in one step
    ///
    /// Clients that have the old image keep it, and can ask whether it is still current. The name may also be new. Who
    /// may attach stays as it was (`daxfs access` changes it), and so does the kind of memory, unless --into or --shared
    /// says otherwise. Until the new image is complete the machine needs memory for both.
    #[command(
        after_help = "Examples:\n  daxfs swap llama new-weights/\n  daxfs swap llama new-weights.daxfs\n  \
        daxfs swap llama new-weights.daxfs --expect blake3:..."
    )]
    Swap(LoadArgs),
    /// Show who may attach to an image, or change it
    ///
    /// Those who have attached keep the image.
    Access(AccessArgs),
    /// Put a copy of an image into a GPU's memory, for its holder to keep
    ///
    /// The copy is made by this process, which then ends; the holder keeps a descriptor of it, and needs no GPU driver.
    /// Processes that open the image and ask for it on that GPU get the copy, in milliseconds, until the holder drops
    /// or swaps the image, or ends.
    ///
    /// With --place each GPU gets what a placement plan gives its rank; `daxfs place` shows what that is.
    Upload(UploadArgs),
    /// Let a holder forget an image
    ///
    /// Clients that have the image keep it; its memory goes with the last of them.
    Drop(DropArgs),
    /// End a holder
    ///
    /// Returns when the holder has ended. Clients that have images keep them.
    Stop(StopArgs),
    /// Ask a holder whether it is well; exit status 2 when none answers
    Health(HealthArgs),
    /// Packs a directory for a holder with the rights of who asked it; started by `daxfs serve` alone
    #[command(hide = true)]
    Helper,
}

/// Arguments of `daxfs serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs serve llama=weights/ lora=adapters.daxfs\n  \
    daxfs serve --socket /run/daxfs/daxfs.sock --group ml --max-bytes 200G\n  daxfs serve --takeover")]
pub struct ServeArgs {
    /// Images to begin with: a name, and a directory, an image file or fd:N
    #[arg(value_name = "NAME=SOURCE", value_parser = NamedSourceParser)]
    pub images: Vec<NamedSource>,
    /// Where to listen.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Memory for images, unless a load says otherwise: memfd (huge pages where the kernel gives them), memfd:4K,
    /// memfd:2M, memfd:1G (hugetlb pool), udmabuf, heap:NAME (a dma-heap); or cuda:N, cuda:all or cuda-host:N: a
    /// memfd, and copies of the images given here in a GPU's memory, or in host memory that GPUs read in place, made
    /// as by `daxfs upload`
    #[arg(long, value_name = "MEMORY", default_value = "memfd")]
    pub into: Place,
    /// Besides, copy to GPUs what a placement plan gives each rank of the images given here, as by
    /// `daxfs upload --place`
    #[arg(long, value_name = "PLAN")]
    pub place: Option<PathBuf>,
    /// GPUs of the plan's ranks, in order; by default cuda:0, cuda:1, ...
    #[arg(long, value_name = "cuda:N,...", value_delimiter = ',', requires = "place", value_parser = parse_gpu)]
    pub ranks: Vec<usize>,
    /// Leave memfds open to writing, so that devices can pin them. Every client can then change what all others read
    #[arg(long)]
    pub shared: bool,
    /// Take images and socket over from the holder that runs at the socket, which then ends. One under systemd is
    /// replaced with systemctl restart instead
    #[arg(long)]
    pub takeover: bool,
    /// Serve Prometheus metrics, /healthz and /readyz here by HTTP, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// How directories given here are packed.
    #[command(flatten)]
    pub packing: PackingArgs,
    /// Most memory for all images together, such as 200G (1024-based)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_bytes: Option<u64>,
    /// Permissions of the socket: who may connect may attach. By default 0600, with --group 0660. A socket that
    /// systemd or another holder made keeps its own
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode)]
    pub mode: Option<u32>,
    /// Group of the socket, by name or number
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    pub group: Option<u32>,
    /// User who may load, swap, drop and stop, besides root and the holder's own; may be given several times
    #[arg(long, value_name = "UID")]
    pub allow_control: Vec<u32>,
    /// Hold only what one of the keys in FILE has signed (public keys of minisign, or on P-256 in PEM, one or several):
    /// a load brings the signature, or it is refused, and so are memory that clients can write, and images of an
    /// earlier holder without one
    #[arg(long, value_name = "FILE", conflicts_with = "shared")]
    pub require_signed: Option<PathBuf>,
    /// Form of the log lines on standard error; $RUST_LOG selects them
    #[arg(long, value_enum, default_value_t = Log::Text)]
    pub log: Log,
}

/// Forms of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Arguments of `daxfs ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs ps\n  daxfs ps --holders\n  \
    daxfs ps --json | jq -r '.images[] | \"\\(.name) \\(.content_hash)\"'")]
pub struct PsArgs {
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Show the processes that have each image, as far as this user may see them. Attaches to each image
    #[arg(long)]
    pub holders: bool,
    /// Print JSON: {"images": [...]}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs load` and `daxfs swap`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs load llama weights/\n  daxfs load llama weights/ --weights-only --allow-gid 1000\n  \
    daxfs load lora adapters.daxfs"
)]
pub struct LoadArgs {
    /// Name for the image: letters, digits, '.', '_' and '-'
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Directory, image file, fd:N, - for standard input, or an image of another holder
    pub source: OsString,
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Host memory for the image, see `daxfs serve --into`; by default what the holder was started with
    #[arg(long, value_name = "MEMORY")]
    pub into: Option<Target>,
    /// Leave the memfd open to writing, so that devices can pin it. Every client can then change what all others read
    #[arg(long)]
    pub shared: bool,
    /// Refuse a source that would have to be copied: a file, or memory that can still be written
    #[arg(long)]
    pub no_copy: bool,
    /// Signature of the image's content (`daxfs-pack --sign`), which clients get with it: a file of minisign or an OCI
    /// image layout of cosign. By default SOURCE.minisig and SOURCE.cosign, where they are there
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// Store files with the same contents once; for directories
    #[arg(long)]
    pub dedupe: bool,
    /// How a directory is packed.
    #[command(flatten)]
    pub packing: PackingArgs,
    /// User who may attach; may be given several times. Without users and groups everybody who may connect
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,
    /// Group whose members may attach; may be given several times
    #[arg(long, value_name = "GID")]
    pub allow_gid: Vec<u32>,
    /// No progress bar and no summary
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON: the image as in `daxfs ps --json`
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// How directories are packed.
#[derive(Debug, Clone, Args)]
pub struct PackingArgs {
    /// What the tensors of safetensors files in directories are moved to multiples of; 256 by default, `page` for this
    /// machine's pages
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "256")]
    #[arg(value_parser = parse_tensor_alignment)]
    pub align_tensors: Option<u64>,
    /// Pack directories byte for byte: no tensor is moved
    #[arg(long, conflicts_with = "align_tensors")]
    pub exact: bool,
    /// Symbolic links in directories. auto: kept where they lead to something that is packed, followed where they lead
    /// out of the directory, kept where they lead nowhere. keep, follow: all of them. refuse: an error
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_links())]
    pub links: Links,
    /// What is packed.
    #[command(flatten)]
    pub selection: SelectionArgs,
}

/// What is packed of a directory.
#[derive(Debug, Clone, Args)]
pub struct SelectionArgs {
    /// Leave out of directories what GLOB matches, by the rules of gitignore; may be given several times
    #[arg(long, value_name = "GLOB", allow_hyphen_values = true)]
    pub exclude: Vec<String>,
    /// Pack only what GLOB matches of directories, less what --exclude leaves out; may be given several times
    #[arg(long, value_name = "GLOB", allow_hyphen_values = true)]
    pub include: Vec<String>,
    /// Where safetensors files are, leave out other forms of the same weights, as daxfs-pack --weights-only
    #[arg(long)]
    pub weights_only: bool,
}

impl PackingArgs {
    /// As the holder takes it; with `dedupe` files with the same contents are stored once.
    pub fn packing(&self, dedupe: bool) -> Packing {
        let SelectionArgs { exclude, include, weights_only } = self.selection.clone();
        let mut packing = Packing::default();
        (packing.align_tensors, packing.exact, packing.dedupe) = (self.align_tensors, self.exact, dedupe);
        (packing.links, packing.weights_only) = (self.links, weights_only);
        (packing.exclude, packing.include) = (exclude, include);
        packing
    }
}

impl SelectionArgs {
    /// The packer with this selection.
    pub fn apply(&self, packer: Packer) -> Packer {
        let packer = packer.weights_only(self.weights_only);
        let packer = self.exclude.iter().fold(packer, Packer::exclude);
        self.include.iter().fold(packer, Packer::include)
    }

    /// The first option that was given.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("--exclude", !self.exclude.is_empty()),
            ("--include", !self.include.is_empty()),
            ("--weights-only", self.weights_only),
        ];
        given.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }
}

fn parse_links() -> impl clap::builder::TypedValueParser<Value = Links> {
    use clap::builder::TypedValueParser;
    let names = Links::NAMES.map(|(name, _)| name);
    clap::builder::PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// Where a holder puts images: host memory, and a GPU's, or host memory for one, besides if one is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Host memory.
    pub memory: Target,
    /// A GPU that gets copies.
    pub gpu: Option<Gpu>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("cuda") {
            return Ok(Self { memory: Target::Memfd(HugePages::Auto), gpu: Some(text.parse()?) });
        }
        let memory = text.parse().map_err(|why: String| why + "; or cuda:N, cuda:all, or cuda-host:N")?;
        Ok(Self { memory, gpu: None })
    }
}

/// Arguments of `daxfs access`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs access llama\n  daxfs access llama --allow-uid 1000 --allow-gid 100\n  \
    daxfs access llama --everybody"
)]
pub struct AccessArgs {
    /// Name of the image
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// User who may attach from now on, besides root and the holder's own; may be given several times
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,
    /// Group whose members may attach from now on; may be given several times
    #[arg(long, value_name = "GID")]
    pub allow_gid: Vec<u32>,
    /// Everybody who may connect may attach
    #[arg(long, conflicts_with_all = ["allow_uid", "allow_gid"])]
    pub everybody: bool,
    /// Print JSON: {"name": NAME, "before": {"uids": [...], "gids": [...]}, "after": {...}}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs drop`.
#[derive(Debug, Args)]
pub struct DropArgs {
    /// Name of the image
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Print JSON: {"dropped": NAME}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Print JSON: {"stopped": true}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs health`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs health --json\n  \
    daxfs serve llama=weights/ & daxfs health --wait 60 && daxfs ls daxfs://llama")]
pub struct HealthArgs {
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Wait up to SECONDS for a holder to answer: one that was just started answers when its images are loaded
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    pub wait: u32,
    /// Print JSON: {"pid": ..., "images": ..., "bytes": ..., "uptime": ...}
    #[arg(long)]
    pub json: bool,
}

/// `NAME=SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSource {
    /// Name of the image.
    pub name: String,
    /// What it is loaded from.
    pub source: OsString,
}

/// Reads a [`NamedSource`], whose source need not be UTF-8.
#[derive(Debug, Clone)]
struct NamedSourceParser;

impl clap::builder::TypedValueParser for NamedSourceParser {
    type Value = NamedSource;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<NamedSource, clap::Error> {
        parse_named_source(value).map_err(|why| {
            let text = format!("{:?}: {why}", value.to_string_lossy());
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, text + "\n").with_cmd(command)
        })
    }
}

fn parse_named_source(value: &OsStr) -> Result<NamedSource, String> {
    let mut parts = value.as_bytes().splitn(2, |&byte| byte == b'=');
    match (parts.next(), parts.next()) {
        (Some(name), Some(source)) if !source.is_empty() => Ok(NamedSource {
            name: parse_name(&String::from_utf8_lossy(name))?,
            source: OsString::from_vec(source.to_vec()),
        }),
        _ => Err("expected NAME=SOURCE, such as llama=weights/".to_owned()),
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, such as 0660".to_owned()),
    }
}

fn parse_group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let named = parse_named_source(OsStr::from_bytes(b"a.b=x=\xff")).unwrap();
        assert_eq!((named.name.as_str(), named.source.as_bytes()), ("a.b", &b"x=\xff"[..]));
        for wrong in ["", "a", "a=", "=x", "a/b=x", "-a=x"] {
            assert!(parse_named_source(OsStr::new(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(("cuda:3".parse(), "cuda".parse()), (Ok(Gpu::One(3)), Ok(Gpu::One(0))));
        assert_eq!("cuda:all".parse(), Ok(Gpu::All));
        assert_eq!(("cuda-host:2".parse(), "cuda-host".parse()), (Ok(Gpu::Host(2)), Ok(Gpu::Host(0))));
        assert_eq!(Gpu::Host(2).to_string(), "cuda-host:2");
        assert!(
            "cuda-host:all".parse::<Place>().unwrap_err().contains("one copy in host memory serves all GPUs")
        );
        assert!(parse_gpu("cuda-host:0").unwrap_err().contains("a GPU's own memory"));
        for wrong in
            ["", "cuda:", "cuda:x", "cuda:+1", "cuda0", "gpu:0", "cuda-host:", "cuda-host:x", "cuda-hosts"]
        {
            assert!(wrong.parse::<Gpu>().is_err() && wrong.parse::<Place>().is_err(), "{wrong}");
        }
        let memory = |text: &str| text.parse::<Place>().unwrap();
        assert_eq!((memory("memfd:4K").gpu, memory("cuda:1").gpu), (None, Some(Gpu::One(1))));
        assert_eq!((parse_mode("0660"), parse_mode("600")), (Ok(0o660), Ok(0o600)));
        assert!(parse_mode("888").is_err() && parse_mode("1777").is_err() && parse_mode("").is_err());
        assert_eq!((parse_group("root"), parse_group("12")), (Ok(0), Ok(12)));
        assert!(parse_group("no such group").is_err());
    }
}
