//! How an image is mounted, and the text form of that: the options of mount(8) and fstab(5).

use fuser::{Config, MountOption, SessionACL};

use crate::attributes::Owners;
use crate::error::{Error, Result};

/// Threads that answer, unless it is said how many: more do not make one reader faster, and the kernel has few requests
/// at once for others.
const MOST_THREADS: usize = 8;

/// How an image is mounted.
#[derive(Debug, Clone)]
pub struct Options {
    /// What lists of mounts show as the source.
    pub source: String,
    /// All users may use the mount, as the modes in the image say, not only who mounts. Takes root, or
    /// `user_allow_other` in `/etc/fuse.conf`.
    pub allow_other: bool,
    /// Root may use the mount, beside who mounts.
    pub allow_root: bool,
    /// fusermount3 takes the mount away when this process ends, however it ends.
    pub auto_unmount: bool,
    /// Shows what the source means now, also when a holder's name or a path means another image.
    pub follow: bool,
    /// Threads that answer; by default one for each processor, two at least and eight at most.
    pub threads: Option<usize>,
    /// Files are read around the page cache: nothing is kept twice, and each read(2) is a message. What is mapped is cached
    /// as ever.
    pub direct_io: bool,
    /// Owner of all files, instead of those in the image.
    pub uid: Option<u32>,
    /// Group of all files.
    pub gid: Option<u32>,
    /// Is told what goes wrong while the image is mounted.
    pub report: fn(&str),
    /// Set-user-ID bits count.
    pub suid: bool,
    /// Device nodes are devices. An image has no numbers of them, so there is nothing that they could be but 0:0.
    pub dev: bool,
    /// No program of the image is started.
    pub noexec: bool,
    /// Contexts of SELinux, as mount(8) has them: `context=...` and the like.
    pub contexts: Vec<String>,
}

impl Options {
    /// The defaults, for a source of that name.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            allow_other: false,
            allow_root: false,
            auto_unmount: false,
            follow: false,
            threads: None,
            direct_io: false,
            uid: None,
            gid: None,
            report: |_| {},
            suid: false,
            dev: false,
            noexec: false,
            contexts: Vec::new(),
        }
    }

    /// Adds one option of a list as `-o` has it, such as `allow_other` or `uid=1000`. Those that are for mount(8) or
    /// systemd alone have no effect, and the mount is read-only in any case.
    ///
    /// # Errors
    /// [`Error::Option`] for one that is unknown, or whose value is none.
    pub fn add(&mut self, option: &str) -> Result<()> {
        let wrong = |why| Error::Option { option: option.to_owned(), why };
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let number = || value.and_then(|value| value.parse().ok()).ok_or_else(|| wrong("it takes a number"));
        match (name, value) {
            ("allow_other", None) => self.allow_other = true,
            ("allow_root", None) => self.allow_root = true,
            ("auto_unmount", None) => self.auto_unmount = true,
            ("follow", None) => self.follow = true,
            ("direct_io", None) => self.direct_io = true,
            ("uid", _) => self.uid = Some(number()?),
            ("gid", _) => self.gid = Some(number()?),
            ("threads", _) => {
                let count =
                    value.and_then(|value| value.parse().ok()).filter(|count| (1..=64).contains(count));
                self.threads = Some(count.ok_or_else(|| wrong("it takes a number from 1 to 64"))?);
            }
            ("fsname", Some(name)) => name.clone_into(&mut self.source),
            ("suid" | "nosuid", None) => self.suid = name == "suid",
            ("dev" | "nodev", None) => self.dev = name == "dev",
            ("exec" | "noexec", None) => self.noexec = name == "noexec",
            ("context" | "fscontext" | "defcontext" | "rootcontext", Some(_)) => {
                self.contexts.push(option.to_owned());
            }
            _ if has_no_effect(name) => {}
            _ => {
                return Err(wrong(
                    "not known here; there are allow_other, allow_root, auto_unmount, follow, direct_io, uid=N, gid=N, \
                     threads=N, fsname=NAME, dev, suid, noexec, context=...",
                ));
            }
        }
        Ok(())
    }

    /// The name of the first option that makes more of a mount than the image, read-only, with its own modes and owners.
    /// Neither the source's name is one, nor `allow_other`, which mounts that the kernel serves have anyway.
    #[must_use]
    pub fn changed(&self) -> Option<&'static str> {
        // Whole, so that a new option has to be put here, too.
        let Self {
            source: _,
            allow_other: _,
            allow_root,
            auto_unmount,
            follow,
            threads,
            direct_io,
            uid,
            gid,
            report: _,
            suid,
            dev,
            noexec,
            contexts,
        } = self;
        let options = [
            (*allow_root, "allow_root"),
            (*auto_unmount, "auto_unmount"),
            (*follow, "follow"),
            (threads.is_some(), "threads"),
            (*direct_io, "direct_io"),
            (uid.is_some(), "uid"),
            (gid.is_some(), "gid"),
            (*suid, "suid"),
            (*dev, "dev"),
            (*noexec, "noexec"),
            (!contexts.is_empty(), "context"),
        ];
        options.into_iter().find_map(|(given, name)| given.then_some(name))
    }

    pub(crate) fn owners(&self) -> Owners {
        Owners { uid: self.uid, gid: self.gid }
    }

    pub(crate) fn for_others(&self) -> bool {
        self.allow_other || self.allow_root
    }

    /// What fuser is told.
    pub(crate) fn config(&self) -> Config {
        // A comma would end the option for fusermount3.
        let name = self.source.replace(['\\', ','], "_");
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::RO,
            MountOption::DefaultPermissions,
            MountOption::FSName(name),
            MountOption::Subtype("daxfs".into()),
        ];
        let flags = [
            (self.suid, MountOption::Suid),
            (self.dev, MountOption::Dev),
            (self.noexec, MountOption::NoExec),
        ];
        config.mount_options.extend(flags.into_iter().filter_map(|(given, flag)| given.then_some(flag)));
        config.mount_options.extend(self.contexts.iter().cloned().map(MountOption::CUSTOM));
        if self.auto_unmount {
            config.mount_options.push(MountOption::AutoUnmount);
        }
        config.acl = match (self.allow_other, self.allow_root) {
            (true, _) => SessionACL::All,
            (false, true) => SessionACL::RootAndOwner,
            (false, false) => SessionACL::Owner,
        };
        let processors = || std::thread::available_parallelism().map_or(2, usize::from);
        config.n_threads = Some(self.threads.unwrap_or_else(|| processors().clamp(2, MOST_THREADS)));
        // A queue for each thread.
        config.clone_fd = crate::queues::are_known();
        config
    }
}

/// Options for mount(8), fstab(5) and systemd.mount(5), and those that say what holds anyway.
fn has_no_effect(name: &str) -> bool {
    const NAMES: [&str; 32] = [
        "",
        "ro",
        "rw",
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "fail",
        "_netdev",
        "comment",
        "default_permissions",
        "subtype",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "async",
        "sync",
        "nonempty",
        "silent",
        "loud",
    ];
    NAMES.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_as_fstab_has_it() {
        let mut options = Options::new("daxfs://llama");
        for option in
            "rw,noauto,x-systemd.automount,nofail,suid,nosuid,uid=7,threads=3,allow_other".split(',')
        {
            options.add(option).unwrap();
        }
        assert!(options.allow_other && !options.follow);
        assert_eq!((options.uid, options.gid, options.threads), (Some(7), None, Some(3)));
        assert!(!options.suid && !options.dev);
        let config = options.config();
        assert!(config.mount_options.contains(&MountOption::RO));
        assert_eq!((config.acl, config.n_threads), (SessionACL::All, Some(3)));
    }

    #[test]
    fn what_is_unknown_or_no_value_is_named() {
        for option in ["uid", "uid=me", "threads=0", "threads=65", "allow_other=1", "journal", "context"] {
            let error = Options::new("x").add(option).unwrap_err();
            assert!(error.to_string().contains(option), "{error}");
        }
    }

    #[test]
    fn a_name_ends_no_list_of_options() {
        let config = Options::new("/tmp/a,suid\\,b").config();
        assert!(config.mount_options.contains(&MountOption::FSName("/tmp/a_suid__b".into())));
    }
}
