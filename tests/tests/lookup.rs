//! Files found as a kernel on a device finds them: `daxfs_device.h`, compiled as C and as C++, on a block of
//! `daxfs_device::Lookup`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Entry, File, FileType, Image, OpenOptions, Region};
use daxfs_device::Lookup;
use daxfs_tests::golden::{Golden, project_root};
use mkimage::{Links, Packer};
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Compiles `tests/cuda/lookup.c` without a warning; `None` where there is no such compiler.
fn program(folder: &Path, compiler: &str, language: &str) -> Option<PathBuf> {
    let program = folder.join(language);
    let output = Command::new(compiler)
        .args(["-x", language, "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(project_root().join("crates/device/include"))
        .arg(project_root().join("tests/cuda/lookup.c"))
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

/// What the program says of a node.
fn shown(image: &Image, entry: &Entry) -> String {
    let target = image.entry(entry.path()).unwrap_or_else(|_| entry.clone());
    let kind = match target.file_type() {
        FileType::File => 1,
        FileType::Directory => 2,
        _ => 0,
    };
    let file = target.file().ok();
    // Bytes of a backing file are not in the image.
    let is_here = |file: &&File| file.is_empty() || file.extent().is_some() && image.backing().is_none();
    let here = file.as_ref().filter(is_here);
    let bytes = here.map_or_else(Vec::new, |file| file.to_vec().unwrap());
    let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let (ino, len) = (target.metadata().ino, here.map_or(0, File::len));
    format!("kind {kind} ino {ino} len {len} at {} sum {sum}", u8::from(here.is_some()))
}

/// Asks for every path, hash, inode and directory.
fn check(program: &Path, image: &Image, folder: &Path) {
    let lookup = Lookup::of(image).unwrap();
    let [image_path, lookup_path] = ["image", "lookup"].map(|name| folder.join(name));
    fs::write(&image_path, image.region().view().to_vec()).unwrap();
    fs::write(&lookup_path, lookup.as_bytes()).unwrap();
    let (mut questions, mut answers) = (String::new(), String::new());
    let entries: Vec<Entry> = std::iter::once(image.root()).chain(image.walk()).collect();
    for entry in &entries {
        let path = String::from_utf8(entry.path()).unwrap();
        let path = path.trim_start_matches('/');
        let answer = shown(image, entry);
        questions += &format!("path {path}\nhash {}\n", lookup.hash(entry.path()));
        answers += &format!("{answer}\n{answer}\n");
        if entry.file_type() != FileType::Symlink {
            questions += &format!("inode {}\n", entry.metadata().ino);
            answers += &format!("{answer}\n");
        }
        // What a link leads to, too.
        let target = image.entry(entry.path()).unwrap_or_else(|_| entry.clone());
        if target.file_type() == FileType::Directory {
            questions += &format!("list {path}\n");
            answers.extend(target.children().map(|child| shown(image, &child) + "; "));
            answers += "\n";
        }
    }
    questions += "path no/such/file\npath /\nhash 1\ninode 999999\nlist no\n";
    answers += "none\nnone\nnone\nnone\n\n";
    let mut child = Command::new(program)
        .args([image_path, lookup_path])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(questions.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let found = String::from_utf8(output.stdout).unwrap();
    for (number, (found, wanted)) in found.lines().zip(answers.lines()).enumerate() {
        assert_eq!(found, wanted, "answer {number}");
    }
    assert_eq!(found.lines().count(), answers.lines().count());
}

#[test]
fn a_kernel_finds_what_the_host_finds() {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fs::create_dir_all(tree.join("tables/deep/deeper")).unwrap();
    for number in 0..300 {
        fs::write(tree.join(format!("tables/{number}.bin")), vec![number.to_string().as_bytes()[0]; number])
            .unwrap();
    }
    fs::write(tree.join("tables/deep/deeper/one"), "1").unwrap();
    fs::hard_link(tree.join("tables/7.bin"), tree.join("hard")).unwrap();
    for (name, target) in
        [("file", "tables/9.bin"), ("folder", "tables/deep"), ("nowhere", "missing"), ("up", "..")]
    {
        symlink(target, tree.join(name)).unwrap();
    }
    let path = work.path().join("packed");
    // `up` leads to the folder around the tree, which is not to be packed.
    Packer::new().input(&tree).links(Links::Keep).plan().unwrap().write_file(&path).unwrap();
    let image = Image::open(&path).unwrap();
    let compilers = [program(work.path(), "cc", "c"), program(work.path(), "c++", "c++")];
    assert!(compilers[0].is_some());
    for program in compilers.iter().flatten() {
        check(program, &image, work.path());
    }
}

/// As NVRTC compiles it: no headers, and nothing but the language and `size_t`.
#[test]
fn the_header_needs_no_other_where_there_is_none() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("kernel.cc");
    let text = "typedef decltype(sizeof 0) size_t;\n#include \"daxfs_device.h\"\n\
                const void *find(const void *image, const void *lookup, daxfs_u64 *len)\n\
                { return daxfs_find(image, lookup, \"a\", 1, len); }\n";
    fs::write(&source, text).unwrap();
    let output = Command::new("c++")
        .args([
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-nostdinc",
            "-D__CUDACC__",
            "-D__CUDACC_RTC__",
        ])
        .args(["-D__host__=", "-D__device__=", "-I"])
        .arg(project_root().join("crates/device/include"))
        .arg(source)
        .output();
    let Ok(output) = output else { return eprintln!("not run: no c++") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn golden_images_with_changes_and_backing_files() {
    let work = tempfile::tempdir().unwrap();
    let Some(golden) = Golden::find("lookup blocks") else { return };
    let program = program(work.path(), "cc", "c").unwrap();
    let mut count = 0;
    for name in golden.names() {
        let mut options = OpenOptions::new();
        if let Some(backing) = golden.backing(&name) {
            options = options.backing(Region::from_bytes(backing));
        }
        // Names with a line break cannot be asked for.
        let Ok(image) = options.open_region(Region::from_bytes(golden.image(&name))) else { continue };
        if image.walk().all(|entry| std::str::from_utf8(&entry.path()).is_ok_and(|path| !path.contains('\n')))
        {
            check(&program, &image, work.path());
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}
