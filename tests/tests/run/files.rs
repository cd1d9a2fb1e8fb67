//! What of the image, of the machine and of what was changed a container sees.

use super::support::{Place, can_run, daxfs, mounts_with, said};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Command, Stdio};

#[test]
fn a_container_sees_the_image_and_changes_its_own_view_alone() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let before = fs::read(place.path("image.daxfs")).unwrap();
    let script = "cat /file; ls -a / | grep daxfs; echo new >/file; rm -r /d; mkdir -p /var/x; cat /file; ls /; ps > /tmp/ps; wc -l < /tmp/ps; \
                  stat -c '%a %u' / /tmp; echo $$";
    for way in ["erofs", "fuse"] {
        for _ in 0..2 {
            let text = place.shell(&["--as", way], script);
            // A heading, the first process, the shell, ps.
            let expected =
                "of the image\nnew\nbin\ndev\netc\nfile\nproc\nsrv\nsys\ntmp\nvar\n4\n755 0\n1777 0\n2\n";
            assert_eq!(text, expected, "{way}");
        }
    }
    assert!(fs::read(place.path("image.daxfs")).unwrap() == before);
    assert_eq!(mounts_with(place.path("").to_str().unwrap()), [""; 0]);
    // The root as in the image, whatever mode it has.
    fs::set_permissions(place.path("root"), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    place.pack();
    assert_eq!(place.shell(&[], "stat -c %a /"), "711\n");
}

#[test]
fn changes_are_kept_on_demand_by_one_container_at_a_time() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    // OverlayFS does not take another overlay for changes, and a tmpfs it does.
    let args = ["--upper", "changes"];
    place.shell(&args, "echo kept >/file; rm -r /d; touch /made");
    assert_eq!(place.shell(&args, "cat /file; ls / | grep -E 'made|^d$'"), "kept\nmade\n");
    assert_eq!(place.shell(&[], "cat /file"), "of the image\n");
    let mut first = place.command(&["--upper", "changes", "image.daxfs", "--", "sh", "-c", "echo up; cat"]);
    let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(first.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let (text, status) = place.run(&["--upper", "changes", "image.daxfs", "--", "true"]);
    assert!(status == 2 && text.contains("another container has it"), "{text}");
    drop(first.stdin.take());
    assert!(first.wait().unwrap().success());
    place.shell(&args, "true");
}

#[test]
fn a_root_can_be_read_only() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let text = place.shell(&["--read-only"], "touch /file /x; touch /tmp/x /dev/shm/x && ls /tmp; echo end");
    assert!(text.starts_with("x\nend\n") && text.matches("Read-only file system").count() == 2, "{text}");
}

#[test]
fn what_is_bound_is_shown_where_it_is_wanted() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("shared")).unwrap();
    fs::write(place.path("shared/in"), "in\n").unwrap();
    fs::write(place.path("one"), "one\n").unwrap();
    let args =
        ["--bind", "shared:/new/place", "--bind", "shared:/d:ro", "--bind", "one:/file:ro", "--read-only"];
    let script = "cat /new/place/in /d/in /file; echo out >/new/place/out; touch /d/x /file; echo end";
    let text = place.shell(&args, script);
    assert!(text.starts_with("in\nin\none\nend\n") && text.matches("Read-only").count() == 2, "{text}");
    assert_eq!(fs::read_to_string(place.path("shared/out")).unwrap(), "out\n");
    assert_eq!(fs::read_dir(place.path("shared")).unwrap().count(), 2);
}

#[test]
fn links_of_an_image_lead_nowhere_out_of_it() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let (root, outside) = (place.path("root"), place.path("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("hosts"), "theirs\n").unwrap();
    // Where files of the machine are put, and what is bound.
    symlink(outside.join("hosts"), root.join("etc/hosts")).unwrap();
    symlink("../../../../../../../../../etc/none/x", root.join("etc/resolv.conf")).unwrap();
    symlink(&outside, root.join("link")).unwrap();
    place.pack();
    fs::write(place.path("one"), "one\n").unwrap();
    let inner = outside.to_str().unwrap();
    // What it leads to is looked for in the container, and not there.
    let (text, status) = place.run(&["--bind", "one:/link/new", "image.daxfs", "--", "true"]);
    assert!(status == 2 && text.contains("/link/new"), "{text}");
    let text = place.shell(&["--bind", &format!("one:{inner}/new")], "cat /link/new");
    assert_eq!(text, "one\n");
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["hosts"], "something was made outside");
    assert_eq!(fs::read_to_string(outside.join("hosts")).unwrap(), "theirs\n");
    for name in ["proc", "sys", "dev"] {
        symlink("/etc", root.join(name)).unwrap();
        place.pack();
        let (text, status) = place.run(&["image.daxfs", "--", "true"]);
        assert!(status == 2 && text.contains(&format!("/{name} is no directory in the image")), "{text}");
        fs::remove_file(root.join(name)).unwrap();
    }
}

#[test]
fn a_mount_is_a_root_for_several_containers() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let at = place.path("mounted");
    fs::create_dir(&at).unwrap();
    let image = place.configured();
    let mount = Command::new(daxfs())
        .args(["mount", "--as", "fuse", "-o", "allow_other"])
        .args([&image, &at])
        .status();
    assert!(mount.unwrap().success());
    let outcome: Vec<_> = (0..3).map(|_| place.run(&[&at])).collect();
    nix::mount::umount(&at).unwrap();
    // With the configuration that lies in it.
    assert!(outcome.iter().all(|found| *found == ("hello\nweb\n/srv/made\n".into(), 0)), "{outcome:?}");
    let (text, status) = place.run(&["root", "--", "sh", "-c", "echo x >/file; cat /file"]);
    assert_eq!((text.as_str(), status), ("x\n", 0));
    assert_eq!(fs::read_to_string(place.path("root/file")).unwrap(), "of the image\n");
}

#[test]
fn what_the_caller_has_open_is_not_the_containers() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let file = fs::File::open(place.path("image.daxfs")).unwrap();
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    // It can be the image itself.
    let image = format!("fd:{}", file.as_raw_fd());
    let (text, status) = place.run(&[&image, "--", "sh", "-c", "ls /proc/self/fd; cat /file"]);
    // And the directory that is listed.
    assert_eq!((text.as_str(), status), ("0\n1\n2\n3\nof the image\n", 0));
    assert_eq!(fs::metadata(place.path("image.daxfs")).unwrap().ino(), file.metadata().unwrap().ino());
}

#[test]
fn what_is_open_while_it_starts_is_no_way_out_of_it() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("secret"), "of the machine\n").unwrap();
    // The caller has a directory open, as some do without knowing.
    let open = fs::File::open(place.path("")).unwrap();
    nix::fcntl::fcntl(&open, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let far = format!("../../../../../..{}", place.path("secret").display());
    let script = format!("pwd; for name in secret ../secret {far}; do cat $name; done; true");
    let link = place.path("root/etc/resolv.conf");
    for number in 3..14 {
        let at = format!("/proc/self/fd/{number}");
        for name in ["made", "../made"] {
            let _ = fs::remove_file(&link);
            // Where a file of the machine is put.
            symlink(format!("{at}/{name}-{number}"), &link).unwrap();
            place.run(&["--upper", "changes", "root", "--", "true"]);
            // What is made for the command.
            place.run(&["--upper", "changes", "--workdir", &format!("{at}/{name}"), "root", "--", "true"]);
        }
        let (text, status) =
            place.run(&["--upper", "changes", "--workdir", &at, "root", "--", "sh", "-c", &script]);
        assert!(!text.contains("of the machine"), "descriptor {number}, status {status}: {text}");
    }
    // Standard input is the command's, whatever it is.
    let mut command = place.command(&["--workdir", "/proc/self/fd/0", "root", "--", "cat", "secret"]);
    let (text, status) = said(&command.stdin(open).output().unwrap());
    assert!(status == 2 && text.contains("not in the container"), "{status}: {text}");
    let mut names: Vec<_> =
        fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["changes", "image.daxfs", "plain.daxfs", "root", "secret"],
        "something was made outside"
    );
    assert!(!place.path("changes/made").exists() && !place.path("root/made").exists());
}
