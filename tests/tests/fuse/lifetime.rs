//! What ends a mount, and what is left of it then: nothing.

use super::support::{Place, can_mount, daxfs, everything, mount_command, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Long enough for everything here on a slow machine.
const LONG: Duration = Duration::from_secs(60);

/// Waits until something holds.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// Processes that serve a mount at a place: those with its path as an argument.
fn servers(place: &Place) -> Vec<Pid> {
    let at = place.at();
    let found = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = line.split(|&byte| byte == 0);
        let is_ours = words.clone().nth(1) == Some(b"mount")
            && words.any(|word| word == at.as_os_str().as_encoded_bytes());
        is_ours.then_some(Pid::from_raw(pid))
    });
    found.collect()
}

/// Mounts by the command and returns the process that serves.
fn mount(place: &Place, options: &[&str]) -> Pid {
    let (image, at) = (place.image(), place.at());
    let mut args = vec![image.as_os_str(), at.as_os_str()];
    args.extend(options.iter().map(OsStr::new));
    let output = mount_command(&args);
    assert!(output.status.success(), "{}", text(&output));
    // It answers at once.
    assert_eq!(fs::read(at.join("config.json")).unwrap(), b"{}\n");
    let servers = servers(place);
    assert_eq!(servers.len(), 1);
    servers[0]
}

fn is_there(pid: Pid) -> bool {
    // One that nobody has waited for is there in name only.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// However few descriptors there are: what cannot be served is not mounted, and nobody waits for its answers.
#[test]
fn too_few_descriptors_are_an_error() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let (image, at) = (place.image(), place.at());
    let mut said = String::new();
    let mounted = (4..200).any(|limit| {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "60", "prlimit"]).arg(format!("--nofile={limit}")).arg(daxfs());
        command.args(["mount", "-o", "threads=4"]).args([&image, &at]);
        let output = command.output().unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1 | 2 | 127)), "{limit}: {}: {}", output.status, text(&output));
        assert_eq!(code == Some(0), place.is_mounted(), "{limit}: {}", text(&output));
        said += &text(&output);
        code == Some(0)
    });
    assert!(mounted && said.contains("answer the kernel: Too many open files"), "{said}");
    assert_eq!(fs::read(at.join("config.json")).unwrap(), b"{}\n");
}

#[test]
fn umount_ends_the_process() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    for program in [&["umount"][..], &["fusermount3", "-u"], &["umount", "-l"]] {
        let pid = mount(&place, &[]);
        let ended = Command::new(program[0]).args(&program[1..]).arg(place.at()).output();
        let Ok(output) = ended else {
            eprintln!("not run: there is no {}", program[0]);
            nix::mount::umount(&place.at()).unwrap();
            continue;
        };
        assert!(output.status.success(), "{}", text(&output));
        until("the process is there", || !is_there(pid));
        assert!(!place.is_mounted());
    }
}

#[test]
fn a_signal_takes_the_mount_away_also_under_open_files() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let pid = mount(&place, &[]);
        let mut open = File::open(place.at().join("bytes-2097153")).unwrap();
        kill(pid, signal).unwrap();
        until("the process is there", || !is_there(pid));
        assert!(!place.is_mounted(), "{signal}");
        assert!(fs::read_dir(place.at()).unwrap().next().is_none(), "{signal}");
        // What is still open says that nobody answers.
        let mut bytes = Vec::new();
        assert!(open.read_to_end(&mut bytes).is_err() || bytes.len() == 2_097_153, "{}", bytes.len());
    }
}

#[test]
fn what_a_killed_process_leaves_is_replaced_by_the_next_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let pid = mount(&place, &[]);
    kill(pid, Signal::SIGKILL).unwrap();
    until("the process is there", || !is_there(pid));
    let error = fs::read_dir(place.at()).unwrap_err();
    // The second is said to a call that the kernel was about to send when the process went.
    assert!([libc::ENOTCONN, libc::ECONNABORTED].map(Some).contains(&error.raw_os_error()), "{error}");
    let pid = mount(&place, &[]);
    nix::mount::umount(&place.at()).unwrap();
    until("the process is there", || !is_there(pid));
    // There was one mount, not two above each other.
    assert!(!place.is_mounted());
}

#[test]
fn killed_clients_leave_a_mount_that_answers() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let pid = mount(&place, &["-o", "threads=2"]);
    let reading = |n: u32| {
        let script = "while :; do cat \"$0\"/bytes-* >/dev/null; find \"$0\" >/dev/null; done";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(place.at()).stderr(Stdio::null()).env("N", n.to_string());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().unwrap()
    };
    for _ in 0..5 {
        let clients: Vec<Child> = (0..4).map(reading).collect();
        sleep(Duration::from_millis(100));
        for mut client in clients {
            let group = Pid::from_raw(-i32::try_from(client.id()).unwrap());
            kill(group, Signal::SIGKILL).unwrap();
            client.wait().unwrap();
        }
        assert_eq!(fs::read(place.at().join("config.json")).unwrap(), b"{}\n");
    }
    // Those that are being killed still have files open for a moment.
    until("the mount is in use", || nix::mount::umount(&place.at()).is_ok());
    until("the process is there", || !is_there(pid));
}

#[test]
fn the_command_returns_when_the_mount_answers_and_keeps_nothing_of_its_caller() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    // The output of a command in the background would never end for one that reads it.
    let pid = mount(&place, &[]);
    for fd in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(), Path::new("/dev/null"));
    }
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid);
    kill(pid, Signal::SIGTERM).unwrap();
    until("the process is there", || !is_there(pid));
}

#[test]
fn in_the_foreground_it_tells_systemd_and_serves_until_it_is_ended() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let socket = place.tree().with_file_name("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(LONG)).unwrap();
    let mut process = Command::new(daxfs())
        .args(["mount", "--foreground"])
        .args([place.image(), place.at()])
        .env("NOTIFY_SOCKET", &socket)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = [0; 64];
    let len = listener.recv(&mut text).unwrap();
    assert_eq!(&text[..len], b"READY=1");
    assert!(place.is_mounted());
    kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert!(!place.is_mounted());
}

#[test]
fn what_cannot_be_mounted_says_why_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new(&everything());
    let (image, at) = (place.image(), place.at());
    let [none, file] = ["none", "tree/config.json"].map(|name| at.with_file_name(name));
    fs::write(at.with_file_name("broken"), "no image").unwrap();
    let broken = at.with_file_name("broken");
    let cases: [(&[&OsStr], &str); 7] = [
        (&[image.as_os_str(), none.as_os_str()], "No such file or directory"),
        (&[image.as_os_str(), file.as_os_str()], "is no directory to mount at"),
        (&[none.as_os_str(), at.as_os_str()], "No such file or directory"),
        (&[broken.as_os_str(), at.as_os_str()], "broken"),
        (&[image.as_os_str(), at.as_os_str(), "-o".as_ref(), "journal".as_ref()], "\"journal\""),
        (&[image.as_os_str(), at.as_os_str(), "-o".as_ref(), "auto_unmount".as_ref()], "allow_other"),
        (&["--as".as_ref(), "kernel".as_ref(), image.as_os_str(), at.as_os_str()], "neither a dma-buf nor"),
    ];
    for (args, why) in cases {
        let output = mount_command(args);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let said = text(&output);
        assert!(said.contains(why) && said.lines().count() == 1, "{said}");
        assert!(!place.is_mounted() && servers(&place).is_empty());
    }
}
