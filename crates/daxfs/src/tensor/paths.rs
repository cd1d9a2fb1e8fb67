//! Directories of paths in an image.

/// The directory part of a path, without the last slash.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    &path[..slash.unwrap_or(0)]
}

/// Paths from the root, with or without a slash at their ends.
pub(super) fn same_directory(left: &[u8], right: &[u8]) -> bool {
    let trim = |path: &[u8]| -> Vec<u8> {
        let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
        parts.flat_map(|part| part.iter().chain(b"/")).copied().collect()
    };
    trim(left) == trim(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_and_directories() {
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(parent(b"/b"), b"");
        assert_eq!(parent(b"b"), b"");
        assert!(same_directory(b"/a//b", b"a/b/"));
        assert!(same_directory(b"", b"/"));
        assert!(!same_directory(b"/a/b", b"/ab"));
        assert!(!same_directory(b"/a", b"/"));
    }
}
