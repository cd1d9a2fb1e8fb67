//! A small root file system of busybox, images of it, and containers over them.

use mkimage::Packer;
use sha2::{Digest, Sha256};
use std::env;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Nobody, who may do what others may.
pub const NOBODY: u32 = 65534;
/// Capabilities of a container, as `/proc/self/status` has them.
pub const CAPABILITIES: &str = "CapEff:\t00000000800405fb";

const PROGRAMS: [&str; 22] = [
    "sh", "cat", "chown", "env", "false", "grep", "hostname", "id", "ip", "kill", "ls", "mkdir", "mknod",
    "mount", "ps", "pwd", "rm", "sleep", "stat", "touch", "true", "wc",
];
const CONFIG: &str = r#"{"User": "web", "Env": ["GREETING=hello", "PATH=/bin"], "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["echo $GREETING; id -un; pwd"], "WorkingDir": "/srv/made", "Labels": null}"#;

/// Whether containers can be run here. What is missing is printed, or an error where it is required.
pub fn can_run() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("mounting for all users needs root")
    } else if !Path::new("/dev/fuse").exists() {
        Some("there is no /dev/fuse")
    } else if !busybox_is_static() {
        Some("there is no static busybox (the package busybox-static)")
    } else if !unshare(&["--mount", "--pid", "--fork", "mount", "-t", "proc", "proc", "/proc"]) {
        Some("this machine allows no namespaces")
    } else {
        None
    };
    let Some(missing) = missing else { return true };
    let required =
        env::var_os("DAXFS_REQUIRE_ROOT").is_some() || env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!required, "{missing}");
    eprintln!("not run: {missing}");
    false
}

pub fn unshare(args: &[&str]) -> bool {
    let status = Command::new("unshare").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn busybox_is_static() -> bool {
    let linked = Command::new("ldd").arg("/bin/busybox").output();
    Path::new("/bin/busybox").exists() && linked.is_ok_and(|output| !output.status.success())
}

/// A folder with a root file system and images of it.
pub struct Place(tempfile::TempDir);

impl Place {
    /// `image.daxfs` has an EROFS view, and `plain.daxfs` nothing but the tree.
    pub fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(place.path(""), Permissions::from_mode(0o755)).unwrap();
        let root = place.path("root");
        for folder in ["bin", "etc", "srv", "d/e"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for program in PROGRAMS {
            symlink("busybox", root.join("bin").join(program)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
        write("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n");
        write("etc/group", "root:x:0:\nwww:x:34:\nlog:x:50:web\n");
        write("file", "of the image\n");
        write("etc/no-program", "echo\n");
        place.pack();
        place
    }

    /// Packs the tree as it is now.
    pub fn pack(&self) {
        let packer = || Packer::new().input(self.path("root")).links(mkimage::Links::Keep);
        packer().erofs(true).plan().unwrap().write_file(self.path("image.daxfs")).unwrap();
        packer().plain(true).plan().unwrap().write_file(self.path("plain.daxfs")).unwrap();
    }

    /// Packs it as a container image with a configuration, by way of an archive as `docker save` writes it.
    pub fn pack_with_config(&self, execution: &str) -> PathBuf {
        let tar = |folder: &str, out: &str, names: &[&str]| {
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(self.path(folder)).arg("-cf").arg(self.path(out)).args(names);
            assert!(tar.status().unwrap().success());
        };
        tar("root", "layer.tar", &["."]);
        let digest: String = Sha256::digest(fs::read(self.path("layer.tar")).unwrap())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{execution},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
        );
        fs::write(self.path("config.json"), config).unwrap();
        fs::write(self.path("manifest.json"), r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#)
            .unwrap();
        tar("", "saved.tar", &["config.json", "manifest.json", "layer.tar"]);
        let packer = Packer::new().input(format!("docker-archive:{}", self.path("saved.tar").display()));
        let image = self.path("configured.daxfs");
        let packer = packer.platform(Some("linux/amd64".parse().unwrap())).erofs(true);
        packer.plan().unwrap().write_file(&image).unwrap();
        image
    }

    /// The usual one.
    pub fn configured(&self) -> PathBuf {
        self.pack_with_config(CONFIG)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `daxfs run ARGS`, here.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(daxfs());
        command.arg("run").args(args).current_dir(self.path("")).stdin(Stdio::null());
        command
    }

    /// What such a command says, and its exit status.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> (String, i32) {
        said(&self.command(args).output().unwrap())
    }

    /// What a shell says in a container over the image.
    #[track_caller]
    pub fn shell(&self, args: &[&str], script: &str) -> String {
        let line = [args, &["image.daxfs", "--", "sh", "-c", script]].concat();
        let (text, status) = self.run(&line);
        assert_eq!(status, 0, "{script}: {text}");
        text
    }
}

/// Standard output, then standard error, and the exit status.
pub fn said(output: &Output) -> (String, i32) {
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (text, output.status.code().unwrap_or(-1))
}

/// A command of the project, which lies one folder above the test programs.
pub fn daxfs() -> PathBuf {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    path
}

/// Lines of the table of mounts that have a text in them.
pub fn mounts_with(text: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}
