//! The verbs that run containers, or have others run them.

use super::MountWay;
use clap::builder::TypedValueParser;
use clap::{Args, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Arguments of `daxfs run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  daxfs run root.daxfs\n  daxfs run root.daxfs -- sh -c 'cat /etc/os-release'\n  \
    daxfs run --bind .:/work --workdir /work --user 1000 daxfs://tools -- make\n  \
    daxfs run --upper changes/ root.daxfs -- apt-get install -y jq\n  \
    daxfs mount --as fuse root.daxfs /srv/root && daxfs run /srv/root -- sh    # one mount under several containers\n\n\
    Exit status: that of the command, 128 and the number of the signal that ended it, 126 when it cannot be run, 127 when it is \
    not there; 2 on errors."
)]
pub struct RunArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input; or a directory with a root file system, such
    /// as one where an image is mounted
    pub image: OsString,
    /// Way to mount the image; by default the first that fits
    #[arg(long = "as", value_name = "WAY", value_enum)]
    pub way: Option<MountWay>,
    /// What it runs.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// File or directory of this machine to show in the container; can be given several times
    #[arg(long, value_name = "SOURCE:PATH[:ro]", value_parser = clap::builder::OsStringValueParser::new().try_map(parse_bind))]
    pub bind: Vec<Bind>,
    /// Nothing can be written but /tmp, which is empty, and what is bound
    #[arg(long, conflicts_with = "upper")]
    pub read_only: bool,
    /// Directory that keeps what is changed, for the next run; by default changes are kept in memory and go with the container
    #[arg(long, value_name = "DIR")]
    pub upper: Option<PathBuf>,
    /// Network that the container sees
    #[arg(long, value_enum, default_value_t = Network::Host)]
    pub net: Network,
    /// Host name in the container; by default that of this machine
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
}

/// What a container runs, where that is not as the image says.
#[derive(Debug, Args)]
pub struct ProgramArgs {
    /// Environment variable, beside those of the image; without =VALUE the one of this command
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// User, by name or number, instead of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory, instead of the image's; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Program to run instead of the image's entry point, without its arguments; the empty word for none
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<OsString>,
    /// Command to run instead of the image's; behind the image's entry point, where it has one
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

/// Arguments of `daxfs bundle`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs bundle root.daxfs web && crun run --bundle web web1\n  \
    daxfs bundle --tty daxfs://tools tools -- sh\n  \
    umount web/rootfs web/image && rm -r web    # when no container has it any more\n  \
    unshare --user --map-root-user --mount sh -c 'daxfs bundle root.daxfs b -- id && crun run -b b b1'    # without root")]
pub struct BundleArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, or daxfs://NAME
    pub image: OsString,
    /// Directory for the bundle, which is made; it may be there, and empty
    pub dir: PathBuf,
    /// Way to mount the image; by default the first that fits
    #[arg(long = "as", value_name = "WAY", value_enum)]
    pub way: Option<MountWay>,
    /// What it runs.
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Nothing can be written but /tmp, which is empty; the bundle's root is the mount of the image alone
    #[arg(long)]
    pub read_only: bool,
    /// The command has a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Network that the container sees
    #[arg(long, value_enum, default_value_t = Network::Host)]
    pub net: Network,
    /// Host name in the container
    #[arg(long, value_name = "NAME", default_value = "daxfs")]
    pub hostname: String,
}

/// Networks of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// That of this machine, with its /etc/resolv.conf and /etc/hosts
    Host,
    /// Its own loopback device alone
    None,
}

/// What of this machine is shown in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Path on this machine.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Whether it cannot be written there.
    pub read_only: bool,
}

/// Parses `SOURCE:PATH[:ro]`.
fn parse_bind(text: OsString) -> Result<Bind, String> {
    let mut parts: Vec<&[u8]> = text.as_bytes().split(|&byte| byte == b':').collect();
    let read_only = match parts.last() {
        Some(&b"ro") if parts.len() == 3 => true,
        Some(&b"rw") if parts.len() == 3 => false,
        _ if parts.len() == 2 => false,
        _ => return Err("write SOURCE:PATH, or SOURCE:PATH:ro".to_owned()),
    };
    parts.truncate(2);
    let [source, target] = parts[..] else { return Err("write SOURCE:PATH".to_owned()) };
    let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
    let (source, target) = (path(source), path(target));
    if source.as_os_str().is_empty() || !target.is_absolute() || target.parent().is_none() {
        return Err("the path in the container is absolute, and below its root".to_owned());
    }
    Ok(Bind { source, target, read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_have_two_paths() {
        let bind = parse_bind("a b:/c:ro".into()).unwrap();
        assert_eq!(bind, Bind { source: "a b".into(), target: "/c".into(), read_only: true });
        assert!(!parse_bind("/a:/c".into()).unwrap().read_only);
        for wrong in ["a", "a:b", ":/b", "a:/", "a:/b:rx", "a:/b:ro:ro"] {
            assert!(parse_bind(wrong.into()).is_err(), "{wrong}");
        }
    }
}
