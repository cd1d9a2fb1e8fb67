use super::*;

fn image() -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let [tree, path] = ["tree", "image"].map(|name| place.path().join(name));
    std::fs::create_dir_all(tree.join("folder")).unwrap();
    std::fs::write(tree.join("folder/a"), "a file").unwrap();
    std::fs::hard_link(tree.join("folder/a"), tree.join("b")).unwrap();
    mkimage::Packer::new().input(&tree).plan().unwrap().write_file(&path).unwrap();
    (place, path)
}

#[test]
fn numbers_are_those_of_the_image_and_those_of_the_next_one_differ() {
    let (_place, path) = image();
    let shown = Shown::new(Image::open(&path).unwrap(), 0, Owners::default()).unwrap();
    let entry = shown.image().entry("b").unwrap();
    let ino = entry.metadata().ino;
    assert_eq!(shown.id(ino), Some(ino));
    let found = shown.entry(ino).unwrap();
    assert_eq!((found.metadata().ino, found.metadata().nlink), (ino, 2));
    assert!(shown.entry(0).is_none() && shown.entry(ino | 1 << 48).is_none());
    assert_eq!([0, 1 << 48].map(|ino| shown.id(ino)), [None, None], "what FUSE has no number for");
    let next = shown.next(false).unwrap();
    let id = next.id(ino).unwrap();
    assert_ne!(id, ino);
    assert!(next.entry(id).is_some() && next.entry(ino).is_none());
    assert!(next.entry(ROOT).is_some());
}

#[test]
fn what_is_kept_depends_on_who_can_write() {
    let (_place, path) = image();
    let caching = |image: daxfs::Result<Image>| Caching::of(&image.unwrap());
    assert_eq!(caching(Image::open(&path)), Caching::Watched);
    let sealed = daxfs::OpenOptions::new().sealed_copy(true);
    assert_eq!(caching(sealed.open(&path)), Caching::Forever);
    let bytes = std::fs::read(&path).unwrap();
    let memfd = dmabuf::Memfd::create("shown", bytes.len() as u64, dmabuf::HugePages::No).unwrap();
    let mut file = std::fs::File::from(std::os::fd::OwnedFd::from(memfd));
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    assert_eq!(caching(Image::from_fd(file.into())), Caching::Brief);
}

#[test]
fn a_file_that_is_written_has_changed_and_one_that_is_replaced_is_followed_on_demand() {
    let (_place, path) = image();
    let shown = Shown::new(Image::open(&path).unwrap(), 0, Owners::default()).unwrap();
    assert!(!shown.has_changed(false) && !shown.has_changed(true));
    let copy = path.with_extension("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert!(!shown.has_changed(false) && shown.has_changed(true));
    let shown = shown.next(true).unwrap();
    assert!(!shown.has_changed(true));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    assert!(shown.has_changed(false));
}
