//! The command line of `daxfs-pack`, and what its words mean.

use crate::{Error, Format, HugePages, Limits, Links, Memory, Overlay, Packer, Platform, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Pack files into a DAXFS image: a read-only tree that programs map and share, without a copy.
///
/// A single directory becomes the root of the image. A single file, and each of several inputs, lies in the root
/// under its base name. Symbolic links given as INPUT are followed; of links below them, --links says what becomes.
///
/// A container image or an archive is an INPUT, too, and becomes the root of the image: `oci:DIR[:TAG]` (an OCI image
/// layout; also `oci:DIR@DIGEST`), `oci://REGISTRY/REPOSITORY[:TAG]`, `docker-archive:FILE[:NAME]` (of docker save, podman
/// save), `tar:FILE`. FILE may be compressed by gzip or zstd, a pipe, or `-`, standard input.
///
/// So is a tree of files that lies elsewhere: a repository of a hub of models, `hf://ORG/NAME[@REVISION]`, or a folder of
/// a store, which ends with a slash, `s3://BUCKET/FOLDER/` (also gs, az). The program daxfs-remote fetches it, and images of
/// registries, into TMPDIR (/var/tmp) first.
#[derive(Debug, Parser)]
#[command(name = "daxfs-pack", version, max_term_width = 100)]
pub(super) struct Args {
    /// Directories and files to pack, or one container image, archive or tree that lies elsewhere.
    #[arg(required_unless_present = "empty", value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,

    /// File to write; by default the input's name with `.daxfs`, in the current directory. It appears when it is
    /// complete and replaces an older one.
    #[arg(short, long, value_name = "FILE", conflicts_with = "into")]
    pub output: Option<PathBuf>,

    /// Write into memory: `memfd`, `udmabuf`, `heap:NAME` (a dma-heap), `/dev/daxX.Y[@OFFSET]`, a PCI device's
    /// `/sys/bus/pci/devices/D/resourceN[@OFFSET]`, `phys:ADDRESS+LENGTH`, `fd:N`, or the path of a file that stands
    /// for memory. The first three are new memory and need a COMMAND.
    #[arg(long, value_name = "MEMORY")]
    pub into: Option<OsString>,

    /// Files of at least SIZE start on a multiple of it, all others on a block boundary.
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = parse_size)]
    pub align: u64,

    /// What the tensors of safetensors files are moved to multiples of: 256 by default, `page` for this machine's pages.
    /// Where one lies elsewhere the file's header is padded, and filler tensors named __daxfs_pad_N are added where
    /// needed. The index keeps what is needed to write the source's exact bytes again: `daxfs extract`,
    /// `daxfs cat --original`. A file whose tensors were moved is copied where others are cloned.
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = "256")]
    #[arg(value_parser = parse_size_or_page)]
    pub align_tensors: Option<u64>,

    /// Pack all files byte for byte: no tensor is moved, and file systems that can clone all files.
    #[arg(long)]
    pub exact: bool,

    /// Leave SIZE of room behind the files for what kernels that mount the image write: new and changed files. A small
    /// new file takes about 8 KiB. BUCKETS is the size of the hash table over it, a power of two; by default four for
    /// each block of SIZE. Without it an image is mounted read-only.
    #[arg(long, value_name = "SIZE[,BUCKETS]", value_parser = parse_overlay)]
    pub overlay: Option<Overlay>,

    /// Make an image without files, to be mounted and written to. Needs --overlay.
    #[arg(long, conflicts_with = "inputs", requires = "overlay")]
    pub empty: bool,

    /// Put what is in the files into the file BACKING, and only names and metadata into the image. Readers take both:
    /// `daxfs --backing BACKING`, `daxfs mount --backing BACKING`.
    #[arg(long, value_name = "BACKING", conflicts_with = "empty")]
    pub split: Option<PathBuf>,

    /// Store files with the same contents once.
    #[arg(long)]
    pub dedupe: bool,

    /// Symbolic links below an INPUT. `auto`: kept where they lead to something that is packed (absolute ones as if the
    /// root of the image were /), followed where they lead out of it, kept with a warning where they lead nowhere.
    /// `keep`, `follow`: all of them. `refuse`: an error.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_links())]
    pub links: Links,

    /// Which of the container images for several machines is packed: linux/amd64, linux/arm64/v8 and the like. By default
    /// the one for this machine, or the only one.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,

    /// How much of WHAT a container image or archive may have: `ratio`, bytes that come out for each byte that goes in,
    /// 200 by default, and 64 MiB in any case; `members` of all its archives, 8M by default; `bytes` of them, 1T by
    /// default. May be given several times.
    #[arg(long, value_name = "WHAT=N", value_parser = parse_limit)]
    pub limit: Vec<Limit>,

    /// Leave out what GLOB matches, by the rules of gitignore: `*.bin` everywhere, `/original/` the directory at the
    /// root, `!keep.bin` takes back. May be given several times.
    #[arg(long, value_name = "GLOB", allow_hyphen_values = true)]
    pub exclude: Vec<String>,

    /// Pack only what GLOB matches, and all in a directory that it matches, less what --exclude leaves out. May be
    /// given several times.
    #[arg(long, value_name = "GLOB", allow_hyphen_values = true)]
    pub include: Vec<String>,

    /// In directories with safetensors files, leave out other forms of the same weights (.bin and .pth twins,
    /// original/, onnx/ and the like) and the state of a training; everywhere, what downloads leave.
    #[arg(long)]
    pub weights_only: bool,

    /// Turn fs-verity on before the file gets its name: nobody can write it any more, and the kernel compares what is read
    /// of it with a digest, which the summary shows. `--expect fsverity:DIGEST` then takes this file and no other, without
    /// reading it. For ext4 (made with -O verity), btrfs and f2fs.
    #[arg(long, conflicts_with = "into")]
    pub fsverity: bool,

    /// Permissions of the file, in octal; by default it is readable by no more people than all its sources are, by their
    /// own permissions and those of the directories in the tree and around it.
    #[arg(long, value_name = "OCTAL", value_parser = parse_mode, conflicts_with = "into")]
    pub mode: Option<u32>,

    /// Have it an error where the image can have no EROFS view. By default every image gets one that can: a second file
    /// system over the same data blocks (/.daxfs/erofs, about 77 bytes a file), by which every stock Linux mounts it
    /// without a module, from a file, through a loop device, and in place on persistent memory. There is none with
    /// --plain, --overlay, --split and --empty.
    #[arg(long, conflicts_with_all = ["plain", "no_erofs"])]
    pub erofs: bool,

    /// Leave the EROFS view out.
    #[arg(long)]
    pub no_erofs: bool,

    /// Times in the EROFS view: `keep` those at which the sources were modified; with `none` the same contents give the
    /// same image, and all times are 1970.
    #[arg(long, value_name = "WHICH", value_enum, default_value = "none")]
    pub mtimes: Times,

    /// Leave FIFOs, sockets and devices out instead of refusing them.
    #[arg(long)]
    pub skip_special: bool,

    /// Pack the source and nothing else: no index of the tensors, no hashes. Without an index moved tensors could not be
    /// moved back, so files are packed as with --exact.
    #[arg(long)]
    pub plain: bool,

    /// Put BLAKE3 hashes of all files and of the whole into the index. By default for what stays, files and devices;
    /// not for new memory, since hashing takes as long as packing into it.
    #[arg(long, conflicts_with = "plain")]
    pub hash: bool,

    /// Leave the hashes out.
    #[arg(long, conflicts_with = "hash")]
    pub no_hash: bool,

    /// Sign the content hash with this secret key: one of minisign (`minisign -G`) into FILE.minisig beside the image,
    /// one on P-256 in PEM (`openssl genpkey`) as cosign does, into the OCI image layout FILE.cosign. `daxfs verify
    /// --key` checks it, and a holder with `--require-signed` takes nothing else.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["into", "plain", "no_hash"])]
    pub sign: Option<PathBuf>,

    /// File whose first line is the password of KEY, one of minisign; without it the terminal is asked.
    #[arg(long, value_name = "FILE", requires = "sign")]
    pub password_file: Option<PathBuf>,

    /// Pages of the memory; `auto` asks for huge pages and takes what there is, but for a udmabuf, which then is of
    /// ordinary pages. `2M` and `1G` come from the hugetlb pool. For memfd, udmabuf and files on a tmpfs.
    #[arg(long, value_name = "KIND", value_enum)]
    pub hugepages: Option<Pages>,

    /// Version of the format.
    #[arg(long, value_name = "VERSION", default_value = "8", value_parser = ["8", "5"])]
    pub format: String,

    /// Page size of the machine that will mount the image: 4096, 16K or 64K, or `page` for this one's.
    #[arg(long, value_name = "SIZE", default_value = "4096", value_parser = parse_size_or_page)]
    pub block_size: u64,

    /// NUMA node that new memory lies on: for memfd, udmabuf and heap:system. For memfd and udmabuf
    /// the summary says where it is.
    #[arg(long, value_name = "NODE", requires = "into")]
    pub numa: Option<u32>,

    /// Replace the image that a device holds, or held. Readers of the old one keep its bytes if both fit, and notice
    /// in any case (is_current, refresh).
    #[arg(long, requires = "into")]
    pub replace: bool,

    /// Do not wait until the image is on the disk.
    #[arg(long)]
    pub no_sync: bool,

    /// Threads that read and copy; by default as many as there are processors.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,

    /// Open the finished image and compare it with its source, byte for byte.
    #[arg(long)]
    pub verify: bool,

    /// Print nothing but errors.
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,

    /// Print the summary as JSON.
    #[arg(long)]
    pub json: bool,

    /// Run COMMAND when the image is in memory. It inherits the descriptor: DAXFS_FD holds its number, DAXFS_IMAGE
    /// what `daxfs` and `daxfs.open` take (fd:N). The summary goes to standard error then.
    #[arg(last = true, value_name = "COMMAND", requires = "into")]
    pub command: Vec<OsString>,
}

/// A bound of `--limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Ratio(u64),
    Members(u64),
    Bytes(u64),
}

/// Values of `--hugepages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Pages {
    /// Huge pages where the kernel gives them
    Auto,
    /// Ordinary pages
    No,
    /// Transparent huge pages, of 2 MiB on most machines; a warning when there are none
    Thp,
    /// Pages of 2 MiB from the hugetlb pool
    #[value(name = "2M")]
    Hugetlb2M,
    /// Pages of 1 GiB from the hugetlb pool
    #[value(name = "1G")]
    Hugetlb1G,
}

/// Values of `--mtimes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Times {
    /// Those of the sources
    Keep,
    /// None: 0
    None,
}

impl From<Pages> for HugePages {
    fn from(pages: Pages) -> HugePages {
        match pages {
            Pages::Auto => HugePages::Auto,
            Pages::No => HugePages::No,
            Pages::Thp => HugePages::Thp,
            Pages::Hugetlb2M => HugePages::Hugetlb2M,
            Pages::Hugetlb1G => HugePages::Hugetlb1G,
        }
    }
}

impl Args {
    /// The settings as a packer, without progress.
    pub(super) fn packer(&self, memory: Option<&Memory>) -> Result<Packer> {
        let block_size = u32::try_from(self.block_size).map_err(|_| Error::Setting {
            option: "--block-size",
            why: format!("{} is too large", self.block_size),
        })?;
        let mut packer = Packer::new()
            .align(self.align)
            .tensor_alignment(self.align_tensors)
            .exact(self.exact)
            .dedupe(self.dedupe)
            .overlay(self.overlay)
            .empty(self.empty)
            .split(self.split.clone())
            .skip_special(self.skip_special)
            .links(self.links)
            .platform(self.platform.clone())
            .limits(self.limits())
            .weights_only(self.weights_only)
            .mode(self.mode)
            .plain(self.plain)
            .hash(self.hash || !self.no_hash && !memory.is_some_and(Memory::is_new))
            .format(if self.format == "5" { Format::V5 } else { Format::V8 })
            .block_size(block_size)
            .replace(self.replace)
            .sync(!self.no_sync)
            .fsverity(self.fsverity)
            .huge_pages(self.huge_pages())
            .numa(self.numa)
            .verify(self.verify);
        if let Some(threads) = self.threads {
            packer = packer.threads(threads);
        }
        if self.erofs || self.no_erofs {
            packer = packer.erofs(self.erofs);
        }
        let packer = packer.mtimes(self.mtimes == Times::Keep);
        let packer = self.exclude.iter().fold(packer, Packer::exclude);
        let packer = self.include.iter().fold(packer, Packer::include);
        Ok(self.inputs.iter().fold(packer, |packer, input| packer.input(input)))
    }

    fn limits(&self) -> Limits {
        self.limit.iter().fold(Limits::default(), |limits, limit| match *limit {
            Limit::Ratio(ratio) => Limits { ratio, ..limits },
            Limit::Members(members) => Limits { members, ..limits },
            Limit::Bytes(bytes) => Limits { bytes, ..limits },
        })
    }

    fn huge_pages(&self) -> HugePages {
        self.hugepages.map_or(HugePages::Auto, HugePages::from)
    }

    /// The memory to write into, after checking that the options around it make sense. `None`: a file.
    pub(super) fn memory(&self) -> Result<Option<Memory>> {
        let refuse = |option, why: &str| Err(Error::Setting { option, why: why.to_owned() });
        let Some(target) = &self.into else { return Ok(None) };
        let memory = Memory::parse(target, self.huge_pages())?;
        let is_device = !memory.is_new();
        if self.command.is_empty() && !is_device {
            return refuse(
                "--into",
                "without a COMMAND the memory would be gone at once; add `-- COMMAND...`",
            );
        }
        if self.replace && !is_device {
            return refuse("--replace", "is for devices; other memory is new");
        }
        if self.no_sync && !is_device {
            return refuse("--no-sync", "is for files and devices");
        }
        if self.hugepages.is_some() && !matches!(memory, Memory::Memfd(_) | Memory::Udmabuf) {
            return refuse("--hugepages", "is for memfd, udmabuf and files on a tmpfs");
        }
        if self.numa.is_some() {
            memory.check_node()?;
        }
        Ok(Some(memory))
    }

    /// The file to write when it is not memory.
    pub(super) fn file(&self) -> Result<PathBuf> {
        let refuse = |why: &str| Error::Setting { option: "--output", why: why.to_owned() };
        if let Some(path) = &self.output {
            return match path.as_os_str().as_bytes() {
                b"-" => Err(refuse("an image cannot be written to standard output; name a file")),
                _ => Ok(path.clone()),
            };
        }
        let [input] = &self.inputs[..] else {
            let why = if self.empty {
                "an empty image has no name of an input"
            } else {
                "several inputs have no name in common"
            };
            return Err(refuse(&format!("{why}; name the file")));
        };
        let mut name = crate::scan::base_name(input)?;
        name.push(".daxfs");
        Ok(PathBuf::from(name))
    }
}

/// A [`Links`], with its names for the help.
fn parse_links() -> impl TypedValueParser<Value = Links> {
    PossibleValuesParser::new(Links::NAMES.map(|(name, _)| name)).try_map(|name| name.parse())
}

fn parse_mode(text: &str) -> std::result::Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permissions are octal digits up to 777, such as 0640".to_owned()),
    }
}

/// A number of bytes: digits and a suffix K, M, G or T (powers of 1024), or KiB and so on.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("a size is a number with K, M, G or T behind it, such as 64K or 2M".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a number below 2^64".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "a size is below 2^64 bytes".to_owned())
}

/// `WHAT=N`.
fn parse_limit(text: &str) -> std::result::Result<Limit, String> {
    let (what, number) = text.split_once('=').unwrap_or((text, ""));
    let limit = match what {
        "ratio" => Limit::Ratio,
        "members" => Limit::Members,
        "bytes" => Limit::Bytes,
        _ => return Err("a limit is ratio=N, members=N or bytes=N".to_owned()),
    };
    parse_size(number).map(limit)
}

/// `SIZE` or `SIZE,BUCKETS`.
fn parse_overlay(text: &str) -> std::result::Result<Overlay, String> {
    let (size, buckets) = match text.split_once(',') {
        None => (text, None),
        Some((size, buckets)) => {
            let wrong = |_| "BUCKETS is a power of two, such as 65536".to_owned();
            (size, Some(buckets.parse().map_err(wrong)?))
        }
    };
    let overlay = Overlay { size: parse_size(size)?, buckets };
    match overlay.check() {
        Ok(()) => Ok(overlay),
        Err(Error::Setting { why, .. }) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}

/// A number of bytes, or `page`.
fn parse_size_or_page(text: &str) -> std::result::Result<u64, String> {
    if text == "page" { Ok(dmabuf::page_size()) } else { parse_size(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("daxfs-pack").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64K", 65536), ("2m", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for text in ["", "K", "2X", "1.5M", "-1", "18446744073709551616", "16777216T", "2 M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn targets() {
        let parse = |text: &str| Memory::parse(text.as_ref(), HugePages::No);
        assert_eq!(parse("heap:linux,cma").unwrap(), Memory::Heap("linux,cma".into()));
        assert_eq!(parse("memfd").unwrap(), Memory::Memfd(HugePages::No));
        assert_eq!(parse("./region").unwrap(), Memory::Device(PathBuf::from("./region").into()));
        for text in ["/dev/dax0.0", "/dev/dax0.0@0x200000", "phys:0x8000000+0x4000000", "fd:3"] {
            let memory = parse(text).unwrap();
            assert!(matches!(memory, Memory::Device(_)) && memory.to_string() == text, "{memory}");
        }
        for text in ["", "heap:", "memfds", "dax0.0", "-", "/dev/dax0.0@1", "phys:1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_alignment_of_tensors_takes_an_optional_value() {
        assert_eq!(parse("dir").unwrap().align_tensors, None);
        let args = parse("--align-tensors dir").unwrap();
        assert_eq!((args.align_tensors, args.inputs), (Some(256), vec![PathBuf::from("dir")]));
        assert_eq!(parse("--align-tensors=2M dir").unwrap().align_tensors, Some(2 << 20));
        let page = Some(dmabuf::page_size());
        assert_eq!(parse("--align-tensors=page dir").unwrap().align_tensors, page);
    }

    #[test]
    fn limits_of_images() {
        let args = parse("--limit ratio=1000 --limit bytes=2T --platform linux/arm64 oci:a:b").unwrap();
        assert_eq!(args.limits(), Limits { ratio: 1000, bytes: 2 << 40, ..Limits::default() });
        assert_eq!(args.platform, "linux/arm64".parse().ok());
        for line in [
            "--limit ratio oci:a",
            "--limit files=1 oci:a",
            "--limit ratio=x oci:a",
            "--platform amd64 oci:a",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn overlays() {
        let overlay = |text: &str| parse(&format!("--overlay {text} dir")).map(|args| args.overlay.unwrap());
        assert_eq!(overlay("64M").unwrap(), Overlay { size: 64 << 20, buckets: None });
        assert_eq!(overlay("1G,4096").unwrap(), Overlay { size: 1 << 30, buckets: Some(4096) });
        for text in ["0", "1M,", "1M,3", "1M,0", "M", "1M,65536,1"] {
            assert!(overlay(text).is_err(), "{text}");
        }
        assert!(parse("--empty --overlay 1M -o x").unwrap().inputs.is_empty());
    }

    #[test]
    fn options_that_would_do_nothing_are_refused() {
        for line in [
            "--empty -o x",
            "--empty --overlay 1M -o x dir",
            "--empty --overlay 1M --split b -o x",
            "dir --replace",
            "dir -- cat",
            "dir -o x --into memfd -- cat",
            "--format 7 dir",
            "",
            "-q --json dir",
            "dir --sign k --plain",
            "dir --sign k --no-hash",
            "dir --sign k --into memfd -- cat",
            "dir --password-file p",
            "dir --erofs --no-erofs",
            "dir --erofs --plain",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in [
            "dir --into memfd",
            "dir --into memfd --replace -- cat",
            "dir --into heap:system --hugepages thp -- cat",
            "dir --into memfd --no-sync -- cat",
            "dir --into /dev/dax0.0 --numa 0",
            "dir --into nonsense",
        ] {
            let error = parse(line).unwrap().memory().unwrap_err();
            assert!(matches!(error, Error::Setting { .. }), "{line}: {error}");
        }
        let memory = parse("dir --into memfd --hugepages 2M -- cat -n").unwrap().memory().unwrap();
        assert_eq!(memory, Some(Memory::Memfd(HugePages::Hugetlb2M)));
    }

    #[test]
    fn the_default_output_is_named_after_the_input() {
        assert_eq!(parse("a/weights/").unwrap().file().unwrap(), PathBuf::from("weights.daxfs"));
        assert_eq!(parse("m.safetensors").unwrap().file().unwrap(), PathBuf::from("m.safetensors.daxfs"));
        assert_eq!(parse("oci:a/debian:12").unwrap().file().unwrap(), PathBuf::from("debian.daxfs"));
        assert_eq!(parse("tar:root.tar.gz").unwrap().file().unwrap(), PathBuf::from("root.daxfs"));
        assert!(parse("tar:-").unwrap().file().is_err());
        assert!(parse("a b").unwrap().file().is_err());
        assert!(parse("a -o -").unwrap().file().is_err());
    }
}
