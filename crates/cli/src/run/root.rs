//! The root file system of a container: the image, and above it what is changed, by OverlayFS. All of it is mounted in a
//! place that other processes of the machine do not see, and that goes with the last process that has it.

use super::config::{Program, in_directory};
use super::namespaces::{NEEDS, Users};
use super::trees::{Limits, Tree};
use crate::args::{RunArgs, SourceArgs};
use crate::{mount, source};
use anyhow::{Context, bail};
use daxfs::format::index;
use daxfs_fuse::Mount;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount as mount_call};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories that a machine has. The first one that is there is covered, for the container alone.
const PLACES: [&str; 6] = ["/mnt", "/media", "/srv", "/tmp", "/run", "/var"];

/// What of the machine a container has, taken before any of it is covered.
#[derive(Debug)]
pub struct Parts {
    /// A directory in the place of an image.
    lower: Option<Tree>,
    /// Where changes are kept; nobody else may meanwhile.
    upper: Option<(Tree, Flock<File>)>,
    /// What is bound, in the order of the command line.
    pub binds: Vec<Tree>,
}

impl Parts {
    /// What a command line names.
    ///
    /// # Errors
    /// For what is not there, and a directory for changes that another container has.
    pub fn take(args: &RunArgs) -> anyhow::Result<Self> {
        let path = Path::new(&args.image);
        let lower = match path.is_dir() {
            true => Some(Tree::of(path, Limits { read_only: true, ..Limits::default() })?),
            false => None,
        };
        if lower.is_some() && args.way.is_some() {
            bail!("{}: a directory is taken as it is, and --as is for images", path.display());
        }
        let upper = args.upper.as_deref().map(|path| {
            let subject = || path.display().to_string();
            fs::create_dir_all(path).with_context(subject)?;
            let lock = Flock::lock(File::open(path).with_context(subject)?, FlockArg::LockExclusiveNonblock);
            let lock = lock.map_err(|(_, errno)| match errno {
                nix::errno::Errno::EAGAIN => anyhow::anyhow!("{}: another container has it", subject()),
                errno => anyhow::Error::new(errno).context(subject()),
            })?;
            Ok::<_, anyhow::Error>((Tree::of(path, Limits::default())?, lock))
        });
        let bound = args
            .bind
            .iter()
            .map(|bind| Tree::of(&bind.source, Limits { read_only: bind.read_only, ..Limits::default() }));
        Ok(Self { lower, upper: upper.transpose()?, binds: bound.collect::<anyhow::Result<_>>()? })
    }
}

/// A root file system that is mounted.
#[derive(Debug)]
pub struct Root {
    /// Where, in this mount namespace.
    pub path: PathBuf,
    pub program: Program,
    /// The image, where this process serves it.
    pub mount: Option<Mount>,
}

impl Root {
    /// Mounts the image, or takes the directory, and the overlay above it.
    ///
    /// # Errors
    /// What is wrong with the image, and what the kernel says.
    pub fn make(source: &SourceArgs, args: &RunArgs, parts: &Parts, users: Users) -> anyhow::Result<Self> {
        let image = match parts.lower {
            Some(_) => None,
            None => Some(source::open(source, &args.image, false)?),
        };
        let config = match &image {
            Some(image) => image.oci_config()?,
            None => in_directory(Path::new(&args.image))?,
        };
        let program =
            Program::new(&args.program, config.as_deref()).with_context(|| source::name(&args.image))?;
        let stage = cover()?;
        let [lower, path] = ["lower", "root"].map(|name| stage.join(name));
        for folder in [&lower, &path] {
            fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        }
        let mount = match (&image, &parts.lower) {
            (Some(image), _) => {
                let name = source::name(&args.image);
                // With one user, all files are that one's.
                let owner = (users == Users::One).then_some(0);
                mount::at(image, &name, &lower, args.way, owner, source)?
            }
            (None, Some(tree)) => tree.put(&lower).map(|()| None)?,
            (None, None) => None,
        };
        drop(image);
        let changes = stage.join("changes");
        fs::create_dir(&changes).with_context(|| changes.display().to_string())?;
        if let Some((tree, _)) = &parts.upper {
            tree.put(&changes)?;
        }
        overlay(&lower, &changes, &path, users)?;
        Ok(Self { path, program, mount })
    }
}

/// Covers a directory of the machine by an empty one, for this mount namespace alone.
fn cover() -> anyhow::Result<PathBuf> {
    let place = PLACES.into_iter().map(Path::new).find(|path| path.is_dir());
    let place = place.with_context(|| format!("there is none of the directories {}", PLACES.join(" ")))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_call(Some("daxfs-run"), place, Some("tmpfs"), flags, Some("mode=755")).context(NEEDS)?;
    Ok(place.to_owned())
}

/// Mounts what lies in `changes` above `lower`. A path with a comma or a colon would be taken apart.
///
/// # Errors
/// What the kernel says.
pub fn overlay(lower: &Path, changes: &Path, at: &Path, users: Users) -> anyhow::Result<()> {
    let [upper, work] = ["upper", "work"].map(|name| changes.join(name));
    let below = fs::metadata(lower).with_context(|| lower.display().to_string())?;
    if !upper.is_dir() {
        fs::create_dir(&upper).context("a directory for changes")?;
        // The root is as in the image.
        fs::set_permissions(&upper, Permissions::from_mode(below.mode() & 0o7777)).context("its mode")?;
        if users == Users::All {
            std::os::unix::fs::chown(&upper, Some(below.uid()), Some(below.gid())).context("its owner")?;
        }
    }
    if !work.is_dir() {
        DirBuilder::new().mode(0o700).create(&work).context("a directory for changes")?;
    }
    // What the packer keeps in an image is no file of the container: hidden by what overlays take for "not there".
    let own = upper.join(index::DIR);
    if lower.join(index::DIR).exists() && fs::symlink_metadata(&own).is_err() {
        mknod(&own, SFlag::S_IFCHR, Mode::empty(), 0).context("hiding /.daxfs")?;
    }
    let paths = [("lowerdir", lower), ("upperdir", &upper), ("workdir", &work)];
    let mut options: Vec<String> = paths.map(|(name, path)| format!("{name}={}", path.display())).into();
    if users != Users::All {
        // Linux 5.11; others have names that only root of the machine can give.
        options.push("userxattr".to_owned());
    }
    let options = options.join(",");
    mount_call(Some("daxfs"), at, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str())).context(
        "OverlayFS (in a user namespace since Linux 5.11; changes cannot lie on every file system, such as another overlay)",
    )
}
