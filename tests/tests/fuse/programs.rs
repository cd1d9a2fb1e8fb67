//! Programs from a mount: with their libraries, and with the mount as their root directory.

use super::support::{Place, can_mount, text};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Libraries that a program loads, by the paths that it looks for them at.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let words = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

/// Puts programs with their libraries below `root`, each at its own path.
fn install(root: &Path, programs: &[PathBuf]) {
    let copy = |from: &Path| {
        let to = root.join(from.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    for program in programs {
        let program = program.canonicalize().unwrap();
        copy(&program);
        libraries(&program).iter().for_each(|library| copy(library));
    }
}

fn below(root: &Path, program: &Path, args: &[&str]) -> String {
    let root = root.to_owned();
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", "/bin:/usr/bin");
    let enter = move || {
        nix::unistd::chroot(&root)?;
        Ok(nix::unistd::chdir("/")?)
    };
    #[allow(unsafe_code, reason = "what a child does before its program")]
    // SAFETY: two system calls, as a child may make between fork and exec.
    unsafe {
        command.pre_exec(enter)
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

#[test]
fn a_root_file_system_runs_its_programs() {
    if !can_mount() {
        return;
    }
    let place = Place::empty();
    let bin = |name: &str| Path::new("/bin").join(name).canonicalize().unwrap();
    let programs = ["sh", "ls", "sort", "cat", "cp", "find"].map(bin);
    install(&place.tree(), &programs);
    fs::create_dir_all(place.tree().join("etc")).unwrap();
    fs::write(place.tree().join("etc/list"), "c\nb\na\n").unwrap();
    symlink("/etc/list", place.tree().join("absolute")).unwrap();
    fs::write(place.tree().join("script"), "#!/the-shell\nsort < absolute\n").unwrap();
    symlink(&programs[0], place.tree().join("the-shell")).unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(place.tree().join("script"), mode).unwrap();
    if !place.tree().join("bin").exists() {
        symlink("usr/bin", place.tree().join("bin")).unwrap();
    }
    place.pack();
    let mount = place.mount();
    for _ in 0..2 {
        let script = "sort /etc/list; cat absolute | sort -r; ls /; cp /etc/list /etc/other || echo refused";
        let said = below(mount.path(), &programs[0], &["-c", script]);
        assert!(said.starts_with("a\nb\nc\nc\nb\na\nabsolute\n"), "{said}");
        assert!(said.contains("Read-only file system") && said.contains("\nrefused\n"), "{said}");
        assert_eq!(below(mount.path(), Path::new("/script"), &[]), "a\nb\nc\n");
    }
}

#[test]
fn python_finds_its_modules_and_loads_its_libraries() {
    if !can_mount() {
        return;
    }
    let ask = "import sys, sysconfig; print(sys.executable); print(sysconfig.get_path('stdlib')); print(sys.base_prefix)";
    let output = Command::new("python3").args(["-c", ask]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let [python, modules, prefix] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    let place = Place::empty();
    let python = Path::new(python).canonicalize().unwrap();
    let mut programs = vec![python.clone()];
    // Libraries of modules, too.
    let loaded = Path::new(modules).join("lib-dynload");
    programs.extend(fs::read_dir(&loaded).unwrap().map(|entry| entry.unwrap().path()));
    install(&place.tree(), &programs);
    let to = place.tree().join(Path::new(modules).strip_prefix("/").unwrap());
    fs::create_dir_all(&to).unwrap();
    for part in ["encodings", "collections", "json", "importlib", "re", "ctypes", "hashlib.py", "sqlite3"] {
        let from = Path::new(modules).join(part);
        if from.exists() {
            assert!(Command::new("cp").arg("-r").arg(from).arg(&to).status().unwrap().success());
        }
    }
    for entry in fs::read_dir(modules).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "py") {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    place.pack();
    let mount = place.mount();
    let script = "import json, hashlib, random, math, struct, ctypes; \
                  print(json.dumps(hashlib.sha256(b'x').hexdigest()[:8]), math.comb(5, 2))";
    let home = format!("PYTHONHOME={prefix}");
    let python = python.to_str().unwrap();
    for _ in 0..2 {
        let args = ["-E", "-S", "-c", script];
        // -E leaves variables out: the prefix is found beside the program, as it is without chroot.
        assert_eq!(below(mount.path(), Path::new(python), &args), "\"2d711642\" 10\n", "{home}");
    }
}
