//! Verbs that look into an image.

use super::holder::SelectionArgs;
use super::run::{BundleArgs, RunArgs};
use super::vm::VmArgs;
use super::{parse_alignment, parse_sha256, parse_size};
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Verbs that open an image.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
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
    /// Show what a placement plan gives each of several GPUs of an image
    ///
    /// For each rank: bytes, the tensors that it has as a whole, and those of which it has a part: CONTIGUOUS ones,
    /// whose bytes also follow each other in the image, GATHERED ones, which are copied together, and STRIDED ones,
    /// views of the whole tensor. Rules that decide nothing are named. No GPU is needed.
    Place(PlaceArgs),
    /// Check an image, alone or against its source directory
    ///
    /// Alone: the rules of strict opening; the BLAKE3 hash of every file and of the whole contents, where the image
    /// has them; the tensor index against the headers of the safetensors files, in both directions; every file whose
    /// name promises tensors (cut short, empty, more behind its end, a pointer of git-lfs); and whether sharded
    /// checkpoints and numbered shards are complete.
    ///
    /// With DIR: types, modes, sizes, contents, symlink targets and hard links too, byte for byte, in both
    /// directions. Files whose tensors were moved, as packing does by default, are compared as they were. Owners and
    /// times are not compared. `/.daxfs` is ignored on both sides.
    Verify(VerifyArgs),
    /// Compare two images: which files and which tensors differ
    ///
    /// Files are compared as they were in their sources, by type, contents and where links lead; owners, modes and times
    /// are not looked at. Tensors are compared by name: type, shape and values, whatever files they lie in, so that a
    /// model that was sharded otherwise is the same. What both images have a hash of is not read; --verify=full
    /// proves the hashes first. Lines begin with - for what only the first image has, + for what only the second has, and
    /// ~ for what is not the same in both.
    Diff(DiffArgs),
    /// Unpack an image into a new directory
    ///
    /// Nothing is ever written outside DEST: every step is taken relative to an open directory, no symbolic link is
    /// followed, and nothing that exists is opened or replaced. DEST must not exist, or be an empty directory. More
    /// bytes than twice the image are refused unless --max-bytes allows them: files of an image can share its bytes.
    /// `/.daxfs`, the index that the packer adds, is not written. Files are written as they were in their source, also
    /// where packing moved their tensors.
    ///
    /// Run by root, owners and exact modes are restored, as tar does; run by others, the umask applies and
    /// setuid, setgid and sticky bits are dropped, unless --same-permissions is given.
    Extract(ExtractArgs),
    /// Push an image into a registry of containers
    ///
    /// The artifact has one layer, the image as it is, so that `daxfs load NAME oci://...` reads it by ranges on any
    /// machine. A layer that the registry has already is not sent again. Prints the address with the digest. Credentials
    /// are those of `docker login` or `podman login`.
    Push(PushArgs),
    /// Move an image that is in memory to huge pages
    ///
    /// The pages are moved for every process that maps the memory. The kernel needs no setting for this, but
    /// enough free memory that is not fragmented.
    Collapse(CollapseArgs),
    /// Mount an image as files, read-only
    ///
    /// In the first way that fits, which is said if it is not the best; --as takes one.
    ///
    /// kernel: by the kernel's own DAXFS (the module daxfs of multikernel.io), from the same memory, without a copy. It
    /// takes dma-bufs and physical ranges, so pack with `--into udmabuf` or `--into heap:NAME`, also in a holder, which
    /// packs folders so (`daxfs serve --into udmabuf`). Needs CAP_SYS_ADMIN. The image is checked strictly before, since
    /// on what is broken the kernel fails worse than by an error. An image with an overlay can be written there, and
    /// changes for all. Who can open anything in the mount of a dma-buf gets the whole memory, with the access that it was
    /// made with: where that is too much, mount below a directory that others cannot enter.
    ///
    /// fuse: by a process of this command, on every kernel and from every source; root is not needed where fusermount3
    /// is (package fuse3), nor in a user namespace. What is read is copied into the page cache once, so weights are better
    /// opened than mounted. The process goes into the background when the mount answers, and ends with it:
    /// `umount DIR` or `fusermount3 -u DIR` ends both, and so does SIGTERM.
    ///
    /// A split image is mounted with the file of its contents beside it: `daxfs --backing FILE mount IMAGE DIR`.
    Mount(MountArgs),
    /// Run a command in a container over an image
    ///
    /// The image is mounted as `daxfs mount` does it, and OverlayFS lies above it: what the command changes is kept in memory
    /// and goes with it, or stays in --upper DIR. Command, environment, user and working directory are those of the container
    /// image that was packed, where the command line does not say otherwise. The command sees its own processes, a minimal /dev
    /// and /sys read-only; it has the network of this machine unless --net none is given, and no pseudoterminal of its own.
    ///
    /// Root is not needed: others run it in a user namespace, where they are root, and with newuidmap (package uidmap) and
    /// ranges in /etc/subuid all other users are there, too. Nothing is left behind, however the container ends.
    ///
    /// This keeps apart what gets on with each other. It is no wall against programs that want to break out: system calls
    /// are not filtered, and no resources limited.
    Run(RunArgs),
    /// Make a bundle for OCI runtimes (crun, runc) over an image
    ///
    /// This command mounts: the image at DIR/image, and OverlayFS above it at DIR/rootfs, whose changes are kept in DIR/changes;
    /// with --read-only the image at DIR/rootfs and nothing else. DIR/config.json has the command, environment, user and working
    /// directory of the container image that was packed, where the command line does not say otherwise, and the
    /// capabilities of `daxfs run`. Any number of containers can be started from it, one after the other; at the same time they
    /// share what they change. Runtimes leave the mounts as they are: `umount DIR/rootfs DIR/image` takes them away.
    ///
    /// Bundles of one image share its pages, as containers of `daxfs run` do. It takes root, or a user namespace with a
    /// mount namespace, in which the runtime is started, too; the bundle is made for the one that it is made in.
    Bundle(BundleArgs),
    /// Print the options that give an image to a virtual machine as memory
    ///
    /// The guest reads the host's pages: however many guests there are, the image is in memory once. They cannot write it.
    /// One word is printed on each line, so that `$(daxfs vm-args IMAGE)` fits into a command line; with a command behind
    /// -- that is run instead, with the options behind its own, which also works for memory without a path.
    VmArgs(VmArgs),
}

impl ImageVerb {
    /// Whether no progress is to be shown.
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::Verify(VerifyArgs { quiet, .. })
            | Self::Extract(ExtractArgs { quiet, .. })
            | Self::Push(PushArgs { quiet, .. })
            | Self::Diff(DiffArgs { quiet, .. }) => *quiet,
            _ => false,
        }
    }

    /// The image that the verb works on.
    pub fn image(&self) -> &OsStr {
        match self {
            Self::Ls(LsArgs { image, .. })
            | Self::Tree(TreeArgs { image, .. })
            | Self::Stat(StatArgs { image, .. })
            | Self::Cat(CatArgs { image, .. })
            | Self::Inspect(InspectArgs { image, .. })
            | Self::Place(PlaceArgs { image, .. })
            | Self::Diff(DiffArgs { image, .. })
            | Self::Verify(VerifyArgs { image, .. })
            | Self::Extract(ExtractArgs { image, .. })
            | Self::Push(PushArgs { image, .. })
            | Self::Collapse(CollapseArgs { image })
            | Self::Mount(MountArgs { image, .. })
            | Self::Run(RunArgs { image, .. })
            | Self::Bundle(BundleArgs { image, .. })
            | Self::VmArgs(VmArgs { image, .. }) => image,
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
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
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

/// Arguments of `daxfs diff`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs diff llama-3.daxfs llama-3.1.daxfs\n  \
    daxfs diff --tensors /model.safetensors base.daxfs tuned.daxfs\n  \
    daxfs diff --brief daxfs://llama llama.daxfs || daxfs swap llama llama.daxfs\n\n\
    Exit status: 0 when they are the same, 1 when they differ, 2 on errors.")]
pub struct DiffArgs {
    /// First image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Second image
    pub other: OsString,
    /// File, checkpoint or directory whose tensors are compared [default: those of the whole image]
    #[arg(long, value_name = "PATH")]
    pub tensors: Option<OsString>,
    /// Print nothing; the exit status says whether they differ
    #[arg(long, conflicts_with = "json")]
    pub brief: bool,
    /// Print JSON: {"files": [...], "tensors": [...], "same": ...}
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `daxfs place`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs place plan.json model.daxfs\n  \
    daxfs place --json plan.json daxfs://llama | jq '.ranks[].size'")]
pub struct PlaceArgs {
    /// The plan, a JSON file
    pub plan: PathBuf,
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Print JSON: {"size": ..., "ranks": [{"rank": ..., "size": ..., "placement": ..., "whole": ...,
    /// "contiguous": ..., "gathered": ..., "strided": ..., "files": ...}], "strided": [{"tensor": ..., "file": ...,
    /// "shape": ..., "dim": ..., "size": ...}], "unused_rules": [...]}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs tree`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs tree model.daxfs\n  daxfs tree -L 2 model.daxfs /onnx")]
pub struct TreeArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
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
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
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
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Files inside the image; symbolic links are followed
    #[arg(required = true)]
    pub paths: Vec<OsString>,
    /// Write the bytes that the files had in their source, where the packer moved tensors
    #[arg(long)]
    pub original: bool,
}

/// Arguments of `daxfs inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs inspect model.daxfs\n  daxfs inspect --svg map.svg model.daxfs\n  \
    daxfs inspect --json model.daxfs | jq '[.files[].tensors[]? | select(.aligned | not)] | length'"
)]
pub struct InspectArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Show the tensors of these files or directories only
    pub paths: Vec<OsString>,
    /// Bytes to which a tensor must be aligned to count as aligned
    #[arg(long, value_name = "SIZE", value_parser = parse_alignment, default_value = "256")]
    pub align: u64,
    /// Print JSON with everything
    #[arg(long)]
    pub json: bool,
    /// Show the tensors of this variant only, such as fp16: of the set that a directory (the first path, else the
    /// image) has of it
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Draw the memory map of the image into this file
    #[arg(long, value_name = "OUT.svg")]
    pub svg: Option<PathBuf>,
}

/// Arguments of `daxfs verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs verify model.daxfs\n  daxfs verify model.daxfs weights/\n  \
    daxfs verify --json fd:3 | jq .ok")]
pub struct VerifyArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Directory that the image was packed from
    pub dir: Option<PathBuf>,
    /// What was packed of the directory: what the packer with these options leaves out is not a difference.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Compare the SHA-256 of a file's original bytes with one that was published, in 64 hexadecimal digits; can be
    /// given several times
    #[arg(long, value_name = "PATH=HEX", value_parser = parse_sha256)]
    pub sha256: Vec<(OsString, [u8; 32])>,
    /// The same for a list as sha256sum(1) writes it, whose paths are relative to the root of the image
    #[arg(long, value_name = "FILE")]
    pub sha256sums: Option<PathBuf>,
    /// Check that one of the keys in FILE (public keys of minisign, or on P-256 in PEM, as cosign's) has signed the
    /// content, or the digests of all files, where the image has a model.sig of OpenSSF model signing
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The signature: a file of minisign or an OCI image layout; by default IMAGE.minisig and IMAGE.cosign, for the
    /// image of a holder what it has
    #[arg(long, value_name = "FILE", requires = "key")]
    pub signature: Option<PathBuf>,
    /// No progress bar and no summary; differences are still printed
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON: {"ok": ..., "differences": [...], ...}
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs push`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  daxfs push llama.daxfs oci://registry.example/models/llama:v1")]
pub struct PushArgs {
    /// Image: a path, /dev/daxX.Y, fd:N or daxfs://NAME
    pub image: OsString,
    /// Where to: oci://REGISTRY/REPOSITORY:TAG
    pub address: OsString,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `daxfs extract`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs extract model.daxfs weights/\n  daxfs extract --path /onnx model.daxfs onnx/"
)]
pub struct ExtractArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
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
    /// Write files as they lie in the image, tensors aligned, instead of as they were in their source
    #[arg(long)]
    pub as_stored: bool,
    /// Skip devices, FIFOs and sockets, instead of refusing the image
    #[arg(long)]
    pub skip_special: bool,
    /// Most bytes to write, such as 64M or 2G (1024-based); by default twice the image, which files that share data
    /// can exceed
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_bytes: Option<u64>,
    /// No progress bar and no summary
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `daxfs mount`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs-pack weights/ --into udmabuf -- sh -c 'daxfs mount $DAXFS_IMAGE /mnt/model'\n  \
                  daxfs mount daxfs://llama /mnt/llama\n  daxfs mount phys:0x8000000+64M /mnt/model\n  \
                  daxfs mount --compat-check model.daxfs    # by which kernels, and how\n  \
                  daxfs mount --as fuse -o allow_other,nodev root.daxfs /srv/root\n  \
                  mount -t fuse.daxfs root.daxfs /srv/root -o expect=blake3:...    # with the helper, also in fstab"
)]
pub struct MountArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Directory to mount it at
    #[arg(required_unless_present = "compat_check", conflicts_with = "compat_check")]
    pub dir: Option<PathBuf>,
    /// Way to mount it; by default the first that fits
    #[arg(long = "as", value_name = "WAY", value_enum)]
    pub way: Option<MountWay>,
    /// Options as mount(8) has them, separated by commas: allow_other (all users, as the modes say), allow_root,
    /// auto_unmount, follow (what the source means now, when it means another image), uid=N, gid=N (of all files),
    /// threads=N, fsname=NAME, suid, dev, noexec, context=...; and as=, backing=, expect=, verify=, max_metadata=, strict,
    /// sealed_copy, the flags of that name. What is for mount(8) alone is ignored
    #[arg(short, long, value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Stay in the foreground until the mount is taken away
    #[arg(short, long)]
    pub foreground: bool,
    /// Mount nothing: say which kernels can mount the image and how, and what would be chosen here and why
    #[arg(long)]
    pub compat_check: bool,
    /// Print what --compat-check says as JSON
    #[arg(long, requires = "compat_check", conflicts_with = "dir")]
    pub json: bool,
}

/// Ways to mount an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MountWay {
    /// The kernel's own DAXFS, from the same memory
    Kernel,
    /// The kernel's EROFS, of an image with its view, in a file or a memfd
    Erofs,
    /// A process that answers the kernel, with a copy of what is read in the page cache
    Fuse,
}

/// Arguments of `daxfs collapse`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs collapse fd:3\n  daxfs collapse /dev/shm/model.daxfs")]
pub struct CollapseArgs {
    /// Image in memory: fd:N of a memfd, or a file in a tmpfs such as /dev/shm
    pub image: OsString,
}
