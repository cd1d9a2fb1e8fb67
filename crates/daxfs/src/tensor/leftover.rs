//! Names that are not meant: what downloads, archives and version control leave beside weights.

/// Directories that hold nothing that was asked for.
const DIRECTORIES: [&[u8]; 2] = [b".git", b".cache"];

/// How names of files that are not finished, or only mark something, end.
const SUFFIXES: [&[u8]; 2] = [b".incomplete", b".lock"];

/// Whether a name, without any slash, is one of those that downloads and archives leave beside what was meant: `._*`
/// (macOS), `.git`, `.cache`, `*.incomplete`, `*.lock`. They are chosen as a set of tensors only
/// where there is no other, or by their names.
#[must_use]
pub fn is_leftover(name: &[u8]) -> bool {
    let ends = || SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
    name.starts_with(b"._") || DIRECTORIES.contains(&name) || ends()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["._model.safetensors", ".git", ".cache", "x.incomplete", "a.lock"] {
            assert!(is_leftover(name.as_bytes()), "{name}");
        }
        for name in ["model.safetensors", ".gitattributes", ".hidden", "_x", "lock", "cache", ""] {
            assert!(!is_leftover(name.as_bytes()), "{name}");
        }
    }
}
