//! `ls`, `tree`, `stat`, `cat`: what they print, for every kind of source.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{DAXFS, Fixture, Run, bad_name, golden};
use daxfs::format;
use mkimage::Memory;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

#[test]
fn ls_and_tree_match_the_golden_texts() {
    let fixture = Fixture::new();
    fixture.normalise();
    golden("ls-lR.txt", &fixture.run(&["ls", "-lR", "IMAGE"]).ok());
    golden("ls-lR.json", &fixture.run(&["ls", "-R", "--json", "IMAGE"]).ok());
    golden("tree.txt", &fixture.run(&["tree", "IMAGE"]).ok());
}

#[test]
fn ls_names_files_directories_and_links() {
    let fixture = Fixture::new();
    assert_eq!(fixture.run(&["ls", "IMAGE", "/dir"]).ok(), "data.bin\nrun.sh\nsub\nup\n");
    assert_eq!(fixture.run(&["ls", "IMAGE", "dir/sub/"]).ok(), "deep.txt\nsame.bin\n");
    assert_eq!(fixture.run(&["ls", "IMAGE", "config.json"]).ok(), "config.json\n");
    assert_eq!(fixture.run(&["ls", "IMAGE", "latest"]).ok(), "latest\n");
    assert!(fixture.run(&["ls", "-l", "IMAGE", "latest"]).ok().ends_with(" latest -> model.safetensors\n"));
    assert_eq!(fixture.run(&["ls", "IMAGE", "/empty-dir"]).ok(), "");
    let several = fixture.run(&["ls", "IMAGE", "dir/sub", "empty", "empty-dir"]).ok();
    assert_eq!(several, "empty\n\n/dir/sub:\ndeep.txt\nsame.bin\n\n/empty-dir:\n");
}

#[test]
fn ls_goes_on_after_a_missing_path() {
    let fixture = Fixture::new();
    let run = fixture.run(&["ls", "IMAGE", "absent", "empty"]);
    assert_eq!(run.text(), "empty\n");
    assert_eq!(run.error(), "absent: no such file or directory in the image");
}

#[test]
fn strange_names_are_escaped_and_exact_in_json() {
    let fixture = Fixture::new();
    let names = fixture.run(&["ls", "IMAGE"]).ok();
    assert!(names.contains("latin1-\\351.txt\n") && names.contains("tab\\there\n"), "{names}");
    let json = fixture.run(&["ls", "--json", "IMAGE"]).json();
    let entries = json["entries"].as_array().unwrap();
    let bad = entries.iter().find(|entry| entry.get("path_hex").is_some()).unwrap();
    assert_eq!(bad["path"], "/latin1-\u{fffd}.txt");
    assert_eq!(bad["path_hex"], "2f6c6174696e312de92e747874");
    assert!(entries.iter().any(|entry| entry["path"] == "/tab\there"));
    let args = ["cat".as_ref(), "IMAGE".as_ref(), bad_name().as_os_str()].map(std::ffi::OsStr::to_owned);
    assert_eq!(fixture.run(&args).ok(), "2");
}

#[test]
fn tree_limits_depth_and_counts_bytes() {
    let fixture = Fixture::new();
    let tree = fixture.run(&["tree", "-L", "1", "-b", "IMAGE", "/dir"]).ok();
    assert_eq!(
        tree,
        "12015  /dir\n12000  ├── data.bin\n   10  ├── run.sh\n    5  ├── sub\n       └── up -> ../config.json\n\n\
         1 directory, 4 files, 1 symlink, 11.7 KiB\n"
    );
    assert!(fixture.run(&["tree", "IMAGE", "empty"]).error().contains("not a directory"));
}

#[test]
fn stat_tells_where_contents_lie() {
    let fixture = Fixture::new();
    fixture.normalise();
    let offset = fixture.offset_of("config.json");
    let text = fixture.run(&["stat", "IMAGE", "config.json"]).ok();
    for line in [
        "    path:  /config.json",
        "    type:  file",
        "    size:  21 (21 B)",
        "    mode:  0644 (-rw-r--r--)",
        "   owner:  uid 0, gid 0",
        &format!("contents:  image {offset:#x}..{:#x}, offset {offset}, 21 bytes, aligned to", offset + 21),
        "  memory:  shared",
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line:?} in {text}");
    }

    let json = fixture.run(&["stat", "--json", "IMAGE", "/", "latest", "empty", "dir"]).json();
    let entries = json["entries"].as_array().unwrap();
    let [root, link, empty, dir] = entries.as_slice() else { panic!("{json}") };
    assert_eq!((&root["type"], &root["ino"]), (&"directory".into(), &1.into()));
    assert_eq!((&link["type"], &link["target"]), (&"symlink".into(), &"model.safetensors".into()));
    assert_eq!(empty["contents"]["kind"], "empty");
    // Stored with a stride of 272, counted with 271.
    assert_eq!((&dir["size"], &dir["contents"]["length"]), (&(4 * 271).into(), &(4 * 272).into()));

    // What stat says of places is what lies there.
    let bytes = fs::read(fixture.image()).unwrap();
    let at =
        |entry: &serde_json::Value| usize::try_from(entry["contents"]["offset"].as_u64().unwrap()).unwrap();
    assert!(bytes[at(link)..].starts_with(b"model.safetensors\0"));
    assert!(bytes[at(dir) + 16..].starts_with(b"data.bin\0"));

    let followed = fixture.run(&["stat", "-L", "--json", "IMAGE", "latest"]).json();
    assert_eq!(followed["entries"][0]["path"], "/model.safetensors");
}

#[test]
fn cat_writes_bytes_and_goes_on_after_errors() {
    let fixture = Fixture::new();
    let run = fixture.run(&["cat", "IMAGE", "dir/data.bin", "dir/up", "absent", "dir", "dangling", "empty"]);
    let mut expected = fs::read(fixture.tree().join("dir/data.bin")).unwrap();
    expected.extend(fs::read(fixture.tree().join("config.json")).unwrap());
    assert_eq!(run.stdout, expected);
    assert_eq!(run.status, 2);
    assert_eq!(
        run.stderr.lines().collect::<Vec<_>>(),
        [
            "daxfs: absent: no such file or directory in the image",
            "daxfs: /dir: not a regular file but a directory",
            "daxfs: dangling: no such file or directory in the image"
        ]
    );
}

#[test]
fn descriptors_and_standard_input_are_sources() {
    let fixture = Fixture::new();
    let expected = fixture.run(&["ls", "-lR", "IMAGE"]).ok();
    let shell =
        |script: &str| Run::of(Command::new("sh").arg("-c").arg(script).arg(DAXFS).arg(fixture.image()));
    assert_eq!(shell(r#"exec "$0" ls -lR fd:7 7<"$1""#).ok(), expected);
    assert_eq!(shell(r#"exec "$0" ls -lR - <"$1""#).ok(), expected);
    assert!(shell(r#"exec "$0" ls fd:9 9<&-"#).error().contains("Bad file descriptor"));
    // A pipe cannot be mapped, and the message says so.
    assert!(shell(r#"cat "$1" | "$0" ls -"#).error().to_lowercase().contains("pipe"));
    assert!(shell(r#"exec "$0" ls /"#).error().contains("directory"));
    assert!(shell(r#"exec "$0" ls "$1.absent""#).error().contains("No such file"));

    let copy = fixture.run(&["ls", "-lR", "--sealed-copy", "IMAGE"]).ok();
    assert_eq!(copy, expected);
}

#[test]
fn memfds_are_sources_and_can_be_collapsed() {
    let fixture = Fixture::new();
    fs::write(fixture.tree().join("large"), vec![7; 5 << 20]).unwrap();
    let plan = mkimage::Packer::new().input(fixture.tree()).plan().unwrap();
    let (fd, _) = plan.write_memory(&Memory::Memfd(dmabuf::HugePages::No)).unwrap();
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let source = format!("fd:{}", fd.as_raw_fd());

    let json = fixture.run(&["inspect", "--json", &source]).json();
    assert_eq!(json["memory"]["kind"], "memfd");
    assert!(json["memory"]["pages"]["resident"].as_u64().unwrap() > 5 << 20);
    assert_eq!(json["memory"]["pages"]["huge"], 0);

    let run = fixture.run(&["collapse", &source]);
    assert!(run.text().starts_with("before: "), "{run:?}");
    if run.status == 0 {
        assert!(run.text().contains("\nafter:  "), "{run:?}");
        let json = fixture.run(&["inspect", "--json", &source]).json();
        assert!(json["memory"]["pages"]["huge"].as_u64().unwrap() >= 2 << 20, "{json}");
    } else {
        // Kernels without MADV_COLLAPSE for shared memory say so.
        assert!(run.error().contains("collapse"));
    }
}

#[test]
fn collapse_refuses_what_has_no_pages_to_move() {
    let fixture = Fixture::new();
    let run = fixture.run(&["collapse", "IMAGE"]);
    // Where the temporary directory is a tmpfs there is nothing to refuse.
    if run.status != 0 {
        assert!(
            run.stderr.contains("only a memfd or a file in a tmpfs")
                || run.stderr.contains("cannot collapse")
        );
    }
}

/// Turns the image into a split one: the data of files lies in `backing`, at the same offsets as in the base image.
fn split(fixture: &Fixture) {
    let image = daxfs::Image::open(fixture.image()).unwrap();
    let base = image.superblock().base.clone().unwrap();
    let start = usize::try_from(base.start).unwrap();
    let data = fixture.offset_of("config.json");
    let mut bytes = fs::read(fixture.image()).unwrap();
    fs::write(fixture.path("backing"), &bytes[start..]).unwrap();
    bytes[usize::try_from(data).unwrap()..][..21].fill(b'-');
    // A page cache of 8 slots behind the image: header, slot records, slots.
    let cache = bytes.len() as u64;
    bytes.resize(bytes.len() + 4096 * 10, 0);
    let total = bytes.len() as u64;
    let mut put =
        |at: u64, field: &[u8]| bytes[usize::try_from(at).unwrap()..][..field.len()].copy_from_slice(field);
    put(cache, &format::PAGE_CACHE_MAGIC.to_le_bytes());
    put(cache + 4, &format::v8::PAGE_CACHE_VERSION.to_le_bytes());
    put(cache + 8, &4096_u64.to_le_bytes());
    put(cache + 16, &8192_u64.to_le_bytes());
    put(16, &total.to_le_bytes());
    put(88, &cache.to_le_bytes());
    put(96, &(total - cache).to_le_bytes());
    put(104, &8_u32.to_le_bytes());
    put(108, &3_u32.to_le_bytes());
    fs::write(fixture.image(), bytes).unwrap();
}

#[test]
fn split_images_take_their_data_from_the_backing_file() {
    let fixture = Fixture::new();
    fixture.pack(|packer| packer.plain(true));
    split(&fixture);
    let without = fixture.run(&["cat", "IMAGE", "config.json"]);
    assert!(without.error().contains("not in the image"));
    let cat = ["cat", "--backing", "DIR/backing", "IMAGE", "config.json"];
    assert_eq!(fixture.run(&cat).ok(), "{\"hidden_size\": 384}\n");
    let stat =
        |args: &[&str]| fixture.run(&[&["stat", "--json"], args, &["IMAGE", "config.json"]].concat()).json();
    assert_eq!(stat(&[])["entries"][0]["contents"]["kind"], "unavailable");
    assert_eq!(stat(&["--backing", "DIR/backing"])["entries"][0]["contents"]["kind"], "backing");
    fixture.run(&["verify", "--backing", "DIR/backing", "IMAGE", "TREE"]).ok();
    let run = fixture.run(&["verify", "IMAGE", "TREE"]);
    assert_eq!(run.status, 2, "contents that are elsewhere cannot be compared: {run:?}");
    fixture.run(&["extract", "-q", "--backing", "DIR/backing", "IMAGE", "DIR/out"]).ok();
    assert_eq!(fs::read(fixture.path("out/config.json")).unwrap(), b"{\"hidden_size\": 384}\n");
    assert!(fixture.run(&["ls", "--backing", "DIR/absent", "IMAGE"]).error().contains("absent"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let fixture = Fixture::new();
    fs::write(fixture.tree().join("large"), vec![b'x'; 4 << 20]).unwrap();
    for number in 0..3000 {
        fs::write(fixture.tree().join(format!("empty-dir/a-file-with-a-long-name-{number:05}")), b"")
            .unwrap();
    }
    fixture.pack(|packer| packer);
    for args in [
        &["cat", "IMAGE", "large"][..],
        &["ls", "-lR", "IMAGE"],
        &["ls", "-R", "--json", "IMAGE"],
        &["tree", "IMAGE"],
    ] {
        let mut child = Command::new(DAXFS)
            .args(args.iter().map(|arg| fixture.expand(arg.as_ref())))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 1]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let fixture = Fixture::new();
    let script = r#"exec "$0" ls -lR "$1" >/dev/full"#;
    let error = Run::of(Command::new("sh").arg("-c").arg(script).arg(DAXFS).arg(fixture.image())).error();
    assert!(error.starts_with("standard output: No space left"), "{error}");
}

#[test]
fn usage() {
    let fixture = Fixture::new();
    let help = fixture.run(&["--help"]).ok();
    assert!(help.contains("Exit status") && help.contains("daxfs verify model.daxfs weights/"), "{help}");
    for verb in
        ["ls", "tree", "stat", "cat", "inspect", "verify", "diff", "extract", "collapse", "mount", "vm-args"]
    {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}");
        assert!(fixture.run(&[verb, "--help"]).ok().contains("daxfs "), "{verb}");
        assert_eq!(fixture.run(&[verb]).status, 2, "{verb}");
    }
    assert!(fixture.run(&["--version"]).ok().starts_with("daxfs "));
    assert_eq!(fixture.run(&["frobnicate", "IMAGE"]).status, 2);
    assert_eq!(fixture.run::<&str>(&[]).status, 2);
}

#[test]
fn metadata_limit_is_a_flag() {
    let fixture = Fixture::new();
    assert!(fixture.run(&["ls", "--max-metadata", "1K", "IMAGE"]).error().contains("limit is 0x400"));
    fixture.run(&["ls", "--max-metadata", "1M", "IMAGE"]).ok();
}

#[test]
fn names_in_errors_cannot_break_the_line() {
    let fixture = Fixture::new();
    let name = std::ffi::OsStr::from_bytes(b"a\n\x1b[31mb");
    let error = fixture.run(&["cat".as_ref(), "IMAGE".as_ref(), name]).error();
    assert!(error.starts_with("a\\n\\u{1b}[31mb: "), "{error}");
}
