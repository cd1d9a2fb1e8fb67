//! Bundles, as OCI runtimes of Debian run them.

use super::support::{CAPABILITIES, Place, can_run, daxfs, mounts_with, said, unshare};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A runtime, with what it takes on machines without systemd.
const RUNTIMES: [(&str, &[&str]); 2] = [("crun", &["--cgroup-manager=disabled"]), ("runc", &[])];

/// Whether a program is there. Where all is required it has to be.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "there is no {program}");
        eprintln!("not run: there is no {program}");
    }
    is_there
}

/// Runs what is behind it. Where there are control groups of both versions, Debian's crun asks for those of one.
fn without_hybrid_groups() -> Command {
    let script = "umount /sys/fs/cgroup/unified 2>/dev/null || true; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command
}

/// Bundles and their mounts go with it.
struct Bundle<'a>(&'a Place, &'static str);

impl Bundle<'_> {
    fn make<'a>(place: &'a Place, name: &'static str, args: &[&str]) -> Bundle<'a> {
        let (text, status) = daxfs_bundle(place, &[&[args[0], name], &args[1..]].concat());
        assert_eq!(status, 0, "{text}");
        Bundle(place, name)
    }

    fn run(&self, runtime: (&str, &[&str])) -> (String, i32) {
        let name = self.1.replace(|byte: char| !byte.is_ascii_alphanumeric(), "-");
        let id = format!("daxfs-test-{}-{name}", std::process::id());
        let mut command = without_hybrid_groups();
        command.arg(runtime.0).args(runtime.1).args(["run", "--bundle"]).arg(self.0.path(self.1)).arg(id);
        said(&command.stdin(Stdio::null()).output().unwrap())
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        for name in ["rootfs", "image"] {
            let _ = dmabuf::unmount(&self.0.path(self.1).join(name));
        }
    }
}

fn daxfs_bundle(place: &Place, args: &[&str]) -> (String, i32) {
    let mut command = Command::new(daxfs());
    command.arg("bundle").args(args).current_dir(place.path("")).stdin(Stdio::null());
    said(&command.output().unwrap())
}

#[test]
fn runtimes_run_what_the_image_says() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let image = place.configured();
    let image = image.to_str().unwrap();
    let bundle = Bundle::make(&place, "a,b:c", &[image, "--as", "erofs"]);
    for runtime in RUNTIMES.into_iter().filter(|runtime| has(runtime.0)) {
        assert_eq!(bundle.run(runtime), ("hello\nweb\n/srv/made\n".into(), 0), "{}", runtime.0);
    }
    let script = "cat /file; id -u; echo $HOME; echo new > /file; echo more > /srv/more; ls -d /.daxfs/*; cat /srv/more; \
         grep CapEff /proc/self/status; hostname; exit 3";
    let args = [image, "--as", "fuse", "--user", "0", "--hostname", "box", "--", script];
    let bundle = Bundle::make(&place, "second", &args);
    for (runtime, file) in
        RUNTIMES.into_iter().filter(|runtime| has(runtime.0)).zip(["of the image\n", "new\n"])
    {
        let (text, status) = bundle.run(runtime);
        let expected = format!("{file}0\n/root\nmore\n{CAPABILITIES}\nbox\n");
        let text = text.replace("ls: /.daxfs/*: No such file or directory\n", "");
        assert_eq!((text, status), (expected, 3), "{}", runtime.0);
    }
    // Its changes are the bundle's, and the image is as it was.
    assert_eq!(fs::read_to_string(place.path("second/changes/upper/srv/more")).unwrap(), "more\n");
    assert_eq!(place.run(&[image, "--entrypoint", "cat", "--", "/file"]), ("of the image\n".into(), 0));
}

#[test]
fn a_root_that_is_read_only_stays_so() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let shell = [
        "--read-only",
        "--net",
        "none",
        "--",
        "sh",
        "-c",
        "echo x > /tmp/x && cat /tmp/x; touch /y; ip -o link",
    ];
    let (text, status) = daxfs_bundle(&place, &[&["image.daxfs", "none"], &shell[..]].concat());
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("no directory /proc") && !place.path("none").exists(), "{text}");
    assert_eq!(mounts_with("none/rootfs"), [""; 0]);
    for folder in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir(place.path("root").join(folder)).unwrap();
    }
    place.pack();
    let bundle = Bundle::make(&place, "bundle", &[&["image.daxfs"], &shell[..]].concat());
    for runtime in RUNTIMES.into_iter().filter(|runtime| has(runtime.0)) {
        let (text, _) = bundle.run(runtime);
        assert!(text.starts_with("x\n") && text.contains("/y: Read-only file system"), "{text}");
        assert!(text.contains(": lo:") && !text.contains("eth0"), "{text}");
    }
}

#[test]
fn root_of_a_user_namespace_has_bundles_too() {
    if !can_run() || !has("crun") {
        return;
    }
    if !unshare(&["--user", "--map-root-user", "--mount", "true"]) {
        eprintln!("not run: no user namespaces");
        return;
    }
    let place = Place::new();
    let script = "set -e; cd \"$1\"; \"$2\" bundle image.daxfs b -- sh -c 'id -u; echo x > /new; cat /new /file'; \
         crun --cgroup-manager=disabled --root \"$1/state\" run --bundle b b1; umount b/rootfs b/image";
    let mut shell = without_hybrid_groups();
    shell.args(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    let output = shell.arg(place.path("")).arg(daxfs()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\nx\nof the image\n");
}

#[test]
fn what_cannot_be_a_bundle_leaves_nothing() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/file"), "").unwrap();
    fs::write(place.path("broken"), "no image").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    for (args, named) in [
        (&["image.daxfs", "b"][..], "names no command"),
        (&["image.daxfs", "b", "--user", "nobody-here", "--", "sh"], "no user"),
        (&["image.daxfs", "full", "--", "sh"], "not empty"),
        (&["image.daxfs", "no/b", "--", "sh"], "No such file"),
        (&["broken", "b", "--", "sh"], "broken"),
        (&["-", "b", "--", "sh"], "read once"),
        (&["image.daxfs", "empty"], "names no command"),
    ] {
        let (text, status) = daxfs_bundle(&place, args);
        assert_eq!(status, 2, "{args:?}: {text}");
        assert!(text.lines().last().unwrap().contains(named), "{args:?}: {text}");
        assert!(!place.path("b").exists(), "{args:?}");
    }
    assert!(place.path("full/file").exists());
    assert_eq!(fs::read_dir(place.path("empty")).unwrap().count(), 0);
    assert_eq!(mounts_with(place.path("").to_str().unwrap()), [""; 0]);
    let as_nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups"])
        .args([daxfs().as_path(), Path::new("bundle"), &place.path("image.daxfs"), Path::new("/tmp/x")])
        .output();
    let (text, status) = said(&as_nobody.unwrap());
    assert_eq!(status, 2, "{text}");
}
