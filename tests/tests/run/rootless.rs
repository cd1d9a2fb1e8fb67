//! Containers of a user who is not root.

use super::support::{CAPABILITIES, NOBODY, Place, can_run, daxfs, said};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

/// A place that others than root can use, with a `/dev/fuse` as udev makes it, which is laid over the machine's for one
/// command at a time.
struct Shared(Place);

impl Shared {
    fn new() -> Option<Self> {
        if !can_run() {
            return None;
        }
        let has = |program: &str| {
            Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
        };
        if !has("setpriv") {
            eprintln!("not run: there is no setpriv (the package util-linux)");
            return None;
        }
        let place = Place::new();
        fs::copy(daxfs(), place.path("daxfs")).unwrap();
        for image in ["image.daxfs", "plain.daxfs"] {
            fs::set_permissions(place.path(image), Permissions::from_mode(0o644)).unwrap();
        }
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        let fuse = place.path("fuse");
        nix::sys::stat::mknod(&fuse, kind, nix::sys::stat::Mode::empty(), libc::makedev(10, 229)).unwrap();
        fs::set_permissions(&fuse, Permissions::from_mode(0o666)).unwrap();
        fs::create_dir(place.path("own")).unwrap();
        chown(place.path("own"), Some(NOBODY), Some(NOBODY)).unwrap();
        fs::write(place.path("ids"), "").unwrap();
        let shared = Self(place);
        let (text, status) = shared.bash("unshare --user --map-root-user true");
        if status != 0 {
            assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{text}");
            eprintln!("not run: no user namespaces for others than root: {text}");
            return None;
        }
        Some(shared)
    }

    /// A script of nobody.
    fn bash(&self, script: &str) -> (String, i32) {
        let around = "mount --bind fuse /dev/fuse; touch /etc/subuid /etc/subgid 2>/dev/null
            mount --bind ids /etc/subuid && mount --bind ids /etc/subgid
            exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all env -u HOME sh -c \"$1\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", around, "sh", script]).current_dir(self.0.path(""));
        said(&command.stdin(Stdio::null()).output().unwrap())
    }

    #[track_caller]
    fn run(&self, args: &str) -> String {
        let (text, status) = self.bash(&format!("./daxfs run {args}"));
        assert_eq!(status, 0, "{args}: {text}");
        text
    }
}

#[test]
fn a_user_is_root_in_a_container() {
    let Some(place) = Shared::new() else { return };
    let script = "id -u; grep -E 'CapEff|NoNewPrivs' /proc/self/status; cat /file; echo x >/file; touch /etc/new /x && cat /file; \
                  ls -a / | grep daxfs; wc -l </proc/self/uid_map; stat -c %u /bin /etc/passwd; mount -t tmpfs t /srv || echo refused; \
                  test -e /sys/kernel && touch /sys/x || echo sealed";
    for image in ["image.daxfs", "plain.daxfs", "root"] {
        let text = place.run(&format!("{image} -- sh -c '{}'", script.replace('\'', "'\\''")));
        let expected =
            format!("0\n{CAPABILITIES}\nNoNewPrivs:\t1\nof the image\nx\n1\n0\n0\nrefused\nsealed\n");
        // Of a directory of root's all files are somebody else's.
        let lines = if image == "root" { "of the image\n" } else { expected.as_str() };
        assert!(text.contains(lines), "{image}: {text}");
    }
    let text = place.run("--net none image.daxfs -- ip addr show lo");
    assert!(text.contains("127.0.0.1"), "{text}");
    let text = place.run("--upper own/changes image.daxfs -- sh -c 'echo kept >/file; rm -r /d'");
    assert_eq!(text, "");
    let text = place.run("--upper own/changes image.daxfs -- sh -c 'cat /file; ls /'");
    assert!(text.starts_with("kept\n") && !text.contains("\nd\n"), "{text}");
}

#[test]
fn other_users_take_ranges_of_ids() {
    let Some(place) = Shared::new() else { return };
    let (text, status) = place.bash("./daxfs run --user web image.daxfs -- id");
    assert!(status == 2 && text.contains("newuidmap") && text.lines().count() == 1, "{text}");
    if Command::new("newuidmap").output().is_err() {
        eprintln!("not run: there is no newuidmap (the package uidmap)");
        return;
    }
    fs::write(place.0.path("ids"), "nobody:200000:65536\n").unwrap();
    let text = place
        .run("--user web image.daxfs -- sh -c 'id; touch /x 2>/dev/null || echo refused; stat -c %u /bin'");
    assert_eq!(text, "uid=33(web) gid=34(www) groups=50(log)\nrefused\n0\n");
    let text = place.run("image.daxfs -- sh -c 'touch /x && chown 33:34 /x && stat -c %u:%g /x'");
    assert_eq!(text, "33:34\n");
}

#[test]
fn what_a_machine_forbids_is_said() {
    let Some(place) = Shared::new() else { return };
    // No user namespace below this one.
    let script = "unshare --user --map-root-user sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; \
                  setpriv --bounding-set=-all --inh-caps=-all ./daxfs run image.daxfs -- true'";
    let (text, status) = place.bash(script);
    assert!(
        status == 2 && text.contains("user namespace") && text.contains("max_user_namespaces"),
        "{status}: {text}"
    );
    // No FUSE.
    fs::set_permissions(place.0.path("fuse"), Permissions::from_mode(0o600)).unwrap();
    let (text, status) = place.bash("./daxfs run image.daxfs -- true");
    assert!(status == 2 && text.contains("Permission denied") && text.contains("fuse"), "{status}: {text}");
}
