//! Which command runs, as whom, where, with which environment and exit status.

use super::support::{CAPABILITIES, Place, can_run};

#[test]
fn the_configuration_of_the_image_holds_and_the_command_line_comes_first() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let image = place.configured();
    let image = image.to_str().unwrap();
    for way in [&["--as", "erofs"][..], &["--as", "fuse"], &[]] {
        let run = |args: &[&str]| place.run(&[way, args].concat());
        assert_eq!(run(&[image]), ("hello\nweb\n/srv/made\n".into(), 0));
        assert_eq!(run(&[image, "--", "exit 3"]), (String::new(), 3));
        assert_eq!(run(&[image, "-e", "GREETING=hi", "--user", "0", "-w", "/"]), ("hi\nroot\n/\n".into(), 0));
        let (ids, _) = run(&["--entrypoint", "id", image]);
        assert_eq!(ids, "uid=33(web) gid=34(www) groups=50(log)\n");
        let (ids, _) = run(&["--entrypoint", "id", "--user", "7:log", image]);
        assert_eq!(ids, "uid=7 gid=50(log)\n");
    }
    let (env, _) = place.run(&["--entrypoint", "env", "-e", "CARGO_NOT_THERE", image]);
    let mut lines: Vec<_> = env.lines().filter(|line| !line.starts_with("TERM=")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["GREETING=hello", "HOME=/srv", "PATH=/bin"]);
}

#[test]
fn exit_statuses_are_those_of_shells() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    for (command, expected, named) in [
        (&["true"][..], 0, ""),
        (&["false"], 1, ""),
        (&["sh", "-c", "exit 77"], 77, ""),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
        (&["sh", "-c", "kill -TERM $$"], 143, ""),
        (&["no-such-program"], 127, "no-such-program: No such file or directory"),
        (&["/etc/none/x"], 127, "No such file or directory"),
        (&["/etc/no-program"], 126, "/etc/no-program: Permission denied"),
        (&["/etc"], 126, "/etc: Permission denied"),
    ] {
        let (text, status) = place.run(&[&["image.daxfs", "--"], command].concat());
        assert_eq!(status, expected, "{command:?}: {text}");
        assert!(text.contains(named) && text.lines().count() == usize::from(!named.is_empty()), "{text}");
    }
}

#[test]
fn what_cannot_be_run_is_one_line_and_status_2() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    std::fs::write(place.path("broken"), "no image").unwrap();
    for (args, named) in [
        (&["image.daxfs"][..], "names no command"),
        (&["none.daxfs", "--", "true"], "No such file or directory"),
        (&["broken", "--", "true"], "broken"),
        (&["--user", "nobody", "image.daxfs", "--", "true"], "has no user \"nobody\""),
        (&["--user", "0:none", "image.daxfs", "--", "true"], "has no group \"none\""),
        (&["--workdir", "/file", "image.daxfs", "--", "true"], "working directory /file"),
        (&["--bind", "none:/x", "image.daxfs", "--", "true"], "none"),
        (&["--bind", "image.daxfs:/d", "image.daxfs", "--", "true"], "/d is a directory"),
        (&["--as", "fuse", "root", "--", "true"], "a directory is taken as it is"),
        (&["--as", "kernel", "image.daxfs", "--", "true"], "neither a dma-buf nor"),
    ] {
        let (text, status) = place.run(args);
        assert!(
            status == 2 && text.contains(named) && text.lines().count() == 1,
            "{args:?}: {status}: {text}"
        );
    }
}

#[test]
fn root_in_a_container_has_few_rights() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let script = "grep CapEff /proc/self/status; echo x >/proc/sys/kernel/hostname; echo b >/proc/sysrq-trigger; \
                  mount -t tmpfs t /srv; mknod /x c 1 3; hostname other; wc -c </proc/keys; ls /sys/firmware | wc -l; echo end";
    let text = place.shell(&[], script);
    assert!(text.starts_with(&format!("{CAPABILITIES}\n0\n0\nend\n")), "{text}");
    for refused in [
        "hostname: Read-only file system",
        "mount: permission denied",
        "/x: Operation not permitted",
        "sethostname",
    ] {
        assert!(text.contains(refused), "{refused}: {text}");
    }
    // Other users have none at all.
    let text =
        place.shell(&["--user", "web"], "grep CapEff /proc/self/status; touch /etc/passwd || echo refused");
    assert!(text.starts_with("CapEff:\t0000000000000000\nrefused\n"), "{text}");
    let text = place.shell(&["--hostname", "box"], "hostname; ls /proc/1/root || echo closed");
    assert!(text.starts_with("box\nclosed\n"), "{text}");
}

#[test]
fn the_network_is_the_machines_or_none() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let own = std::fs::read_to_string("/proc/net/dev").unwrap();
    let script = "cat /proc/net/dev | wc -l; test -e /etc/resolv.conf && echo names";
    let text = place.shell(&[], &format!("{script} || true"));
    assert!(text.starts_with(&format!("{}\n", own.lines().count())), "{text}");
    assert_eq!(text.contains("names"), std::path::Path::new("/etc/resolv.conf").exists());
    let text = place.shell(&["--net", "none"], &format!("{script} || ip addr show lo"));
    // Two lines of headings, and the loopback device, which is on.
    assert!(text.starts_with("3\n") && text.contains("127.0.0.1") && text.contains("UP"), "{text}");
}
