//! The command line: every verb, flag and help text.

use clap::{Args, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

const SOURCES: &str = "\
Sources:
  model.daxfs    a file, on disk or in a tmpfs
  /dev/dax0.0    a DAX device
  fd:3           a descriptor that this process inherited: a memfd, a dma-buf, a file
  -              standard input, when it is a file or a memfd (a pipe cannot be mapped)
A file that is really named fd:3 or - is reached as ./fd:3 or ./-

Exit status:
  0  all went well
  1  verify found differences
  2  an error; the reason is on standard error";

const EXAMPLES: &str = "\
Examples:
  daxfs ls -lR model.daxfs
  daxfs cat model.daxfs /config.json
  daxfs inspect --svg map.svg model.daxfs
  daxfs verify model.daxfs weights/
  daxfs-pack weights/ --into memfd -- sh -c 'daxfs tree $DAXFS_IMAGE'";

/// List, inspect, verify and extract DAXFS images.
///
/// An image is opened in place: it is mapped, its metadata is copied once and checked, and nothing else is
/// read before it is needed.
#[derive(Debug, Parser)]
#[command(name = "daxfs", bin_name = "daxfs", version, after_help = SOURCES, after_long_help = format!("{SOURCES}\n\n{EXAMPLES}"))]
#[command(arg_required_else_help = true, infer_subcommands = false, max_term_width = 100)]
pub struct Cli {
    /// How images are opened.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How images are opened; the same for every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Opening the image")]
pub struct SourceArgs {
    /// File that holds the data of a split image, whose own memory holds only metadata
    #[arg(long, global = true, value_name = "FILE")]
    pub backing: Option<OsString>,

    /// Refuse what the kernel's own validation refuses
    #[arg(long, global = true)]
    pub strict: bool,

    /// Copy the image into private sealed memory first: for files that others may change or truncate
    #[arg(long, global = true)]
    pub sealed_copy: bool,

    /// Most metadata to copy when opening, such as 64M or 2G (1024-based)
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, default_value = "512M")]
    pub max_metadata: u64,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List directories
    ///
    /// Entries are sorted by name, as bytes. Names that are not UTF-8 or hold control characters are shown with
    /// the escapes of `ls -b`.
    Ls(LsArgs),
    /// Show the tree with sizes
    ///
    /// The size of a directory is that of the files below it; a file with several names counts once, where it is
    /// met first.
    Tree(TreeArgs),
    /// Show all that is known of an entry
    Stat(StatArgs),
    /// Write the contents of files to standard output
    Cat(CatArgs),
    /// Show regions, memory, and tensors; draw the memory map
    ///
    /// The picture shows the whole image in rows, to scale: regions, files, tensors coloured by type, and the
    /// padding between them.
    Inspect(InspectArgs),
    /// Check an image, alone or against its source directory
    ///
    /// Alone: the rules of strict opening; the BLAKE3 hash of every file and of the whole contents, where the image
    /// has them; the tensor index against the headers of the safetensors files, in both directions; and whether
    /// sharded checkpoints are complete. An image without an index is checked by the rules alone.
    ///
    /// With DIR: types, modes, sizes, contents, symlink targets and hard links too, byte for byte, in both
    /// directions. Owners and times are not compared. `/.daxfs` is ignored on both sides.
    Verify(VerifyArgs),
    /// Unpack an image into a new directory
    ///
    /// Nothing is ever written outside DEST: every step is taken relative to an open directory, no symbolic link is
    /// followed, and nothing that exists is opened or replaced. DEST must not exist, or be an empty directory.
    /// `/.daxfs`, the index that the packer adds, is not written.
    ///
    /// Run by root, owners and exact modes are restored, as tar does; run by others, the umask applies and
    /// setuid, setgid and sticky bits are dropped, unless --same-permissions is given.
    Extract(ExtractArgs),
    /// Move an image that is in memory to 2 MiB pages
    ///
    /// The pages are moved for every process that maps the memory. The kernel needs no setting for this, but
    /// enough free memory that is not fragmented.
    Collapse(CollapseArgs),
}

impl Verb {
    /// The image that the verb works on.
    pub fn image(&self) -> &OsStr {
        match self {
            Self::Ls(LsArgs { image, .. })
            | Self::Tree(TreeArgs { image, .. })
            | Self::Stat(StatArgs { image, .. })
            | Self::Cat(CatArgs { image, .. })
            | Self::Inspect(InspectArgs { image, .. })
            | Self::Verify(VerifyArgs { image, .. })
            | Self::Extract(ExtractArgs { image, .. })
            | Self::Collapse(CollapseArgs { image }) => image,
        }
    }
}

/// Arguments of `daxfs ls`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs ls model.daxfs\n  daxfs ls -l model.daxfs /onnx\n  daxfs ls -lR fd:3\n  \
    daxfs ls --json -R model.daxfs | jq -r '.entries[] | select(.size > 1000000) | .path'"
)]
pub struct LsArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Files and directories inside the image
    #[arg(default_value = "/")]
    pub paths: Vec<OsString>,
    /// Long form: mode, links, uid, gid, size, name and symlink target
    #[arg(short, long)]
    pub long: bool,
    /// Descend into directories
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Print JSON: {"entries": [...]}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs tree`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs tree model.daxfs\n  daxfs tree -L 2 model.daxfs /onnx")]
pub struct TreeArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Directory inside the image
    #[arg(default_value = "/")]
    pub path: OsString,
    /// Show only this many levels
    #[arg(short = 'L', long, value_name = "LEVELS", value_parser = clap::value_parser!(u32).range(1..))]
    pub depth: Option<u32>,
    /// Print sizes in bytes
    #[arg(short, long)]
    pub bytes: bool,
}

/// Arguments of `daxfs stat`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs stat model.daxfs /model.safetensors\n  daxfs stat --json -L model.daxfs /latest"
)]
pub struct StatArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Entries inside the image
    #[arg(default_value = "/")]
    pub paths: Vec<OsString>,
    /// Follow symbolic links, inside the image
    #[arg(short = 'L', long)]
    pub dereference: bool,
    /// Print JSON: {"entries": [...]}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs cat`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs cat model.daxfs /config.json\n  daxfs cat - a.bin b.bin < model.daxfs > ab.bin"
)]
pub struct CatArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Files inside the image; symbolic links are followed
    #[arg(required = true)]
    pub paths: Vec<OsString>,
}

/// Arguments of `daxfs inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs inspect model.daxfs\n  daxfs inspect --svg map.svg model.daxfs\n  \
    daxfs inspect --json model.daxfs | jq '[.files[].tensors[]? | select(.aligned | not)] | length'"
)]
pub struct InspectArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Show the tensors of these files or directories only
    pub paths: Vec<OsString>,
    /// Bytes to which a tensor must be aligned to count as aligned
    #[arg(long, value_name = "SIZE", value_parser = parse_alignment, default_value = "256")]
    pub align: u64,
    /// Print JSON with everything
    #[arg(long)]
    pub json: bool,
    /// Draw the memory map of the image into this file
    #[arg(long, value_name = "OUT.svg")]
    pub svg: Option<PathBuf>,
}

/// Arguments of `daxfs verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs verify model.daxfs\n  daxfs verify model.daxfs weights/\n  \
    daxfs verify --json fd:3 | jq .ok")]
pub struct VerifyArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Directory that the image was packed from
    pub dir: Option<PathBuf>,
    /// Accept safetensors files whose bytes differ from DIR when every tensor is equal (packed with
    /// --align-tensors)
    #[arg(long, requires = "dir")]
    pub realigned: bool,
    /// No progress bar and no summary; differences are still printed
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON: {"ok": ..., "differences": [...], ...}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs extract`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs extract model.daxfs weights/\n  daxfs extract --path /onnx model.daxfs onnx/"
)]
pub struct ExtractArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or - for standard input
    pub image: OsString,
    /// Directory to make
    pub dest: PathBuf,
    /// Extract this directory's contents, or this one file, instead of everything
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// Restore modes exactly, whatever the umask, with setuid, setgid and sticky bits (default for root,
    /// unless --no-owner is given)
    #[arg(short = 'p', long)]
    pub same_permissions: bool,
    /// Do not restore owners (only root does)
    #[arg(long)]
    pub no_owner: bool,
    /// Skip devices, FIFOs and sockets, instead of refusing the image
    #[arg(long)]
    pub skip_special: bool,
    /// No progress bar and no summary
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `daxfs collapse`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs collapse fd:3\n  daxfs collapse /dev/shm/model.daxfs")]
pub struct CollapseArgs {
    /// Image in memory: fd:N of a memfd, or a file in a tmpfs such as /dev/shm
    pub image: OsString,
}

/// Parses a size: digits with an optional K, M, G or T (1024-based; `KiB` and so on are understood too).
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => return Err(format!("unknown unit `{unit}`; use K, M, G or T")),
    };
    let count: u64 = digits.parse().map_err(|_| "not a size; write 4096, 64M or 2G".to_owned())?;
    count.checked_mul(1 << shift).ok_or_else(|| "larger than 16 EiB".to_owned())
}

/// Parses a power of two.
fn parse_alignment(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        align if align.is_power_of_two() => Ok(align),
        _ => Err("not a power of two".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert!(parse_size("").is_err());
        assert!(parse_size("-1").is_err());
        assert!(parse_size("1.5G").is_err());
        assert!(parse_size("3X").is_err());
        assert!(parse_size("99999999T").is_err());
        assert_eq!(parse_alignment("4K"), Ok(4096));
        assert!(parse_alignment("100").is_err());
        assert!(parse_alignment("0").is_err());
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let before = Cli::try_parse_from(["daxfs", "--strict", "ls", "a"]).unwrap();
        let after = Cli::try_parse_from(["daxfs", "ls", "a", "--strict", "--max-metadata", "1M"]).unwrap();
        assert!(before.source.strict && after.source.strict);
        assert_eq!(before.source.max_metadata, 512 << 20);
        assert_eq!(after.source.max_metadata, 1 << 20);
        assert_eq!(after.verb.image(), "a");
    }

    #[test]
    fn minus_is_an_image() {
        assert_eq!(Cli::try_parse_from(["daxfs", "ls", "-"]).unwrap().verb.image(), "-");
    }
}
