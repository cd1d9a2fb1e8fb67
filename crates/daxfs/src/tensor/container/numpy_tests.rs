use super::*;
use crate::tensor::container::{Beginning, ContainerKind};
use crate::tensor::test_image::{TestImage, zip};

/// A file of version 1, its dictionary filled up to 64 bytes as numpy does.
fn npy(dictionary: &str, data: &[u8]) -> Vec<u8> {
    let len = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
    let text = format!("{dictionary:<width$}\n", width = len - 1);
    [b"\x93NUMPY\x01\0", &u16::try_from(len).unwrap().to_le_bytes()[..], text.as_bytes(), data].concat()
}

fn described(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"), data)
}

fn parse(file: &[u8]) -> Result<Header> {
    Npy.parse(&Beginning { bytes: file, len: file.len() as u64 })
}

fn archive(file: &[u8]) -> Result<Header> {
    Npz.parse(&Beginning { bytes: file, len: file.len() as u64 })
}

#[test]
fn an_array_lies_behind_its_header() {
    for (descr, shape, wanted, dtype, size) in [
        ("'<f4'", "(2, 3)", &[2, 3][..], Dtype::F32, 24),
        ("'|b1'", "(3,)", &[3], Dtype::BOOL, 3),
        ("\"<i8\"", "()", &[], Dtype::I64, 8),
        ("'<c8'", "(2L, 1L)", &[2, 1], Dtype::C64, 16),
        ("'<f2'", "(0, 4)", &[0, 4], Dtype::F16, 0),
    ] {
        let file = described(descr, "False", shape, &vec![7; size]);
        let header = parse(&file).unwrap();
        let info = header.nth(0).unwrap();
        assert_eq!((info.name.as_str(), &info.shape[..], info.dtype), ("array", wanted, dtype));
        assert_eq!(
            (info.offset % 64, info.offset + info.size, info.size),
            (0, file.len() as u64, size as u64)
        );
    }
    // Versions 2 and 3 have a longer length; other orders and no last comma are the same dictionary.
    let text = "{'shape': (2,), 'fortran_order': False, 'descr': '<u2'}\n";
    for major in [2, 3] {
        let len = u32::try_from(text.len()).unwrap().to_le_bytes();
        let file = [b"\x93NUMPY", &[major, 0][..], &len, text.as_bytes(), &[1, 2, 3, 4]].concat();
        assert_eq!(parse(&file).unwrap().nth(0).unwrap().dtype, Dtype::U16);
    }
}

#[test]
fn archives_have_their_arrays_by_name() {
    let (a, b) = (described("'<f4'", "False", "(2,)", &[1; 8]), described("'|u1'", "False", "(3,)", &[2; 3]));
    let file = zip(&[("arr_0.npy", &a), ("layer/b.npy", &b), ("notes.txt", b"x")], false);
    let header = archive(&file).unwrap();
    let names: Vec<_> = header.visible().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["arr_0", "layer/b"]);
    let info = header.get("layer/b").unwrap();
    assert_eq!(file[usize::try_from(info.offset).unwrap()..][..3], [2; 3]);
    assert_eq!(ContainerKind::of_head(&file, file.len() as u64).unwrap().name(), "npz");

    let image = TestImage::new().file("/table.npz", file).open();
    assert_eq!(image.tensors().unwrap().get("arr_0").unwrap().bytes().unwrap().to_vec(), [1; 8]);
    let image = TestImage::new().file("/table.npy", b).open();
    assert_eq!(
        image.tensors().unwrap().names().into_iter().collect::<crate::Result<Vec<_>>>().unwrap(),
        ["array"]
    );
}

#[test]
fn what_cannot_be_used_in_place_is_no_fault() {
    for (file, what) in [
        (described("'>f4'", "False", "(2,)", &[0; 8]), "big-endian"),
        (described("'|O'", "False", "(2,)", b"\x80\x04"), "Python's objects"),
        (described("[('a', '<f4')]", "False", "(2,)", &[0; 8]), "structures"),
        (described("'<V2'", "False", "(2,)", &[0; 4]), "ml_dtypes"),
        (described("'<f4'", "True", "(2, 2)", &[0; 16]), "columns"),
    ] {
        let error = parse(&file).unwrap_err();
        assert!(error.is_unsupported() && error.to_string().contains(what), "{error}");
    }
    parse(&described("'<f4'", "True", "(1, 3)", &[0; 12])).unwrap();
    let mut file = zip(&[("a.npy", &described("'|u1'", "False", "(1,)", &[1]))], false);
    let at = file.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    file[at + 10] = 8;
    assert!(archive(&file).unwrap_err().is_unsupported());
}

#[test]
fn broken_ones_are_named() {
    for (file, what) in [
        (described("'<f4'", "False", "(2,)", &[0; 7]), "as many bytes as its type and shape say"),
        (described("'<f4'", "False", "(-2,)", &[0; 8]), "a dictionary with"),
        (described("'<f4'", "Maybe", "(2,)", &[0; 8]), "a dictionary with"),
        (npy("{'descr': '<f4'}", &[]), "a dictionary with"),
        (npy("[]", &[]), "a dictionary with"),
        (described("'<f4'", "False", "(99999999999, 99999999999)", &[]), "array"),
        (b"\x93NUMPY\x09\0\x02\0{}".to_vec(), "its version must be 1, 2 or 3"),
        (b"\x93NUMPY\x01\0\xff\xff{}".to_vec(), "must lie in the file"),
        (b"\x93NU".to_vec(), "it begins with"),
        (b"hello, world".to_vec(), "it begins with"),
        (Vec::new(), "empty"),
    ] {
        let error = parse(&file).unwrap_err();
        assert!(error.is_format() && error.to_string().contains(what), "{what}: {error}");
    }
    let file = described("'<f4'", "False", "(2,)", &[0; 8]);
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 0x15;
        let _ = parse(&changed);
        let _ = parse(&file[..at]);
    }
}
