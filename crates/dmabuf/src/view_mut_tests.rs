use super::*;
use crate::map::Mapping;
use crate::memfd::{HugePages, Memfd};
use std::io::Write as _;
use std::os::fd::AsFd;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

#[test]
fn parts_are_written_by_threads() {
    let mut bytes = vec![0; 100];
    let (mut first, mut second) = SharedBytesMut::from_slice(&mut bytes).split_at(30).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| first.copy_from(0, &[1; 30]).unwrap());
        scope.spawn(|| second.copy_from(0, &[2; 70]).unwrap());
    });
    assert!(first.copy_from(1, &[0; 30]).is_err(), "reaches into the other part");
    second.fill_zero(10, 5).unwrap();
    assert!(second.fill_zero(66, 5).is_err());
    second.get_mut(69, 1).unwrap().copy_from(0, &[7]).unwrap();
    assert!(second.get_mut(69, 2).is_err());
    assert!(SharedBytesMut::from_slice(&mut [0; 3]).split_at(4).is_err());
    assert_eq!(bytes[..30], [1; 30]);
    assert_eq!(bytes[30..40], [2; 10]);
    assert_eq!(bytes[40..45], [0; 5]);
    assert_eq!(bytes[99], 7);
}

#[test]
fn pread_fills_memory_and_stops_at_the_end_of_the_file() {
    let contents = pattern(10_000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&contents).unwrap();
    let memfd = Memfd::create("pread", 8192, HugePages::No).unwrap();
    let mut map = Mapping::read_write(memfd.as_fd(), 0, 8192).unwrap();
    let mut view = map.view_mut().unwrap();
    assert_eq!(view.pread_from(file.as_fd(), 0).unwrap(), 8192);
    assert_eq!(view.as_shared().to_vec(), contents[..8192]);
    assert_eq!(view.get_mut(100, 50).unwrap().pread_from(file.as_fd(), 3).unwrap(), 50);
    assert_eq!(view.as_shared().get(100, 50).unwrap().to_vec(), contents[3..53]);
    assert_eq!(view.as_shared().get(150, 1).unwrap().to_vec(), contents[150..151], "wrote behind the part");
    assert_eq!(view.pread_from(file.as_fd(), 9_000).unwrap(), 1_000);
    assert_eq!(view.pread_from(file.as_fd(), 10_000).unwrap(), 0);
    assert_eq!(view.pread_from(file.as_fd(), u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let pipe = nix::unistd::pipe().unwrap().0;
    assert_eq!(view.pread_from(pipe.as_fd(), 0).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
}

#[test]
fn the_bounced_pread_gives_the_same_bytes() {
    let contents = pattern(300_000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&contents).unwrap();
    let mut bytes = vec![0; 300_000];
    let mut view = SharedBytesMut::from_slice(&mut bytes);
    let mut done = 0;
    while done < contents.len() {
        let mut rest = view.get_mut(done as u64, (contents.len() - done) as u64).unwrap();
        let n = rest.pread_bounced(file.as_fd(), libc::off_t::try_from(done).unwrap()).unwrap();
        assert!(n > 0 && n <= BOUNCE);
        done += n;
    }
    assert_eq!(view.get_mut(0, 10).unwrap().pread_bounced(file.as_fd(), 5).unwrap(), 10);
    assert_eq!(bytes[..10], contents[5..15]);
    assert_eq!(bytes[10..], contents[10..]);
}
