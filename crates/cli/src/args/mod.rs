//! The command line: every verb, flag and help text.

mod holder;
mod image;
mod run;
mod socket;
mod upload;
mod vm;

pub use holder::{
    AccessArgs, DropArgs, HealthArgs, HolderVerb, LoadArgs, Log, NamedSource, PsArgs, ServeArgs, StopArgs,
};
pub use image::{
    CatArgs, CollapseArgs, DiffArgs, ExtractArgs, ImageVerb, InspectArgs, LsArgs, MountArgs, MountWay,
    PlaceArgs, PushArgs, StatArgs, TreeArgs, VerifyArgs,
};
pub use run::{Bind, BundleArgs, Network, ProgramArgs, RunArgs};
pub use socket::SocketArgs;
pub use upload::{Gpu, UploadArgs};
pub use vm::{Device, VmArgs, Vmm};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use daxfs::{ContentHash, Verify, VerityDigest};
use daxfs_protocol::Hex;
use std::ffi::OsString;
use std::path::PathBuf;

const SOURCES: &str = "\
Sources:
  model.daxfs    a file, on disk or in a tmpfs
  /dev/dax0.0    a devdax device; /dev/dax0.0@2G+64M is a part of it
  /sys/bus/pci/devices/0000:00:04.0/resource2
                 the memory of a PCI device; its directory stands for the largest
  phys:0x8000000+64M
                 a physical range, through /dev/mem
  /mnt/model     the root of a mounted DAXFS: the memory behind it
  fd:3           a descriptor that this process inherited: a memfd, a dma-buf, a file
  -              standard input, when it is a file or a memfd (a pipe cannot be mapped)
  daxfs://llama  an image that a holder (daxfs serve) keeps; its socket is $DAXFS_SOCKET, else
                 $XDG_RUNTIME_DIR/daxfs.sock, else /run/daxfs.sock
  daxfs+unix:///path/to.sock/llama
                 the same, at that socket
What can be followed by @OFFSET is a device or fd:N. `daxfs sources` lists what is there.
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
  daxfs serve llama=weights/ & daxfs health --wait 60 && daxfs ls daxfs://llama
  daxfs-pack weights/ --into memfd -- sh -c 'daxfs tree $DAXFS_IMAGE'";

/// Look into DAXFS images, and keep them in memory for other processes.
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

/// How images are opened; the same for every verb that opens one.
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

    /// Refuse an image whose content hash is another one: `blake3:` and 64 hexadecimal digits; or one that is not in a
    /// file with this digest of fs-verity, without reading it: `fsverity:sha256:` and 64 digits
    #[arg(long, global = true, value_name = "HASH", value_parser = parse_expect)]
    pub expect: Option<Expect>,

    /// Which files are compared with the hashes that the content hash is made of. full, or no value: all, when the image
    /// is opened; lazy: each at its first use; stored: none. By default full with --expect, but for what a holder has
    /// sealed and hashed; else stored
    #[arg(long, global = true, value_name = "WHEN", value_parser = parse_verify())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "full")]
    pub verify: Option<Verify>,

    /// Most metadata to copy when opening, such as 64M or 2G (1024-based)
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, default_value = "512M")]
    pub max_metadata: u64,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Those that open an image.
    #[command(flatten)]
    Image(ImageVerb),
    /// Those of the holder.
    #[command(flatten)]
    Holder(HolderVerb),
    /// List the shareable memory of this machine, and what is missing for the rest
    ///
    /// Memfds, udmabuf and its limits, dma-heaps, devdax devices, memory of PCI devices, physical memory, mounted
    /// DAXFS, render nodes, GPUs, and the holder. USABLE says whether this process can open it now.
    Sources(SourcesArgs),
    /// Write the manual pages
    ///
    /// One page for each verb, and those of daxfs-pack. Read one with `man DIR/daxfs-serve.1`.
    Man(ManArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Arguments of `daxfs sources`.
#[derive(Debug, Args)]
pub struct SourcesArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `daxfs man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Directory to write into; it is made if it is not there
    pub dir: PathBuf,
}

/// Arguments of `daxfs completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs completions bash > ~/.local/share/bash-completion/completions/daxfs\n  \
    daxfs completions zsh --program daxfs-pack > ~/.zfunc/_daxfs-pack"
)]
pub struct CompletionsArgs {
    /// Shell that reads the script
    pub shell: clap_complete::Shell,
    /// Command that is completed
    #[arg(long, value_enum, default_value_t = Program::Daxfs)]
    pub program: Program,
}

/// Commands that have completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// This command
    Daxfs,
    /// The packer
    DaxfsPack,
}

impl Cli {
    /// Reads a command line. The flags that say how an image is opened are refused where none is opened.
    ///
    /// # Errors
    /// A wrong command line, or a request for help or the version; see [`clap::Error::exit_code`].
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let cli = Self::from_arg_matches(&command.try_get_matches_from_mut(args)?)
            .map_err(|error| error.format(&mut command))?;
        let source = &cli.source;
        let takes_expect = matches!(
            cli.verb,
            Verb::Holder(HolderVerb::Load(_) | HolderVerb::Swap(_) | HolderVerb::Upload(_))
        );
        let wrong_verify = match (&cli.verb, source.verify) {
            (Verb::Image(ImageVerb::Verify(_)), Some(_)) => {
                Some("daxfs verify compares every file, whatever --verify says; leave it out")
            }
            (Verb::Holder(HolderVerb::Upload(_)), Some(Verify::Lazy | Verify::Stored)) => {
                Some("a copy is compared as a whole: --verify without a value")
            }
            _ => None,
        };
        if let Some(text) = wrong_verify {
            return Err(command.error(ErrorKind::ArgumentConflict, text));
        }
        let takes_verify = matches!(cli.verb, Verb::Holder(HolderVerb::Upload(_)));
        let given = [
            ("--expect", source.expect.is_some() && !(takes_expect && source.content().is_some())),
            ("--verify", source.verify.is_some() && !takes_verify),
            ("--backing", source.backing.is_some()),
            ("--strict", source.strict),
            ("--sealed-copy", source.sealed_copy),
            ("--max-metadata", source.max_metadata != daxfs::DEFAULT_MAX_METADATA),
        ];
        match (&cli.verb, given.into_iter().find(|(_, given)| *given)) {
            (Verb::Image(_), _) | (_, None) => Ok(cli),
            (_, Some((flag, _))) => {
                let text = format!("{flag} is for the verbs that open an image");
                Err(command.error(ErrorKind::ArgumentConflict, text))
            }
        }
    }
}

/// The definition of the command, for parsing, manual pages and completions.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    let global: Vec<clap::Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for verb in verbs.iter().filter(|verb| !ImageVerb::has_subcommand(verb)) {
        // What a verb has of its own is not handed down to it. So the flags that it refuses are not shown.
        let takes_expect = ["load", "swap", "upload"].contains(&verb.as_str());
        let refused = global.iter().filter(|arg| !(takes_expect && arg.get_id() == "expect"));
        let own = refused.map(|arg| match verb.as_str() {
            "upload" if arg.get_id() == "verify" => arg
                .clone()
                .help("Compare the copy with the image, also one that is there already")
                .long_help(None),
            _ => arg.clone().hide(true),
        });
        let hidden: Vec<_> = own.collect();
        command = command.mut_subcommand(verb, |verb| verb.args(hidden));
    }
    command
}

/// Parses a size: digits with an optional K, M, G or T (1024-based; `KiB` and so on are understood too).
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
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

/// What an image must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Of this content.
    Content(ContentHash),
    /// In a file with this digest.
    Verity(VerityDigest),
}

impl SourceArgs {
    /// The content hash that is expected, if one is.
    pub fn content(&self) -> Option<ContentHash> {
        match self.expect {
            Some(Expect::Content(hash)) => Some(hash),
            _ => None,
        }
    }
}

/// Parses a content hash or a digest of fs-verity.
pub(crate) fn parse_expect(text: &str) -> Result<Expect, String> {
    if let Some(digest) = text.strip_prefix("fsverity:") {
        return digest.parse().map(Expect::Verity);
    }
    let hash = text.parse().map(Expect::Content);
    hash.map_err(|_| "expected blake3: and 64 hexadecimal digits, as daxfs ps --json shows".to_owned())
}

fn parse_verify() -> impl clap::builder::TypedValueParser<Value = Verify> {
    use clap::builder::TypedValueParser;
    let names = Verify::NAMES.map(|(name, _)| name);
    clap::builder::PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// Parses a power of two.
pub(crate) fn parse_alignment(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        align if align.is_power_of_two() => Ok(align),
        _ => Err("not a power of two".to_owned()),
    }
}

/// What tensors are moved to multiples of: a power of two, or `page`.
pub(crate) fn parse_tensor_alignment(text: &str) -> Result<u64, String> {
    if text == "page" { Ok(dmabuf::page_size()) } else { parse_alignment(text) }
}

/// `PATH=HEX`: a path in the image, and a SHA-256.
pub(crate) fn parse_sha256(text: &str) -> Result<(OsString, [u8; 32]), String> {
    // Paths may hold `=`, digits do not.
    let (path, digits) =
        text.rsplit_once('=').ok_or("write PATH=HEX, such as model.safetensors=9f86d0...")?;
    let hash = sha256(digits).ok_or("a SHA-256 is 64 hexadecimal digits")?;
    if path.is_empty() { Err("name a file in front of the `=`".to_owned()) } else { Ok((path.into(), hash)) }
}

/// 64 hexadecimal digits.
pub(crate) fn sha256(digits: &str) -> Option<[u8; 32]> {
    Hex::array(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
        super::command().debug_assert();
    }

    fn read(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::read(line.iter().map(OsString::from))
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
        assert_eq!(parse_tensor_alignment("page"), Ok(dmabuf::page_size()));
        assert!(parse_tensor_alignment("pages").is_err());
    }

    #[test]
    fn global_flags_stand_anywhere() {
        let before = read(&["daxfs", "--strict", "ls", "a"]).unwrap();
        let after = read(&["daxfs", "ls", "a", "--strict", "--max-metadata", "1M"]).unwrap();
        assert!(before.source.strict && after.source.strict);
        assert_eq!(before.source.max_metadata, 512 << 20);
        assert_eq!(after.source.max_metadata, 1 << 20);
        assert!(matches!(after.verb, Verb::Image(verb) if verb.image() == "a"));
    }

    #[test]
    fn flags_without_an_effect_are_refused() {
        for line in [
            &["daxfs", "--strict", "ps"][..],
            &["daxfs", "stop", "--backing", "a"],
            &["daxfs", "man", "d", "--max-metadata", "1M"],
            &["daxfs", "ps", "--expect", &"0".repeat(64)],
            &["daxfs", "load", "a", "b", "--verify=lazy"],
            &["daxfs", "verify", "a", "--verify"],
            &["daxfs", "upload", "a", "--verify=lazy"],
            &["daxfs", "load", "a", "b", "--strict"],
        ] {
            assert_eq!(read(line).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{line:?}");
        }
        let help = |verb| {
            let help = read(&["daxfs", verb, "--help"]).unwrap_err();
            assert_eq!(help.kind(), ErrorKind::DisplayHelp, "{help}");
            help.to_string()
        };
        assert!(help("ls").contains("--strict") && !help("ps").contains("--strict"));
        assert!(help("ls").contains("--expect") && !help("ps").contains("--expect"));
        assert!(help("swap").contains("--expect") && !help("swap").contains("--strict"));
        assert!(help("serve").contains("--takeover"));
    }

    #[test]
    fn a_hash_is_expected_by_every_verb_that_takes_a_source() {
        let hash = format!("blake3:{}", "5a".repeat(32));
        for line in [
            &["daxfs", "verify", "a", "--expect", &hash][..],
            &["daxfs", "--expect", &hash, "swap", "n", "a"],
        ] {
            assert_eq!(read(line).unwrap().source.content(), Some([0x5a; 32].into()), "{line:?}");
        }
        let verity = format!("fsverity:sha256:{}", "5a".repeat(32));
        let expect = read(&["daxfs", "ls", "a", "--expect", &verity]).unwrap().source.expect;
        assert!(matches!(expect, Some(Expect::Verity(digest)) if format!("fsverity:{digest}") == verity));
        // What a holder keeps is no file any more.
        let refused = read(&["daxfs", "swap", "n", "a", "--expect", &verity]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ArgumentConflict);
        assert_eq!(
            read(&["daxfs", "ls", "a", "--expect", "5a"]).unwrap_err().kind(),
            ErrorKind::ValueValidation
        );
    }

    #[test]
    fn what_is_verified_when() {
        let verify = |line: &[&str]| read(line).unwrap().source.verify;
        assert_eq!(verify(&["daxfs", "ls", "a"]), None);
        assert_eq!(verify(&["daxfs", "cat", "--verify", "a", "b"]), Some(Verify::Full));
        assert_eq!(verify(&["daxfs", "--verify=lazy", "ls", "a"]), Some(Verify::Lazy));
        assert_eq!(verify(&["daxfs", "ls", "a", "--verify=stored"]), Some(Verify::Stored));
        assert_eq!(verify(&["daxfs", "upload", "a", "--verify"]), Some(Verify::Full));
        assert_eq!(read(&["daxfs", "ls", "a", "--verify=some"]).unwrap_err().kind(), ErrorKind::InvalidValue);
    }

    #[test]
    fn minus_is_an_image() {
        let cli = read(&["daxfs", "ls", "-"]).unwrap();
        assert!(matches!(cli.verb, Verb::Image(verb) if verb.image() == "-"));
    }

    fn shipped(path: &str) -> String {
        std::fs::read_to_string(format!("{}/../../deploy/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn shipped_command_lines_are_understood() {
        let unit = shipped("systemd/daxfs.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let cli = read(&line.split(' ').collect::<Vec<_>>()).unwrap();
        assert!(matches!(cli.verb, Verb::Holder(HolderVerb::Serve(_))));

        let manifest = shipped("kubernetes/daxfs.yaml");
        let words = manifest.lines().map(str::trim).skip_while(|line| *line != "- daxfs");
        let words = words.take_while(|line| line.starts_with(['-', '#']));
        let words: Vec<&str> = words.filter_map(|line| line.strip_prefix("- ")).collect();
        let Verb::Holder(HolderVerb::Serve(serve)) = read(&words).unwrap().verb else { panic!("{words:?}") };
        let socket = serve.socket.path();
        assert_eq!((serve.images.len(), serve.mode), (1, Some(0o666)));

        let probe = format!("command: [\"daxfs\", \"health\", \"--socket={}\"]", socket.display());
        assert_eq!(manifest.matches(&probe).count(), 2, "{probe}");
        assert!(manifest.contains(&format!("value: {}\n", socket.display())));
    }
}
