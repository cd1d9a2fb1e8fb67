//! Changes to an image, as a fuzzer's input: steps of one form, and bytes that are overwritten when all are made.

/// The rest of an input.
pub struct Input<'a>(&'a [u8]);

/// One change: what to do, two numbers, and some bytes (a name, or contents).
pub struct Step<'a> {
    /// What is to be done.
    pub kind: u8,
    /// Inodes for the most part.
    pub numbers: [u64; 2],
    /// At most 255.
    pub bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of an input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One byte: small numbers as they are, the highest ones as those at the edges of fields.
    fn number(&mut self) -> u64 {
        match self.take(1) {
            [byte @ 240..=255] => EDGES[usize::from(byte - 240)],
            [byte] => u64::from(*byte),
            _ => 0,
        }
    }

    /// Beginning with kind 255, the steps are over, and what follows overwrites bytes.
    pub fn step(&mut self) -> Option<Step<'a>> {
        let kind = *self.take(1).first()?;
        if kind == 255 {
            return None;
        }
        let numbers = [self.number(), self.number()];
        let len = usize::from(*self.take(1).first().unwrap_or(&0));
        Some(Step { kind, numbers, bytes: self.take(len) })
    }

    /// Overwrites words of `bytes`, each at a place of two bytes in units of four, with four bytes or an edge.
    pub fn overwrite(mut self, bytes: &mut [u8]) {
        while let [low, high, how] = *self.take(3) {
            let at = usize::from(u16::from_le_bytes([low, high])) * 4;
            let value = if how < 16 { EDGES[usize::from(how)].to_le_bytes() } else { [how; 8] };
            let len = if how % 2 == 0 { 8 } else { 4 };
            if let Some(place) = bytes.get_mut(at..at + len) {
                place.copy_from_slice(&value[..len]);
            }
        }
    }
}

/// Values at the edges of the format's fields.
const EDGES: [u64; 16] = [
    0,
    1,
    0xff,
    271,
    272,
    0x1000,
    0xf_fffd,
    0xf_fffe,
    0xf_ffff,
    0x10_0000,
    0xffff_ffff,
    1 << 43,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];
