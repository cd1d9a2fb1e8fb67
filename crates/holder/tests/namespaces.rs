//! A client in a container of its own shares nothing with the holder but the directory of the socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::process::Command;

use support::{CLIENT, Place, Start, be_process, hash_of, is_root_for, not_run};

#[test]
fn process() {
    be_process();
}

/// Makes new namespaces as an unprivileged user, then a root directory that holds this program, the libraries that it
/// is linked with, and the socket's directory; no `/dev/shm`, no `/proc`, no `/tmp`.
const CONTAINER: &str = r#"
set -e
mount -t tmpfs none "$ROOT"
mkdir "$ROOT/s" "$ROOT/old"
touch "$ROOT/program"
mount --bind "$SOCKET_DIR" "$ROOT/s"
mount --bind "$SOCKET_DIR/program" "$ROOT/program"
for libraries in /lib /lib64 /usr/lib /usr/lib64; do
    [ -d "$libraries" ] || continue
    mkdir -p "$ROOT$libraries"
    mount --rbind "$libraries" "$ROOT$libraries"
done
exec chroot "$ROOT" /program --exact process --nocapture --test-threads=1
"#;

#[test]
fn attach_from_another_container() {
    if !is_root_for("becoming another user") {
        return;
    }
    let place = Place::new();
    let root = place.dir.path().join("root");
    fs::create_dir(&root).unwrap();
    place.program();
    place.reports();
    let container = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user"]);
        command.args(["--map-root-user", "--mount", "--ipc", "--net", "--pid", "--uts", "--fork"]);
        command.args(["sh", "-c", script]).env("ROOT", &root).env("SOCKET_DIR", place.dir.path());
        command
    };
    if !container("true").status().is_ok_and(|status| status.success()) {
        not_run("user namespaces, setpriv or unshare are not available");
        return;
    }
    let _holder = place.serve(&Start { open_to_all: true, ..Start::default() });
    place.load_path("llama", false, &place.weights("w", 6, 3 << 20)).unwrap();
    let mut client = container(CONTAINER);
    client.env(CLIENT, "daxfs+unix:///s/daxfs.sock/llama").env("DAXFS_TEST_REPORT", "/s/reports/inside");
    let output = client.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(place.report("inside"), hash_of(&place.open("llama")));
}
