//! What is wanted of a mount: the flags of the command line, and the list that mount(8) hands over, which has to say all
//! of it.

use crate::args::{MountArgs, MountWay, SourceArgs};
use crate::output::note;
use anyhow::Context;
use clap::{FromArgMatches, ValueEnum};
use daxfs::Source;
use daxfs_fuse::Options;
use std::ffi::{OsStr, OsString};

/// What is wanted of a mount.
pub struct Wanted {
    /// The image, by a path that holds wherever a process in the background goes.
    pub image: OsString,
    /// How it is opened.
    pub source: SourceArgs,
    /// How it is mounted.
    pub way: Option<MountWay>,
    /// With which options.
    pub mount: Options,
    /// Whether the command itself serves the mount, as long as it lasts.
    pub foreground: bool,
}

/// Flags that are options in a list, where a blank would be wrong: `_` is `-`.
const FLAGS: [&str; 6] = ["backing", "expect", "verify", "max_metadata", "strict", "sealed_copy"];

impl Wanted {
    /// Of a command line.
    ///
    /// # Errors
    /// For options that are unknown, or have a wrong value.
    pub fn new(source: &SourceArgs, args: &MountArgs) -> anyhow::Result<Self> {
        let mut wanted = Self {
            image: absolute(&args.image)?,
            source: source.clone(),
            way: args.way,
            mount: Options::new(""),
            foreground: args.foreground,
        };
        wanted.mount.report = note;
        let mut flags = Vec::new();
        for option in &args.options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if name == "as" {
                let way = MountWay::from_str(value, false);
                wanted.way = Some(way.map_err(|why| anyhow::anyhow!("option {option:?}: {why}"))?);
            } else if FLAGS.contains(&name) {
                flags.push(format!("--{}", option.replacen('_', "-", name.matches('_').count())));
            } else {
                wanted.mount.add(option)?;
            }
        }
        if !flags.is_empty() {
            update(&mut wanted.source, flags)?;
        }
        if let Some(backing) = &wanted.source.backing {
            wanted.source.backing = Some(absolute(backing)?);
        }
        Ok(wanted)
    }

    /// The name of an option that only a mount that a process serves can have.
    pub fn of_a_process(&self) -> Option<&'static str> {
        if self.foreground {
            return Some("--foreground");
        }
        if !self.mount.source.is_empty() {
            return Some("fsname");
        }
        self.mount.changed()
    }
}

/// Reads flags as the command line has them.
fn update(source: &mut SourceArgs, flags: Vec<String>) -> anyhow::Result<()> {
    let command = <SourceArgs as clap::Args>::augment_args(clap::Command::new("-o").no_binary_name(true));
    // The first line says it; what follows is usage.
    let first = |error: clap::Error| {
        let text = error.to_string();
        anyhow::anyhow!("options: {}", text.lines().next().unwrap_or_default().trim_start_matches("error: "))
    };
    let matches = command.try_get_matches_from(flags).map_err(first)?;
    let given = SourceArgs::from_arg_matches(&matches).map_err(first)?;
    source.backing = given.backing.or(source.backing.take());
    source.expect = given.expect.or(source.expect.take());
    source.verify = given.verify.or(source.verify);
    source.strict |= given.strict;
    source.sealed_copy |= given.sealed_copy;
    if given.max_metadata != daxfs::DEFAULT_MAX_METADATA {
        source.max_metadata = given.max_metadata;
    }
    Ok(())
}

/// A source that is a path as an absolute one.
fn absolute(source: &OsStr) -> anyhow::Result<OsString> {
    match Source::parse(source) {
        Ok(Source::Path { path, .. }) if path.is_relative() => {
            let path = std::path::absolute(&path).with_context(|| crate::source::name(source))?;
            Ok(path.into_os_string())
        }
        // What is no source is said when it is opened.
        _ => Ok(source.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, ImageVerb, Verb};
    use daxfs::Verify;

    fn wanted(line: &[&str]) -> anyhow::Result<Wanted> {
        let cli = Cli::read(["daxfs", "mount"].iter().chain(line).map(OsString::from)).unwrap();
        let Verb::Image(ImageVerb::Mount(args)) = &cli.verb else { panic!("another verb") };
        Wanted::new(&cli.source, args)
    }

    #[test]
    fn a_list_says_what_flags_say() {
        let list = "rw,strict,max_metadata=4K,verify=lazy,as=fuse,allow_other,backing=/b,sealed_copy,x-a=b";
        let wanted = wanted(&["a", "/mnt", "-o", list, "-o", "uid=3"]).unwrap();
        assert!(wanted.source.strict && wanted.source.sealed_copy && wanted.mount.allow_other);
        assert_eq!((wanted.source.max_metadata, wanted.source.verify), (4096, Some(Verify::Lazy)));
        assert_eq!(wanted.source.backing.as_deref(), Some(OsStr::new("/b")));
        assert_eq!((wanted.way, wanted.mount.uid), (Some(MountWay::Fuse), Some(3)));
        assert_eq!(wanted.of_a_process(), Some("uid"));
        assert!(wanted.image.as_encoded_bytes().starts_with(b"/"), "{:?}", wanted.image);
    }

    #[test]
    fn what_only_a_process_can_do_is_known() {
        for (line, expected) in [
            (&["-o", "allow_other,ro,nosuid,nodev,nofail"][..], None),
            (&["-o", "suid,nosuid"], None),
            (&["-o", "suid"], Some("suid")),
            (&["-o", "fsname=a"], Some("fsname")),
            (&["--foreground"], Some("--foreground")),
        ] {
            let line: Vec<_> = ["a", "/mnt"].iter().chain(line).copied().collect();
            assert_eq!(wanted(&line).unwrap().of_a_process(), expected, "{line:?}");
        }
    }

    #[test]
    fn flags_hold_beside_a_list_and_sources_are_left_as_they_are() {
        let wanted = wanted(&["--max-metadata", "8K", "daxfs://a", "/mnt", "-o", "strict"]).unwrap();
        assert!(wanted.source.strict && !wanted.source.sealed_copy);
        assert_eq!((wanted.source.max_metadata, wanted.image.to_str()), (8192, Some("daxfs://a")));
    }

    #[test]
    fn what_is_wrong_in_a_list_is_named() {
        for (list, named) in [
            ("journal", "\"journal\""),
            ("as=ext4", "ext4"),
            ("expect=sha256:1", "sha256:1"),
            ("max_metadata=much", "much"),
            ("strict=yes", "strict"),
        ] {
            let error = wanted(&["a", "/mnt", "-o", list]).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(named), "{list}: {error}");
        }
    }
}
