//! Tests of [`super`]: the text forms, and what is refused.

use super::*;

fn parse(text: &str) -> Source {
    Source::parse(OsStr::new(text)).unwrap()
}

fn path(path: &str, offset: u64, len: Option<u64>) -> Source {
    Source::Path { path: PathBuf::from(path), part: Part { offset, len } }
}

#[test]
fn text_forms() {
    assert_eq!(parse("fd:7"), Source::Descriptor { fd: 7, part: Part::WHOLE });
    assert_eq!(parse("-"), Source::Descriptor { fd: 0, part: Part::WHOLE });
    assert!(matches!(parse("daxfs+unix:///s/n"), Source::Holder(_)));
    for text in
        ["fd:", "fd:-1", "fd:x", "fd:99999999999", "./fd:7", "a", "", "fd:-1@4096", "model@2M", "/m/a@4K"]
    {
        assert_eq!(parse(text), path(text, 0, None), "{text}");
    }
}

#[test]
fn parts_of_devices() {
    assert_eq!(parse("/dev/dax0.0"), path("/dev/dax0.0", 0, None));
    assert_eq!(parse("/dev/dax0.0@2M"), path("/dev/dax0.0", 2 << 20, None));
    assert_eq!(parse("/dev/dax1.2@0x200000+1G"), path("/dev/dax1.2", 2 << 20, Some(1 << 30)));
    let bar = "/sys/bus/pci/devices/0000:00:04.0/resource2_wc";
    assert_eq!(parse(&format!("{bar}@8192+4K")), path(bar, 8192, Some(4096)));
    assert_eq!(
        parse("fd:3@4K+0x2K"),
        Source::Descriptor { fd: 3, part: Part { offset: 4096, len: Some(2048) } }
    );
    let named_with_at = "/sys/devices/pci0000:00/slot@2M/resource2";
    assert_eq!(parse(named_with_at), path(named_with_at, 0, None));
    assert_eq!(parse(&format!("{named_with_at}@4K")), path(named_with_at, 4096, None));
    for text in ["/dev/dax0.0@0x200000", "fd:3@0x1000+0x800", "phys:0x8000000+0x4000000", "/dev/dax0.0"] {
        assert_eq!(parse(text).to_string(), text, "what is shown can be given again");
    }
}

#[test]
fn physical_ranges() {
    assert_eq!(parse("phys:0x8000000+64M"), Source::Physical { address: 0x800_0000, len: 64 << 20 });
    assert_eq!(parse("phys:128M+1g"), Source::Physical { address: 128 << 20, len: 1 << 30 });
    assert_eq!(parse("./phys:1+1"), path("./phys:1+1", 0, None));
}

#[test]
fn what_only_looks_like_a_form_is_refused_with_the_reason() {
    for (text, word) in [
        ("phys:", "phys:ADDRESS+LENGTH"),
        ("phys:0x8000000", "phys:ADDRESS+LENGTH"),
        ("phys:+1", "phys:ADDRESS+LENGTH"),
        ("phys:-4096+4096", "phys:ADDRESS+LENGTH"),
        ("phys:0x+4096", "phys:ADDRESS+LENGTH"),
        ("phys:4096+99999999999G", "phys:ADDRESS+LENGTH"),
        ("phys:4097+4096", "multiple of 4096"),
        ("phys:4096+0", "empty"),
        ("phys:0xfffffffffffff000+8192", "passes the end"),
        ("/dev/dax0.0@", "OFFSET"),
        ("/dev/dax0.0@x", "OFFSET"),
        ("/dev/dax0.0@4K+", "OFFSET"),
        ("/dev/dax0.0@+4K", "OFFSET"),
        ("/dev/dax0.0@1", "multiple of 4096"),
        ("fd:3@0+0", "length is 0"),
    ] {
        let error = Source::parse(OsStr::new(text)).unwrap_err();
        assert!(matches!(error, Error::Source { .. }), "{text}: {error}");
        let message = error.to_string();
        assert!(message.starts_with(text) && message.contains(word), "{message}");
    }
    let bytes = OsStr::from_bytes(b"/dev/dax0.0@\xff");
    assert!(matches!(Source::parse(bytes), Err(Error::Source { .. })));
}

#[test]
fn parts_stay_within_their_object() {
    let part = |offset, len| Part { offset, len }.within(8192);
    assert_eq!(part(0, None).unwrap(), (0, 8192));
    assert_eq!(part(4096, None).unwrap(), (4096, 4096));
    assert_eq!(part(4096, Some(100)).unwrap(), (4096, 100));
    assert_eq!(part(8192, None).unwrap(), (8192, 0));
    for (offset, len) in [(12288, None), (4096, Some(4097)), (4096, Some(u64::MAX))] {
        let error = part(offset, len).unwrap_err();
        assert!(matches!(error, Error::Memory(dmabuf::Error::OutOfBounds { bound: 8192, .. })), "{error}");
    }
}

#[test]
fn physical_memory_is_never_taken_whole() {
    let info = FdInfo::new(FdKind::Physical, u64::MAX);
    let error = Part { offset: 4096, len: None }.of(&info).unwrap_err();
    assert!(matches!(error, Error::Memory(dmabuf::Error::Invalid { .. })), "{error}");
    assert!(error.to_string().contains("phys:ADDRESS+LENGTH"), "{error}");
    assert_eq!(Part { offset: 4096, len: Some(8192) }.of(&info).unwrap(), (4096, 8192));
}

#[test]
fn a_physical_mount_that_cannot_be_opened_names_its_range() {
    let error = Error::PhysicalMount {
        path: PathBuf::from("/mnt/model"),
        address: 0x800_0000,
        len: 64 << 20,
        source: dmabuf::Error::Unavailable { what: "/dev/mem".into(), needs: "CONFIG_DEVMEM".into() },
    };
    let text = error.to_string();
    assert!(text.starts_with("/mnt/model: "), "{text}");
    let range = text.split_whitespace().find(|word| word.starts_with("phys:")).unwrap();
    assert_eq!(
        parse(range),
        Source::Physical { address: 0x800_0000, len: 64 << 20 },
        "it can be given again"
    );
}

#[test]
fn directories_that_are_no_mount_are_opened_as_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Source::from(dir.path().to_path_buf()).open(false, None).unwrap();
    assert_eq!(opened.part, Part::WHOLE);
    let error = dmabuf::describe(opened.fd.as_fd()).unwrap_err();
    assert!(error.to_string().contains("it is a directory"), "{error}");
    let missing = Source::from(dir.path().join("missing")).open(false, None).unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("missing"), "{missing}");
}
