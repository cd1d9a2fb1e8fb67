use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::format::{U16, U32, U64};
use crate::tensor::Dtype;

/// Builds index files record by record, sound unless a test damages them.
#[derive(Default)]
pub(in crate::tensor) struct Builder {
    pub files: Vec<raw::FileRecord>,
    pub tensors: Vec<raw::TensorRecord>,
    pub checkpoints: Vec<raw::CheckpointRecord>,
    pub entries: Vec<U32>,
    pub dims: Vec<U64>,
    pub strings: Vec<u8>,
}

/// Name, type, shape and offset in the file.
type Listed<'a> = (&'a str, Dtype, &'a [u64], u64);

fn u32_of(len: usize) -> U32 {
    u32::try_from(len).unwrap().into()
}

impl Builder {
    fn string(&mut self, text: &str) -> (U64, U32) {
        let offset = self.strings.len() as u64;
        self.strings.extend_from_slice(text.as_bytes());
        (offset.into(), u32_of(text.len()))
    }

    fn file(&mut self, ino: u32, size: u64, tensors: &[Listed<'_>]) -> &mut Self {
        self.file_at(&format!("/file{ino}"), ino, size, 0, tensors)
    }

    /// A file of `size` bytes with tensors, which must be sorted.
    pub fn file_at(
        &mut self,
        path: &str,
        ino: u32,
        size: u64,
        data_start: u64,
        tensors: &[Listed<'_>],
    ) -> &mut Self {
        let (path_offset, path_len) = self.string(path);
        let first_tensor = u32_of(self.tensors.len());
        for &(name, dtype, shape, offset) in tensors {
            let (name_offset, name_len) = self.string(name);
            let first_dim = u32_of(self.dims.len());
            self.dims.extend(shape.iter().map(|&dim| U64::new(dim)));
            self.tensors.push(raw::TensorRecord {
                name_offset,
                name_len,
                first_dim,
                offset: offset.into(),
                size: dtype.size_of(shape).unwrap().into(),
                file: u32_of(self.files.len()),
                dtype: dtype.code().into(),
                rank: U16::new(u16::try_from(shape.len()).unwrap()),
                reserved: [0; 8],
            });
        }
        self.files.push(raw::FileRecord {
            path_offset,
            path_len,
            ino: ino.into(),
            size: size.into(),
            first_tensor,
            tensor_count: u32_of(tensors.len()),
            flags: if tensors.is_empty() { 0.into() } else { raw::FILE_TENSORS.into() },
            reserved0: 0.into(),
            data_start: data_start.into(),
            reserved1: [0; 16],
            hash: [u8::try_from(ino).unwrap(); 32],
        });
        self
    }

    pub fn checkpoint(&mut self, ino: u32, entries: &[u32]) -> &mut Self {
        let first_entry = u32_of(self.entries.len());
        self.entries.extend(entries.iter().map(|&entry| U32::new(entry)));
        let entry_count = u32_of(entries.len());
        self.checkpoints.push(raw::CheckpointRecord {
            ino: ino.into(),
            first_entry,
            entry_count,
            reserved: [0; 20],
        });
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut section = |bytes: &[u8]| {
            let offset = (size_of::<raw::Header>() + body.len()) as u64;
            body.extend_from_slice(bytes);
            U64::new(offset)
        };
        let header = raw::Header {
            magic: raw::MAGIC,
            version: raw::VERSION.into(),
            flags: raw::HAS_HASHES.into(),
            files_offset: section(self.files.as_bytes()),
            tensors_offset: section(self.tensors.as_bytes()),
            checkpoints_offset: section(self.checkpoints.as_bytes()),
            entries_offset: section(self.entries.as_bytes()),
            dims_offset: section(self.dims.as_bytes()),
            strings_offset: section(&self.strings),
            file_count: u32_of(self.files.len()),
            tensor_count: u32_of(self.tensors.len()),
            checkpoint_count: u32_of(self.checkpoints.len()),
            entry_count: u32_of(self.entries.len()),
            dim_count: (self.dims.len() as u64).into(),
            strings_size: (self.strings.len() as u64).into(),
            total_size: ((size_of::<raw::Header>() + body.len()) as u64).into(),
            reserved: [0; 24],
            content_hash: [9; 32],
        };
        [header.as_bytes(), &body].concat()
    }

    fn open(&self) -> Index {
        open(self.bytes()).unwrap()
    }
}

/// The index lies somewhere in a region, with foreign bytes around it.
fn open(bytes: Vec<u8>) -> Result<Index> {
    let extent = Extent { offset: 3, len: bytes.len() as u64 };
    let region = [vec![0xaa; 3], bytes, vec![0xaa; 5]].concat();
    Index::open(Region::from_bytes(region), extent)
}

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

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn files_tensors_and_checkpoints_are_found() {
    let index = sound().open();
    assert_eq!((index.file_count(), index.tensor_count(), index.checkpoint_count()), (3, 4, 2));
    assert_eq!(index.content_hash(), Some([9; 32]));
    assert_eq!(index.file_hash(9).unwrap(), Some([9; 32]));
    for ino in [0, 1, 3, 10, u64::from(u32::MAX) + 6, u64::MAX] {
        assert_eq!(index.file(ino).unwrap(), None, "{ino}");
    }
    let file = index.file(5).unwrap().unwrap();
    assert_eq!((file.ino, file.size, file.has_tensors, file.tensors.len()), (5, 100, true, 3));
    assert_eq!(index.path(&file).unwrap(), b"/file5");
    assert!(!index.file(2).unwrap().unwrap().has_tensors);
    assert_eq!(index.files().map(|file| file.unwrap().ino).collect::<Vec<_>>(), [2, 5, 9]);

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
    assert_eq!(damaged(8, &[2]), "/.daxfs/index: version 2 is not supported (supported: 1)");
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
    assert!(message(open(sound[..sound.len() - 1].to_vec())).contains("its size must be that of the file"));
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
    assert_eq!(tensor(&|t| t.dtype = 23.into()), format!("{rule}its data type must be 1 to 22 (found 23)"));
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
    let index = with(&|builder| builder.tensors[1].dtype = Dtype::F4.code().into());
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
    ) {
        let mut bytes = sound().bytes();
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
        let mut bytes = sound().bytes();
        for (target, byte) in bytes[size_of::<raw::Header>()..].iter_mut().zip(body) {
            *target = byte;
        }
        use_all(&open(bytes).unwrap());
    }
}
