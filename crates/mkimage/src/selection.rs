//! Which names are packed: globs by the rules of gitignore, and what weights in safetensors files make superfluous.
//!
//! A choice depends on names and on which safetensors files are there, never on the order of the globs' options, so that
//! equal inputs give equal images. What is left out below a directory that is left out is not looked at.

use crate::{Error, Result};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Directories that stand beside weights in safetensors files and hold the same ones in other forms.
const TWIN_DIRECTORIES: [&[u8]; 7] =
    [b"original", b"onnx", b"openvino", b"coreml", b"metal", b"tensorrt", b"flax"];

/// How names of weights in other forms begin and end, beside safetensors files.
const TWIN_FILES: [(&[u8], &[u8]); 10] = [
    (b"pytorch_model", b".bin"),
    (b"pytorch_model", b".bin.index.json"),
    (b"tf_model", b".h5"),
    (b"tf_model", b".h5.index.json"),
    (b"flax_model", b".msgpack"),
    (b"flax_model", b".msgpack.index.json"),
    (b"rust_model", b".ot"),
    (b"consolidated", b".pth"),
    (b"model", b".ckpt"),
    (b"params", b".json.orig"),
];

/// How stems of whole models begin. Others, such as `adapter_model`, hold less than the files of [`TWIN_FILES`].
const WHOLE_MODELS: [&[u8]; 4] = [b"model", b"diffusion_pytorch_model", b"pytorch_model", CONSOLIDATED];

/// How names of Mistral's own form of a model begin.
const CONSOLIDATED: &[u8] = b"consolidated";

/// What a training leaves beside its result.
const TRAINING: [(&[u8], &[u8]); 8] = [
    (b"training_args", b".bin"),
    (b"optimizer", b".pt"),
    (b"optimizer", b".pth"),
    (b"optimizer", b".bin"),
    (b"optimizer.safetensors", b""),
    (b"scheduler", b".pt"),
    (b"rng_state", b".pth"),
    (b"events.out.tfevents", b""),
];

/// Forms of one set of tensors beside a safetensors file of the same name.
const TWIN_SUFFIXES: [&[u8]; 6] = [b".bin", b".pt", b".pth", b".ckpt", b".msgpack", b".h5"];

/// What is done with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is packed, and so is what lies below, unless something leaves that out.
    Whole,
    /// A directory that is packed where something below it is.
    Enter,
    /// It is left out.
    Out,
}

/// The globs of the settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    exclude: Option<Gitignore>,
    include: Option<Gitignore>,
    pub(crate) weights_only: bool,
}

impl Selection {
    /// Reads the globs.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for one that is none.
    pub(crate) fn new(exclude: &[String], include: &[String], weights_only: bool) -> Result<Selection> {
        let exclude = globs("--exclude", exclude)?;
        Ok(Selection { exclude, include: globs("--include", include)?, weights_only })
    }

    /// Whether paths matter at all.
    pub(crate) fn has_globs(&self) -> bool {
        self.exclude.is_some() || self.include.is_some()
    }

    /// Whether only what matches is packed.
    pub(crate) fn only_matches(&self) -> bool {
        self.include.is_some()
    }

    /// What becomes of the name at `path`, from the root of the image; `whole` says so of the directory around it.
    pub(crate) fn choose(&self, path: &Path, is_directory: bool, whole: bool) -> Choice {
        let matched = |globs: &Option<Gitignore>| {
            globs.as_ref().map(|globs| globs.matched(path, is_directory).map(|_| ()))
        };
        if matched(&self.exclude).is_some_and(|found| found.is_ignore()) {
            return Choice::Out;
        }
        match matched(&self.include) {
            None => Choice::Whole,
            // `!` takes back what an earlier glob, or the directory around it, has chosen.
            Some(found) if found.is_whitelist() => Choice::Out,
            Some(found) if whole || found.is_ignore() => Choice::Whole,
            Some(_) if is_directory => Choice::Enter,
            Some(_) => Choice::Out,
        }
    }

    /// Whether a glob names what it leaves out, or the directory around it. The rest is merely not chosen.
    pub(crate) fn is_excluded(&self, path: &Path, is_directory: bool) -> bool {
        let matched = |globs: &Option<Gitignore>| {
            globs.as_ref().map(|globs| globs.matched(path, is_directory).map(|_| ()))
        };
        matched(&self.exclude).is_some_and(|found| found.is_ignore())
            || matched(&self.include).is_some_and(|found| found.is_whitelist())
    }
}

fn globs(option: &'static str, lines: &[String]) -> Result<Option<Gitignore>> {
    if lines.is_empty() {
        return Ok(None);
    }
    let mut builder = GitignoreBuilder::new("");
    builder.allow_unclosed_class(false);
    let fail = |why: String| Error::Setting { option, why };
    for line in lines {
        let is_glob = !line.trim().is_empty() && !line.starts_with('#');
        let added = builder.add_line(None, line).map_err(|error| error.to_string());
        if let Err(why) = if is_glob { added.map(|_| ()) } else { Err("is no glob".to_owned()) } {
            return Err(fail(format!("{line:?}: {why}")));
        }
    }
    builder.build().map(Some).map_err(|error| fail(error.to_string()))
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'n> {
    pub(crate) name: &'n [u8],
    pub(crate) is_directory: bool,
    /// Whether it is a safetensors file that is there, by [`can_be_safetensors`].
    pub(crate) has_weights: bool,
}

/// Whether a name is that of weights which may stand for the same ones in other forms.
pub(crate) fn is_weights(name: &[u8]) -> bool {
    name.ends_with(b".safetensors") && !daxfs::tensor::is_leftover(name) && !among(&TRAINING, name)
}

/// Whether a file of `size` bytes that begins so can be a safetensors file: its header fits into it. That of a pointer
/// of git-lfs does not, nor that of a download that never began.
pub(crate) fn can_be_safetensors(size: u64, start: [u8; 8]) -> bool {
    let header = u64::from_le_bytes(start);
    header >= 2 && header.checked_add(8).is_some_and(|end| end <= size)
}

/// The names of a directory that weights in safetensors files beside them make superfluous, in the order of `names`.
pub(crate) fn superfluous(names: &[Named<'_>]) -> Vec<bool> {
    let weights = complete(names);
    let is_consolidated = |stem: &[u8]| stem.starts_with(CONSOLIDATED);
    let is_whole = |stem: &[u8]| WHOLE_MODELS.iter().any(|start| stem.starts_with(start));
    let has_whole = weights.iter().any(|stem| is_whole(stem));
    let has_model = weights.iter().any(|stem| is_whole(stem) && !is_consolidated(stem));
    let is_superfluous = |&Named { name, is_directory, .. }: &Named<'_>| {
        if daxfs::tensor::is_leftover(name) {
            return true;
        }
        if is_directory {
            return has_whole && TWIN_DIRECTORIES.contains(&name);
        }
        let is_twin = || {
            let stems = TWIN_SUFFIXES.iter().filter_map(|suffix| name.strip_suffix(*suffix)).map(stem);
            stems.into_iter().any(|stem| weights.contains(&stem))
        };
        // Mistral's own form of the same tensors.
        let is_consolidated = || has_model && is_consolidated(name) && name.ends_with(b".safetensors");
        (has_whole && among(&TWIN_FILES, name))
            || (!weights.is_empty() && among(&TRAINING, name))
            || is_twin()
            || is_consolidated()
    };
    names.iter().map(is_superfluous).collect()
}

/// The stems of safetensors files, or of sets of shards, that are there whole.
fn complete(names: &[Named<'_>]) -> HashSet<Vec<u8>> {
    let mut shards: HashMap<Vec<u8>, HashMap<u64, u64>> = HashMap::new();
    let mut broken = HashSet::new();
    for named in names.iter().filter(|named| is_weights(named.name)) {
        let Some(name) = named.name.strip_suffix(b".safetensors") else { continue };
        let (stem, count) = (stem(name), shard_count(name));
        if !named.has_weights {
            broken.insert(stem);
        } else {
            *shards.entry(stem).or_default().entry(count).or_default() += 1;
        }
    }
    // Any of several sets of one name may be the whole one.
    let is_whole = |counts: &HashMap<u64, u64>| counts.iter().any(|(wanted, have)| have >= wanted);
    shards.retain(|stem, counts| is_whole(counts) && !broken.contains(stem));
    shards.into_keys().collect()
}

fn among(list: &[(&[u8], &[u8])], name: &[u8]) -> bool {
    list.iter().any(|(start, end)| name.starts_with(start) && name.ends_with(end))
}

/// Of how many shards a name without its suffix says that it is one; 1 for a file of its own.
fn shard_count(name: &[u8]) -> u64 {
    if stem(name).len() == name.len() {
        return 1;
    }
    let count = name.rsplit(|&byte| byte == b'-').next().and_then(|count| std::str::from_utf8(count).ok());
    count.and_then(|count| count.parse().ok()).unwrap_or(u64::MAX)
}

/// A name without its suffix, less the number of a shard: `model-00001-of-00002` is of `model`.
fn stem(name: &[u8]) -> Vec<u8> {
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut parts: Vec<&[u8]> = name.split(|&byte| byte == b'-').collect();
    if let [.., shard, b"of", count] = parts[..]
        && digits(shard)
        && digits(count)
        && parts.len() > 3
    {
        parts.truncate(parts.len() - 3);
    }
    parts.join(&b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(globs: &[&str]) -> Vec<String> {
        globs.iter().map(|&glob| glob.to_owned()).collect()
    }

    #[test]
    fn globs_follow_the_rules_of_gitignore() {
        let selection = |exclude: &[&str], include: &[&str]| {
            Selection::new(&lines(exclude), &lines(include), false).unwrap()
        };
        let chosen = selection(&["*.bin", "/original/", "!keep.bin"], &[]);
        for (path, is_directory, choice) in [
            ("a/x.bin", false, Choice::Out),
            ("a/keep.bin", false, Choice::Whole),
            ("original", true, Choice::Out),
            ("original", false, Choice::Whole),
            ("a/original", true, Choice::Whole),
            ("x.bin.json", false, Choice::Whole),
        ] {
            assert_eq!(chosen.choose(Path::new(path), is_directory, false), choice, "{path}");
        }
        let chosen = selection(&["secret*"], &["*.json", "sub/"]);
        for (path, is_directory, whole, choice) in [
            ("a.json", false, false, Choice::Whole),
            ("a.txt", false, false, Choice::Out),
            ("deep", true, false, Choice::Enter),
            ("sub", true, false, Choice::Whole),
            ("sub/a.txt", false, true, Choice::Whole),
            ("secret.json", false, false, Choice::Out),
        ] {
            assert_eq!(chosen.choose(Path::new(path), is_directory, whole), choice, "{path}");
        }
        for wrong in ["[", "", "# no glob", "  "] {
            let error = Selection::new(&lines(&[wrong]), &[], false).unwrap_err();
            assert!(matches!(error, Error::Setting { option: "--exclude", .. }), "{wrong:?}: {error}");
        }
        let error = Selection::new(&[], &lines(&["a[z-a]"]), false).unwrap_err();
        assert!(matches!(error, Error::Setting { option: "--include", .. }), "{error}");
    }

    #[test]
    fn what_weights_make_superfluous() {
        let left = |names: &[&str]| -> Vec<String> {
            let split = |name: &&str| match name.strip_suffix('/') {
                Some(name) => (name.as_bytes().to_vec(), true),
                None => (name.as_bytes().to_vec(), false),
            };
            let owned: Vec<_> = names.iter().map(split).collect();
            let list: Vec<_> = owned
                .iter()
                .map(|(name, is_directory)| Named {
                    name: name.strip_prefix(b"!").unwrap_or(name),
                    is_directory: *is_directory,
                    has_weights: is_weights(name) && !name.starts_with(b"!"),
                })
                .collect();
            let out = superfluous(&list);
            names.iter().zip(out).filter(|(_, out)| !out).map(|(name, _)| (*name).to_owned()).collect()
        };
        assert_eq!(
            left(&[
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model.bin.index.json",
                "model.bin",
                "consolidated.00.pth",
                "consolidated.safetensors",
                "training_args.bin",
                "original/",
                "onnx/",
                "config.json",
                "tokenizer.model",
                "voices.bin",
                "._model.safetensors",
                ".cache/",
            ]),
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "config.json",
                "tokenizer.model",
                "voices.bin",
            ]
        );
        assert_eq!(left(&["pytorch_model.bin", "original/", "._x"]), ["pytorch_model.bin", "original/"]);
        assert_eq!(left(&["consolidated.safetensors", "consolidated.00.pth"]), ["consolidated.safetensors"]);
        assert_eq!(
            left(&["unet.fp16.safetensors", "unet.fp16.bin", "unet.bin"]),
            ["unet.fp16.safetensors", "unet.bin"]
        );
        // What holds less than a whole model, or is not there (`!`), is no other form of it.
        for kept in [
            &["adapter_model.safetensors", "pytorch_model.bin", "original/", "consolidated.00.pth"][..],
            &["pytorch_lora_weights.safetensors", "pytorch_model.bin", "onnx/"],
            &["!model.safetensors", "model.bin", "pytorch_model.bin", "original/", "training_args.bin"],
            &["model-00001-of-00002.safetensors", "pytorch_model.bin"],
            &["model-00001-of-00002.safetensors", "!model-00002-of-00002.safetensors", "pytorch_model.bin"],
            &["model.safetensors", "optimizer_config.json"],
        ] {
            assert_eq!(left(kept), kept, "{kept:?}");
        }
        assert_eq!(left(&["adapter_model.safetensors", "adapter_model.bin"]), ["adapter_model.safetensors"]);
        assert_eq!(
            left(&["adapter_model.safetensors", "optimizer.pt", "optimizer.safetensors"]),
            ["adapter_model.safetensors"]
        );
    }
}
