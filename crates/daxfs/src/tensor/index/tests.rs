use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::test_index::{Builder, open};
use super::*;
use crate::tensor::Dtype;

fn sound() -> Builder {
    let mut builder = Builder::default();
    builder
        .file(2, 50, &[])
        .file(
            5,
            100,
            &[("a", Dtype::BF16, &[2, 3], 20), ("a.b", Dtype::F32, &[], 32), ("b", Dtype::U8, &[0, 7], 100)],
        )
        .file(9, 8, &[("aa", Dtype::F4, &[2, 3], 5)])
        .checkpoint(11, &[])
        .checkpoint(12, &[0, 3, 2]);
    builder
}

/// The same in version 2, with a file that has groups, and a tensor of a type that is described.
fn sound_v2() -> Builder {
    let mut builder = Builder { v2: true, ..sound() };
    builder.files.iter_mut().filter(|file| file.tensor_count.get() > 0).for_each(|file| {
        file.container = raw::CONTAINER_SAFETENSORS.into();
    });
    let bytes: Vec<u8> = (0..3u32 << 20).map(|n| u8::try_from(n % 251).unwrap()).collect();
    builder.file(20, bytes.len() as u64, &[]);
    let file = builder.files.last_mut().unwrap();
    file.flags = raw::FILE_GROUPS.into();
    file.hash = *blake3::hash(&bytes).as_bytes();
    for (at, part) in bytes.chunks(1 << 20).enumerate() {
        let mut hasher = blake3::Hasher::new();
        blake3::hazmat::HasherExt::set_input_offset(&mut hasher, (at as u64) << 20);
        builder.groups.push(blake3::hazmat::HasherExt::finalize_non_root(hasher.update(part)));
    }
    let file = &mut builder.files[1];
    file.flags = (raw::FILE_TENSORS | raw::FILE_ORIGINAL).into();
    let run = |offset: u64, len: u64| raw::RunRecord { offset: offset.into(), len: len.into() };
    builder.runs.extend([run(20, 30), run(60, 5)]);
    builder.starts.extend_from_slice(b"0123456789");
    builder.originals.push(raw::OriginalRecord {
        size: 45.into(),
        alignment: 64.into(),
        start_offset: 0.into(),
        start_len: 10.into(),
        first_run: 0.into(),
        run_count: 2.into(),
        file: 1.into(),
        flags: raw::ORIGINAL_HASH.into(),
        reserved: [0; 16],
        hash: [3; 32],
    });
    let (name_offset, name_len) = builder.string("Q4_K");
    builder.dtypes.push(raw::DtypeRecord {
        name_offset,
        name_len,
        block_elements: 256.into(),
        block_bytes: 144.into(),
        reserved: [0; 12],
    });
    builder
}

/// The bytes of [`sound_v2`], made once.
fn sound_v2_bytes() -> Vec<u8> {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| sound_v2().bytes()).clone()
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn files_tensors_and_checkpoints_are_found() {
    finds(&sound().open(), &[2, 5, 9]);
    finds(&sound_v2().open(), &[2, 5, 9, 20]);
}

fn finds(index: &Index, inodes: &[u64]) {
    assert_eq!((index.tensor_count(), index.checkpoint_count()), (4, 2));
    assert_eq!(index.content_hash(), Some([9; 32].into()));
    assert_eq!(index.file_hash(9).unwrap(), Some([9; 32]));
    for ino in [0, 1, 3, 10, u64::from(u32::MAX) + 6, u64::MAX] {
        assert_eq!(index.file(ino).unwrap(), None, "{ino}");
    }
    let file = index.file(5).unwrap().unwrap();
    assert_eq!((file.ino, file.size, file.has_tensors, file.tensors.len()), (5, 100, true, 3));
    assert_eq!(index.path(&file).unwrap(), b"/file5");
    assert!(!index.file(2).unwrap().unwrap().has_tensors);
    assert_eq!(index.files().map(|file| file.unwrap().ino).collect::<Vec<_>>(), inodes);

    let tensor = index.find(&file, "a").unwrap().unwrap();
    let expected =
        TensorInfo { name: "a".into(), dtype: Dtype::BF16, shape: vec![2, 3], offset: 20, size: 12 };
    assert_eq!(tensor, expected);
    assert_eq!(index.find(&file, "b").unwrap().unwrap().shape, [0, 7]);
    assert!(index.find(&file, "a.b").unwrap().unwrap().shape.is_empty());
    for name in ["", "A", "aa", "a.", "a.bc", "c"] {
        assert_eq!(index.find(&file, name).unwrap(), None, "{name}");
    }
    assert_eq!(index.tensor(&file, 2).unwrap().name, "b");
    assert!(message(index.tensor(&file, 3)).contains("file record 1: the tensor's position"));

    let checkpoint = index.checkpoint(12).unwrap().unwrap();
    let (file, tensor) = index.checkpoint_find(&checkpoint, "aa").unwrap().unwrap();
    assert_eq!((file.ino, tensor.offset, tensor.size), (9, 5, 3));
    assert_eq!(index.checkpoint_tensor(&checkpoint, 2).unwrap().1.name, "b");
    assert_eq!(index.checkpoint_find(&checkpoint, "a.b").unwrap(), None);
    assert!(index.checkpoint_tensor(&checkpoint, 3).is_err());
    assert!(index.checkpoint(11).unwrap().unwrap().entries.is_empty());
    assert_eq!(index.checkpoint(5).unwrap(), None);
    assert_eq!(Vec::from_iter(index.checkpoint_files(&checkpoint).unwrap()), [1, 2]);
}

#[test]
fn long_names_that_differ_late_are_told_apart() {
    let names: Vec<_> = (0..50).map(|number| format!("{}.{number:02}", "n".repeat(300))).collect();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), Dtype::U8, &[][..], 0)).collect();
    let mut builder = Builder::default();
    let index = builder.file(2, 1, &tensors).open();
    let file = index.file(2).unwrap().unwrap();
    for name in &names {
        assert_eq!(&index.find(&file, name).unwrap().unwrap().name, name);
        assert_eq!(index.find(&file, &name[..300]).unwrap(), None);
        assert_eq!(index.find(&file, &format!("{name}x")).unwrap(), None);
    }
}

#[test]
fn an_empty_index_is_sound() {
    let index = Builder::default().open();
    assert_eq!(index.file(1).unwrap(), None);
    assert_eq!(index.files().count() + index.checkpoints().count(), 0);
}

#[test]
fn hashes_are_only_there_when_the_flag_says_so() {
    let mut bytes = sound().bytes();
    bytes[12] = 0;
    let index = open(bytes).unwrap();
    assert_eq!((index.content_hash(), index.file_hash(5).unwrap()), (None, None));
}

#[test]
fn headers_are_refused_by_name() {
    let sound = sound().bytes();
    let damaged = |at: usize, bytes: &[u8]| {
        let mut copy = sound.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        message(open(copy))
    };
    assert!(damaged(0, b"X").contains("must begin with \"DAXINDEX\""));
    assert_eq!(damaged(8, &[3]), "/.daxfs/index: version 3 is not supported (supported: 1, 2)");
    assert_eq!(damaged(12, &[5]), "/.daxfs/index: unknown flag bits 0x4");
    assert!(damaged(16, &[0xff; 8]).contains("its size must be that of the file"));
    let sections = [
        (24, "file records"),
        (40, "tensor records"),
        (48, "checkpoint records"),
        (64, "checkpoint entries"),
        (72, "dimensions"),
        (88, "strings"),
    ];
    for (at, name) in sections {
        for offset in [0, 159, sound.len() as u64, u64::MAX, u64::MAX - 8] {
            let text = damaged(at, &offset.to_le_bytes());
            assert!(text.starts_with(&format!("index: {name} 0x")), "{text}");
        }
    }
    for (at, size) in [(32, 4), (36, 4), (56, 4), (60, 4), (80, 8), (96, 8)] {
        assert!(damaged(at, &vec![0xff; size]).contains("is outside the index behind its header"));
    }
    let short = message(open(sound[..159].to_vec()));
    assert_eq!(short, "index: header 0x0..0xa0 is outside the index (0x9f bytes)");
    assert_eq!(
        message(open(sound[..8].to_vec())),
        "index: header 0x0..0x10 is outside the index (0x8 bytes)"
    );
    assert!(message(open(sound[..sound.len() - 1].to_vec())).contains("its size must be that of the file"));
}

#[test]
fn headers_of_version_2_are_refused_by_name() {
    let sound = sound_v2().bytes();
    let damaged = |at: usize, bytes: &[u8]| {
        let mut copy = sound.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        message(open(copy))
    };
    assert_eq!(damaged(12, &[5]), "/.daxfs/index: unknown flag bits 0x4");
    assert!(damaged(16, &[0xff; 8]).contains("its size must be that of the file"));
    assert!(damaged(24, &1025u32.to_le_bytes()).contains("at most 1024 sections (found 1025)"));
    assert!(damaged(24, &[0xff; 4]).contains("at most 1024 sections"));
    assert!(open([&sound[..24], &[0xff, 3], &sound[26..]].concat()).is_err());
    let table = |section: usize, field: usize| 128 + 64 * section + field;
    for (section, name) in [(0, "file records"), (1, "tensor records"), (5, "strings"), (7, "groups")] {
        for offset in [0, 128, sound.len() as u64, u64::MAX, u64::MAX - 8] {
            let text = damaged(table(section, 8), &offset.to_le_bytes());
            assert!(text.starts_with(&format!("index: {name} 0x")), "{text}");
        }
        assert!(damaged(table(section, 16), &[0xff; 8]).contains("is outside the index behind its header"));
    }
    for record in [0, 1, 47, 95, 97, u32::MAX] {
        let text = damaged(table(0, 24), &record.to_le_bytes());
        assert!(text.contains("its records must be of the length that the section says"), "{record}: {text}");
    }
    assert!(damaged(table(4, 24), &16u32.to_le_bytes()).contains("dimensions of 16 bytes"));
    assert!(
        damaged(table(1, 0), &[1]).contains("a section must stand there once (found file records (1) again)")
    );
    assert!(message(open(sound[..127].to_vec())).contains("header 0x0..0x80 is outside the index"));
}

#[test]
fn sections_that_overlap_are_refused() {
    let builder = sound_v2();
    let bytes = builder.bytes_v2(&[(77, 0, &[1; 64]), (78, 0, &[2; 64])]);
    open(bytes.clone()).unwrap();
    let field = |section: usize| 128 + 64 * section + 8;
    let offset = |section| u64::from_le_bytes(bytes[field(section)..][..8].try_into().unwrap());
    for (section, at, name) in [
        (12, offset(11), "section of an unknown kind and section of an unknown kind"),
        (12, offset(11) + 63, "section of an unknown kind and section of an unknown kind"),
        (12, offset(0), "file records and section of an unknown kind"),
    ] {
        let mut bytes = bytes.clone();
        bytes[field(section)..][..8].copy_from_slice(&at.to_le_bytes());
        let text = message(open(bytes));
        assert!(text.contains("its sections must not overlap (found ") && text.contains("do)"), "{text}");
        assert!(
            text.contains(name) || text.contains("section of an unknown kind and file records"),
            "{text}"
        );
    }
}

#[test]
fn what_a_later_version_adds_is_stepped_over() {
    let mut builder = sound_v2();
    let index = open(builder.bytes_v2(&[(77, 0, b"a later section"), (78, 0xfffe, b"")])).unwrap();
    finds(&index, &[2, 5, 9, 20]);
    index.check_hashes().unwrap();
    let text = message(open(builder.bytes_v2(&[(77, raw::SECTION_REQUIRED, b"not to be missed")])));
    assert_eq!(text, "/.daxfs/index: required section: version 77 is not supported (supported: 1 to 11)");
    // A file of a container that is not known here has no tensors for this reader, and lies to nobody.
    builder.files[1].container = 9.into();
    let index = builder.open();
    let file = index.file(5).unwrap().unwrap();
    assert_eq!((file.has_tensors, file.container), (false, 9));
}

#[test]
fn types_that_are_described_are_known_by_name_and_block() {
    let mut builder = Builder { v2: true, ..Builder::default() };
    builder.file(5, 288, &[("a", Dtype::Q4_K, &[1, 512], 0)]);
    builder.files[0].container = raw::CONTAINER_GGUF.into();
    let first = |builder: &Builder| {
        let index = builder.open();
        index.tensor(&index.file(5).unwrap().unwrap(), 0)
    };
    let info = first(&builder).unwrap();
    assert_eq!((info.dtype, info.shape, info.size), (Dtype::Q4_K, vec![1, 512], 288));
    // Another block under the same name, as a later version or a fork may have it, is another type.
    builder.dtypes[0].block_bytes = 140.into();
    let text = message(first(&builder));
    assert!(text.contains("one that this library knows (found Q4_K, 256 elements in 140 bytes)"), "{text}");
    builder.dtypes[0].block_bytes = 144.into();
    builder.dims[1] = 500.into();
    let text = message(first(&builder));
    assert!(
        text.contains("its last dimension must be a multiple of the block (found Q4_K[1, 500])"),
        "{text}"
    );
    builder.tensors[0].dtype = (raw::DTYPE_RECORDS + 1).into();
    assert!(message(first(&builder)).contains("1 to 22, or described (found 32769)"));
}

/// File records of 100 bytes, as a later version may have them.
#[test]
fn longer_records_are_read() {
    let builder = sound_v2();
    let sound = builder.bytes();
    let at = usize::try_from(u64::from_le_bytes(sound[136..144].try_into().unwrap())).unwrap();
    let records: Vec<u8> =
        builder.files.iter().flat_map(|file| [file.as_bytes(), &[0xee; 4]].concat()).collect();
    let mut bytes = [&sound[..], &records].concat();
    assert_eq!(at, 128 + 11 * 64);
    bytes[16..24].copy_from_slice(&((sound.len() + records.len()) as u64).to_le_bytes());
    bytes[136..144].copy_from_slice(&(sound.len() as u64).to_le_bytes());
    bytes[144..152].copy_from_slice(&(records.len() as u64).to_le_bytes());
    bytes[152..156].copy_from_slice(&100u32.to_le_bytes());
    finds(&open(bytes).unwrap(), &[2, 5, 9, 20]);
}

#[test]
fn each_byte_of_the_records_is_covered() {
    let sound = sound_v2().bytes();
    let index = open(sound.clone()).unwrap();
    index.check_hashes().unwrap();
    let hash = index.records_hash();
    let content = 32..64;
    for at in (0..sound.len()).filter(|at| !content.contains(at)) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        if let Ok(index) = open(bytes) {
            let text = message(index.check_hashes());
            assert!(text.contains("its BLAKE3 is"), "{at}: {text}");
            // Of sections it is the hash in the table that counts.
            assert!(at >= 128 + 11 * 64 || (64..96).contains(&at) || index.records_hash() != hash, "{at}");
        }
    }
}

#[test]
fn originals_that_are_not_stretches_of_their_file_are_refused() {
    let index = sound_v2().open();
    let original = index.original(&index.file(5).unwrap().unwrap()).unwrap().unwrap();
    assert_eq!((original.size, original.alignment, original.hash), (45, 64, Some([3; 32])));
    assert_eq!(
        [10, 39, 40, 44, 45].map(|at| original.run(at)),
        [Some((20, 30)), Some((49, 1)), Some((60, 5)), Some((64, 1)), None]
    );
    assert_eq!(index.original_start(&original).unwrap().to_vec(), b"0123456789");
    assert_eq!(index.original(&index.file(2).unwrap().unwrap()).unwrap(), None);
    let damaged = |damage: &dyn Fn(&mut Builder)| {
        let mut builder = sound_v2();
        damage(&mut builder);
        let index = open(builder.bytes());
        message(index.and_then(|index| index.original(&index.file(5)?.unwrap())))
    };
    let stretches = "its runs must be stretches of the file in their order";
    assert!(damaged(&|b| b.runs[1].offset = 49.into()).contains(stretches), "overlapping");
    assert!(damaged(&|b| b.runs[1].offset = 96.into()).contains(stretches), "behind the end");
    assert!(damaged(&|b| b.runs[1].offset = u64::MAX.into()).contains(stretches));
    assert!(damaged(&|b| b.runs[1].len = u64::MAX.into()).contains(stretches));
    assert!(damaged(&|b| b.runs[1].len = 0.into()).contains(stretches), "empty");
    assert!(damaged(&|b| b.runs[1].len = 6.into()).contains("it must be as long as its parts"));
    assert!(damaged(&|b| b.originals[0].size = u64::MAX.into()).contains("as long as its parts"));
    assert!(damaged(&|b| b.originals[0].file = 0.into()).contains("must name the file record that names it"));
    assert!(damaged(&|b| b.files[1].original = 1.into()).contains("original 1: it must be in the index"));
    let range = "its runs and bytes must be in the index";
    assert!(damaged(&|b| b.originals[0].run_count = 3.into()).contains(range));
    assert!(damaged(&|b| b.originals[0].start_len = 11.into()).contains(range));
    assert!(damaged(&|b| b.originals[0].start_len = u64::MAX.into()).contains(range));
    let next = "it must begin where the one before it ends";
    assert!(damaged(&|b| b.originals[0].first_run = 1.into()).contains(next));
    assert!(damaged(&|b| b.originals.push(b.originals[0])).contains(next), "shared by two");
}

#[test]
fn groups_that_do_not_give_the_hash_are_refused() {
    let index = sound_v2().open();
    let groups = index.groups(&index.file(20).unwrap().unwrap()).unwrap().unwrap();
    assert_eq!((groups.count(), groups.range(2)), (3, 2 << 20..3 << 20));
    assert!(index.groups(&index.file(5).unwrap().unwrap()).unwrap().is_none());
    let mut builder = sound_v2();
    builder.groups[1][0] ^= 1;
    let index = builder.open();
    let text = message(index.groups(&index.file(20).unwrap().unwrap()));
    assert!(text.contains("file record 3: its groups must give its hash"), "{text}");
    for damage in [
        |file: &mut raw::FileRecord| file.first_group = 1.into(),
        |file: &mut raw::FileRecord| file.first_group = u64::MAX.into(),
        |file: &mut raw::FileRecord| file.size = u64::MAX.into(),
    ] {
        let mut builder = sound_v2();
        damage(&mut builder.files[3]);
        assert!(message(builder.open().file(20)).contains("its groups must be in the index"));
    }
}

#[test]
fn damaged_records_are_errors_that_name_them() {
    let with = |damage: &dyn Fn(&mut Builder)| {
        let mut builder = sound();
        damage(&mut builder);
        builder.open()
    };
    let tensor = |damage: &dyn Fn(&mut raw::TensorRecord)| {
        let index = with(&|builder| damage(&mut builder.tensors[0]));
        let file = index.file(5).unwrap().unwrap();
        message(index.tensor(&file, 0))
    };
    let rule = "/.daxfs/index: tensor record 0: ";
    assert_eq!(
        tensor(&|t| t.dtype = 23.into()),
        format!("{rule}its data type must be 1 to 22, or described (found 23)")
    );
    assert_eq!(
        tensor(&|t| t.rank = 65.into()),
        format!("{rule}it must have at most 64 dimensions (found 65)")
    );
    assert!(
        tensor(&|t| t.first_dim = 5.into()).contains("its dimensions must be in the index (found 2 from 5")
    );
    assert!(tensor(&|t| t.first_dim = u32::MAX.into()).contains("its dimensions must be in the index"));
    assert!(tensor(&|t| t.size = 13.into()).contains("13 bytes for BF16[2, 3], which takes 12"));
    assert!(
        tensor(&|t| t.offset = 89.into())
            .contains("its data must lie in its file (found 0x59..0x65 in a file")
    );
    assert!(tensor(&|t| t.offset = u64::MAX.into()).contains("its data must lie in its file"));
    assert!(tensor(&|t| t.file = 2.into()).contains("it must name the file record that lists it (found 2,"));
    assert!(
        tensor(&|t| t.name_offset = u64::MAX.into()).contains("name of tensor record 0: it must lie in the")
    );
    assert!(tensor(&|t| t.name_len = u32::MAX.into()).contains("it must lie in the strings"));

    let index = with(&|builder| builder.dims[0] = u64::MAX.into());
    let file = index.file(5).unwrap().unwrap();
    assert!(message(index.tensor(&file, 0)).contains("its size must fit 64 bits"));
    let index = with(&|builder| builder.tensors[1].dtype = Dtype::F4.code().unwrap().into());
    assert!(message(index.tensor(&file, 1)).contains("it must end on a byte boundary"));
    let index = with(&|builder| builder.strings[12] = 0xff);
    assert!(message(index.tensor(&file, 0)).contains("its name must be UTF-8"));
    let index = with(&|builder| {
        let (offset, len) = builder.string("__daxfs_pad_0");
        (builder.tensors[0].name_offset, builder.tensors[0].name_len) = (offset, len);
    });
    assert!(message(index.tensor(&file, 0)).contains("fillers are not listed"));
    let index = with(&|builder| {
        let (offset, len) = builder.string(&"n".repeat(MAX_NAME + 1));
        (builder.tensors[0].name_offset, builder.tensors[0].name_len) = (offset, len);
    });
    assert!(message(index.tensor(&file, 0)).contains("it must not be too long (found 65537 bytes"));

    let file = |damage: &dyn Fn(&mut raw::FileRecord)| {
        message(with(&|builder| damage(&mut builder.files[1])).file(5))
    };
    assert_eq!(file(&|f| f.flags = 6.into()), "/.daxfs/index: file record: unknown flag bits 0x6");
    assert!(file(&|f| f.tensor_count = 5.into()).contains("file record 1: its tensors must be in the index"));
    assert!(file(&|f| f.first_tensor = u32::MAX.into()).contains("its tensors must be in the index"));
    let index = with(&|builder| builder.files[1].path_len = u32::MAX.into());
    assert!(
        message(index.path(&index.file(5).unwrap().unwrap()))
            .starts_with("/.daxfs/index: path of file record 1")
    );

    let checkpoint = |damage: &dyn Fn(&mut Builder)| {
        let index = with(damage);
        index.checkpoint(12).and_then(|found| index.checkpoint_tensor(&found.unwrap(), 0))
    };
    let text = message(checkpoint(&|builder| builder.checkpoints[1].first_entry = 1.into()));
    assert!(
        text.contains("checkpoint record 1: its entries must be in the index (found 3 from 1 on, of 3)"),
        "{text}"
    );
    let text = message(checkpoint(&|builder| builder.entries[0] = 4.into()));
    assert!(text.contains("checkpoint entry 0: it must name a tensor record (found 4 of 4)"), "{text}");
    let text = message(checkpoint(&|builder| builder.tensors[0].file = 3.into()));
    assert!(text.contains("tensor record 0: it must name a file record (found 3 of 3)"), "{text}");
}

#[test]
fn an_unsorted_index_only_hides_tensors() {
    let mut builder = sound();
    builder.files.reverse();
    let index = builder.open();
    assert_eq!(index.file(5).unwrap().unwrap().ino, 5);
    assert_eq!(index.file(2).unwrap(), None);
}

/// Calls everything; results may be anything but a panic, and tensors lie inside their files.
fn use_all(index: &Index) {
    for ino in 0..14 {
        let _ = index.file_hash(ino);
    }
    for file in index.files().flatten() {
        let _ = index.path(&file);
        for position in 0..file.tensors.len().min(20) {
            if let Ok(info) = index.tensor(&file, u32::try_from(position).unwrap()) {
                assert!(info.offset + info.size <= file.size);
                assert!(info.shape.len() <= MAX_RANK && info.name.len() <= MAX_NAME);
                if let Ok(Some(found)) = index.find(&file, &info.name) {
                    assert_eq!(found.name, info.name);
                }
            }
        }
        let _ = index.find(&file, "a.b");
    }
    let _ = index.check_hashes();
    for file in index.files().flatten() {
        let _ = index.groups(&file);
        if let Ok(Some(original)) = index.original(&file) {
            assert!(original.size <= file.size + original.start_len());
            let mut at = original.start_len();
            while let Some((from, len)) = original.run(at) {
                assert!(from + len <= file.size && len > 0);
                at += len;
            }
            assert_eq!(at, original.size);
        }
    }
    for checkpoint in index.checkpoints().flatten() {
        let _ = index.checkpoint_files(&checkpoint);
        for position in 0..checkpoint.entries.len().min(20) {
            if let Ok((file, info)) = index.checkpoint_tensor(&checkpoint, u32::try_from(position).unwrap()) {
                assert!(info.offset + info.size <= file.size);
            }
        }
        let _ = index.checkpoint_find(&checkpoint, "aa");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_damage_is_an_error_or_a_sound_tensor(
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0u8), Just(0xff)]),
            1..6,
        ),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        v2 in any::<bool>(),
    ) {
        let mut bytes = if v2 { sound_v2_bytes() } else { sound().bytes() };
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(index) = open(bytes) {
            use_all(&index);
        }
    }

    #[test]
    fn records_of_any_bytes_are_errors_or_sound_tensors(body in prop::collection::vec(any::<u8>(), 560)) {
        for (mut bytes, header) in [(sound().bytes(), 160), (sound_v2_bytes(), 128 + 11 * 64)] {
            for (target, byte) in bytes[header..].iter_mut().zip(&body) {
                *target = *byte;
            }
            use_all(&open(bytes).unwrap());
        }
    }
}
