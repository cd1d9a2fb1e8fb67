//! `daxfs bundle`: a directory that OCI runtimes start containers from, over an image that is mounted there.
//!
//! What is mounted is mounted here, and by nobody later: runtimes open the root before they run any hook.

use crate::args::{BundleArgs, MountArgs, Network, SourceArgs};
use crate::output::Outcome;
use crate::run::config::Program;
use crate::run::namespaces::Users;
use crate::run::{root, users};
use crate::{mount, source};
use anyhow::{Context, bail};
use daxfs::Image;
use nix::mount::{MntFlags, umount2};
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxNamespaceType, Mount, MountBuilder, Process,
    Root, Spec, User,
};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const ROOT: &str = "rootfs";
const IMAGE: &str = "image";
const CHANGES: &str = "changes";

/// What root has in a container of `daxfs run`.
const CAPABILITIES: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Files of the machine that a container with its network has.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// What runtimes mount at, and cannot make in a root that is read-only.
const POINTS: [&str; 3] = ["/proc", "/dev", "/sys"];

/// Makes a bundle.
pub fn run(source: &SourceArgs, args: &BundleArgs) -> anyhow::Result<Outcome> {
    if args.image == "-" {
        bail!("standard input can be read once, and a bundle takes the image twice; name a file");
    }
    let users = Users::now()?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "mounting for OCI runtimes takes root, or a user namespace, also around the runtime: unshare --user \
             --map-root-user --mount sh -c 'daxfs bundle ... && crun run ...'"
        );
    }
    let bundle = Bundle::make(&args.dir)?;
    let point = bundle.dir.join(if args.read_only { ROOT } else { IMAGE });
    // First, since it forks where a process serves the mount.
    match mount::run(source, &mount_args(args, point, users))? {
        Outcome::Clean => {}
        failed => return Ok(failed),
    }
    let image = source::open(source, &args.image, false)?;
    let spec = spec(&image, args, users).with_context(|| source::name(&args.image))?;
    let mut config = serde_json::to_vec_pretty(&spec)?;
    config.push(b'\n');
    drop(image);
    // From inside: in its options colons and commas of a path would be taken for something else.
    std::env::set_current_dir(&bundle.dir).with_context(|| bundle.dir.display().to_string())?;
    if !args.read_only {
        root::overlay(Path::new(IMAGE), Path::new(CHANGES), Path::new(ROOT), users)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(CONFIG)?;
    file.write_all(&config).context(CONFIG)?;
    bundle.keep();
    Ok(Outcome::Clean)
}

/// The directory, which is taken away again unless all of it was made.
struct Bundle {
    dir: PathBuf,
    /// Whether it was there before.
    is_old: bool,
    is_whole: bool,
}

impl Bundle {
    /// Makes the directory, for its owner alone, and what is mounted at in it.
    fn make(dir: &Path) -> anyhow::Result<Self> {
        let subject = || dir.display().to_string();
        let is_old = match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error).with_context(subject),
        };
        if is_old && fs::read_dir(dir).with_context(subject)?.next().is_some() {
            bail!("{}: it is there, and not empty", subject());
        }
        let bundle = Self { dir: dir.canonicalize().with_context(subject)?, is_old, is_whole: false };
        for name in [IMAGE, CHANGES, ROOT] {
            fs::create_dir(bundle.dir.join(name)).with_context(subject)?;
        }
        Ok(bundle)
    }

    fn keep(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        for name in [ROOT, IMAGE] {
            let _ = umount2(&self.dir.join(name), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        // What is still mounted is never looked into: these have to be empty.
        let gone = [ROOT, IMAGE].map(|name| fs::remove_dir(self.dir.join(name)).is_ok());
        if gone == [true; 2] {
            let _ = fs::remove_dir_all(self.dir.join(CHANGES));
            let _ = fs::remove_file(self.dir.join(CONFIG));
            if !self.is_old {
                let _ = fs::remove_dir(&self.dir);
            }
        }
    }
}

/// What `daxfs mount` is told.
fn mount_args(args: &BundleArgs, point: PathBuf, users: Users) -> MountArgs {
    let mut options = vec!["allow_other".to_owned()];
    if users == Users::One {
        // All files are that one's.
        options.extend(["uid=0", "gid=0"].map(str::to_owned));
    }
    MountArgs {
        image: args.image.clone(),
        dir: Some(point),
        way: args.way,
        options,
        foreground: false,
        compat_check: false,
        json: false,
    }
}

/// The configuration of the container.
fn spec(image: &Image, args: &BundleArgs, users: Users) -> anyhow::Result<Spec> {
    let config = image.oci_config()?;
    let program = Program::new(&args.program, config.as_deref())?;
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(ROOT.into()).set_readonly(Some(args.read_only));
    spec.set_root(Some(root));
    spec.set_hostname(Some(args.hostname.clone()));
    spec.set_process(Some(process(image, program, args)?));
    let mut linux = Linux::default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|one| one.typ() != LinuxNamespaceType::Network || args.net == Network::None);
    if users != Users::All {
        // Who is not root of the machine has no control groups there.
        namespaces.retain(|one| one.typ() != LinuxNamespaceType::Cgroup);
        linux.set_resources(None);
    }
    linux.set_namespaces(Some(namespaces));
    let mut masked = linux.masked_paths().clone().unwrap_or_default();
    masked.push(daxfs::format::index::DIR.into());
    linux.set_masked_paths(Some(masked));
    spec.set_linux(Some(linux));
    spec.set_mounts(Some(mounts(image, args, users)?));
    Ok(spec)
}

fn process(image: &Image, program: Program, args: &BundleArgs) -> anyhow::Result<Process> {
    let text = |path: &str| {
        let Ok(file) = image.file(path) else { return Ok(String::new()) };
        let mut bytes = vec![0; usize::try_from(file.len().min(users::MOST))?];
        let len = file.read_at(0, &mut bytes)?;
        bytes.truncate(len);
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let who = users::resolve(&program.user, &text("/etc/passwd")?, &text("/etc/group")?)?;
    let mut user = User::default();
    user.set_uid(who.uid).set_gid(who.gid);
    if !who.groups.is_empty() {
        user.set_additional_gids(Some(who.groups));
    }
    let has_home = program.variable("HOME").is_some();
    let mut env = words(program.env, "an environment variable")?;
    if let Some(home) = who.home.filter(|_| !has_home) {
        env.push(format!("HOME={home}"));
    }
    let all: Capabilities = CAPABILITIES.into_iter().collect();
    let none = Capabilities::new();
    let own = if who.uid == 0 { &all } else { &none };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(all.clone()))
        .set_effective(Some(own.clone()))
        .set_permitted(Some(own.clone()))
        .set_inheritable(None)
        .set_ambient(None);
    let mut process = Process::default();
    process
        .set_terminal(Some(args.tty))
        .set_user(user)
        .set_args(Some(words(program.args, "a word of the command")?))
        .set_env(Some(env))
        .set_cwd(program.workdir.into())
        .set_capabilities(Some(capabilities))
        .set_no_new_privileges(Some(true))
        // Those of the runtime.
        .set_rlimits(None);
    Ok(process)
}

/// Words as JSON has them.
fn words(words: Vec<OsString>, what: &str) -> anyhow::Result<Vec<String>> {
    let word = |word: OsString| {
        word.into_string().map_err(|word| anyhow::anyhow!("{what} is not UTF-8: {}", word.display()))
    };
    words.into_iter().map(word).collect()
}

fn mounts(image: &Image, args: &BundleArgs, users: Users) -> anyhow::Result<Vec<Mount>> {
    if args.read_only {
        let missing = POINTS.iter().find(|path| !image.contains(path));
        if let Some(missing) = missing {
            bail!("it has no directory {missing}, and a runtime cannot make one in a root that is read-only");
        }
    }
    let mut mounts = match users {
        Users::All => oci_spec::runtime::get_default_mounts(),
        _ => oci_spec::runtime::get_rootless_mounts(),
    };
    if users != Users::All {
        mounts.retain(|mount| mount.destination() != Path::new("/sys/fs/cgroup"));
    }
    let mut add = |path: &str, kind: &str, source: &str, options: &[&str]| {
        let options: Vec<String> = options.iter().copied().map(str::to_owned).collect();
        let mount = MountBuilder::default().destination(path).typ(kind).source(source).options(options);
        mounts.push(mount.build()?);
        Ok::<_, anyhow::Error>(())
    };
    if args.read_only && image.contains("/tmp") {
        add("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777"])?;
    }
    if args.net == Network::Host {
        for path in NETWORK_FILES {
            let is_there = Path::new(path).exists() && (!args.read_only || image.file(path).is_ok());
            if is_there {
                add(path, "bind", path, &["bind", "ro", "nosuid", "nodev"])?;
            }
        }
    }
    Ok(mounts)
}
