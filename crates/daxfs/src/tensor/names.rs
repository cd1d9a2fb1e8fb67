//! What the names of files say of the tensors in them: whole sets, shards, lists of shards, and their variants.
//!
//! ```text
//! STEM.safetensors                    STEM.VARIANT.safetensors
//! STEM-00001-of-00004.safetensors     STEM.VARIANT-00001-of-00004.safetensors, STEM-00001-of-00004.VARIANT.safetensors
//! STEM.safetensors.index.json         STEM.VARIANT.safetensors.index.json, STEM.safetensors.index.VARIANT.json
//! ```
//!
//! Other containers have these forms with an end of their own; lists those that are written with lists.
//!
//! Whether `b` in `a.b` is a variant, or a part of the stem, only the neighbours tell: a name has both readings.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use super::container::ContainerKind;

/// What a name promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetName<'a> {
    /// The format of the files.
    pub container: ContainerKind,
    pub kind: Kind<'a>,
    /// The name without variant, number and suffixes.
    pub stem: &'a [u8],
    /// The last component of the name's stem, if it has several: `fp16`.
    pub variant: Option<&'a str>,
}

/// The kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A list of shards.
    Checkpoint,
    /// Tensors, all that there are.
    Whole,
    /// One of several files with tensors.
    Shard {
        /// From 1 on.
        number: u32,
        /// How many there are, at least 2.
        count: u32,
        /// What is before the number in the name, without its dash.
        before: &'a [u8],
        /// What is behind the count.
        behind: &'a [u8],
        /// Digits of the number.
        width: usize,
        /// Digits of the count.
        count_width: usize,
    },
}

impl<'a> SetName<'a> {
    /// Reads the last component of a path; `None` for all other files.
    pub fn parse(name: &'a [u8]) -> Option<Self> {
        if let Some(rest) = name.strip_suffix(b".json") {
            return Self::checkpoint(rest);
        }
        let container = ContainerKind::of_name(name)?;
        let suffix = container.suffix().as_bytes();
        let stem = name.strip_suffix(suffix)?;
        let (rest, behind_variant) = split_variant(stem);
        // The number stands at the end, or before the variant.
        let numbered = shard(stem).or_else(|| behind_variant.and_then(|_| shard(rest)));
        if let Some(Numbered { before, number, count, width, count_width }) = numbered {
            let digits = width.saturating_add(count_width);
            let taken = before.len().saturating_add(b"--of-".len()).saturating_add(digits);
            let behind = name.get(taken..).unwrap_or_default();
            let (stem, variant) = match behind.strip_suffix(suffix) {
                Some([]) => split_variant(before),
                _ => (before, behind_variant),
            };
            let kind = Kind::Shard { number, count, before, behind, width, count_width };
            return Some(Self { container, kind, stem, variant });
        }
        Some(Self { container, kind: Kind::Whole, stem: rest, variant: behind_variant })
    }

    /// A list's name, without `.json`.
    fn checkpoint(rest: &'a [u8]) -> Option<Self> {
        let kind = Kind::Checkpoint;
        if let Some((container, stem)) = listed(rest) {
            let (stem, variant) = split_variant(stem);
            return Some(Self { container, kind, stem, variant });
        }
        let (rest, variant) = split_variant(rest);
        let (container, stem) = listed(rest)?;
        variant.map(|variant| Self { container, kind, stem, variant: Some(variant) })
    }
}

/// The container and the stem of `STEM.END.index`.
fn listed(name: &[u8]) -> Option<(ContainerKind, &[u8])> {
    let name = name.strip_suffix(b".index")?;
    let container = ContainerKind::of_name(name).filter(|container| container.has_lists())?;
    Some((container, name.strip_suffix(container.suffix().as_bytes())?))
}

/// Splits `STEM.VARIANT`. A variant is a word of letters, digits, `_` and `-`.
fn split_variant(stem: &[u8]) -> (&[u8], Option<&str>) {
    let whole = (stem, None);
    let Some(dot) = stem.iter().rposition(|&byte| byte == b'.').filter(|&dot| dot > 0) else { return whole };
    let Some((head, [_, word @ ..])) = stem.split_at_checked(dot) else { return whole };
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-';
    match std::str::from_utf8(word) {
        Ok(variant) if !word.is_empty() && word.iter().all(is_word) => (head, Some(variant)),
        _ => whole,
    }
}

/// A stem as that of a shard.
struct Numbered<'a> {
    before: &'a [u8],
    number: u32,
    count: u32,
    width: usize,
    count_width: usize,
}

/// Reads `BEFORE-00001-of-00004`. Not a shard where the number is out of range, or the only one.
fn shard(stem: &[u8]) -> Option<Numbered<'_>> {
    let digits = |text: &[u8]| text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let value = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u32>().ok();
    let count_width = digits(stem);
    let (rest, count) = stem.split_at_checked(stem.len().checked_sub(count_width)?)?;
    let rest = rest.strip_suffix(b"-of-")?;
    let width = digits(rest);
    let (before, number) = rest.split_at_checked(rest.len().checked_sub(width)?)?;
    let (before, number, count) = (before.strip_suffix(b"-")?, value(number)?, value(count)?);
    let numbered = Numbered { before, number, count, width, count_width };
    (count > 1 && (1..=count).contains(&number)).then_some(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> Option<(String, String, Option<String>)> {
        let name = SetName::parse(name.as_bytes())?;
        let kind = match name.kind {
            Kind::Checkpoint => "list".to_owned(),
            Kind::Whole => "whole".to_owned(),
            Kind::Shard { number, count, before, behind, width, .. } => {
                let (before, behind) = (before.escape_ascii(), behind.escape_ascii());
                format!("{number} of {count} ({width}): {before} {behind}")
            }
        };
        Some((kind, name.stem.escape_ascii().to_string(), name.variant.map(str::to_owned)))
    }

    #[test]
    fn names_as_they_are_given() {
        let all = |kind: &str, stem: &str, variant: Option<&str>| {
            Some((kind.to_owned(), stem.to_owned(), variant.map(str::to_owned)))
        };
        let fp16 = Some("fp16");
        for (name, expected) in [
            ("model.safetensors", all("whole", "model", None)),
            ("model.fp16.safetensors", all("whole", "model", fp16)),
            ("Llama-3.1.safetensors", all("whole", "Llama-3", Some("1"))),
            (".safetensors", all("whole", "", None)),
            ("model.safetensors.index.json", all("list", "model", None)),
            ("model.safetensors.index.fp16.json", all("list", "model", fp16)),
            ("unet.fp16.safetensors.index.json", all("list", "unet", fp16)),
            ("m-00001-of-00004.safetensors", all("1 of 4 (5): m .safetensors", "m", None)),
            ("m.fp16-00001-of-00004.safetensors", all("1 of 4 (5): m.fp16 .safetensors", "m", fp16)),
            ("m-00001-of-00004.fp16.safetensors", all("1 of 4 (5): m .fp16.safetensors", "m", fp16)),
            ("m-1-of-2.safetensors", all("1 of 2 (1): m .safetensors", "m", None)),
            ("m-1-of-12.fp16.safetensors", all("1 of 12 (1): m .fp16.safetensors", "m", fp16)),
            ("m-00001-of-00001.safetensors", all("whole", "m-00001-of-00001", None)),
            ("m-00000-of-00002.safetensors", all("whole", "m-00000-of-00002", None)),
            ("m-00003-of-00002.safetensors", all("whole", "m-00003-of-00002", None)),
            ("m-99999999999-of-99999999999.safetensors", all("whole", "m-99999999999-of-99999999999", None)),
            ("-of-.safetensors", all("whole", "-of-", None)),
            ("1-of-2.safetensors", all("whole", "1-of-2", None)),
            ("model.Q4_K_M.gguf", all("whole", "model", Some("Q4_K_M"))),
            ("m-00001-of-00004.gguf", all("1 of 4 (5): m .gguf", "m", None)),
            ("model.gguf.index.json", None),
            ("pytorch_model.bin", all("whole", "pytorch_model", None)),
            (
                "pytorch_model-00001-of-00002.bin",
                all("1 of 2 (5): pytorch_model .bin", "pytorch_model", None),
            ),
            ("pytorch_model.bin.index.json", all("list", "pytorch_model", None)),
            ("tokenizer.bin.index.json", None),
            ("model.safetensors.index.json.bak", None),
            ("config.json", None),
            ("model.bin", None),
        ] {
            assert_eq!(read(name), expected, "{name}");
        }
    }
}
