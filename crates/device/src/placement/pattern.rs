//! Patterns for the names of tensors and the paths of files.

/// `*` stands for any number of bytes, `?` for one, also for dots and slashes; all others stand for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// Whether all of `name` is what the pattern describes. Takes time for each byte of the name at most once for each
    /// byte of the pattern.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let (mut at, mut in_name) = (0, 0);
        // Behind the last star, and where in the name it ends for now. Only the last one need be tried longer: whatever
        // an earlier one takes more, the last one can take as well.
        let mut star: Option<(usize, usize)> = None;
        while let Some(byte) = name.get(in_name) {
            match self.0.get(at) {
                Some(b'*') => {
                    at += 1;
                    star = Some((at, in_name));
                }
                Some(wanted) if wanted == byte || *wanted == b'?' => (at, in_name) = (at + 1, in_name + 1),
                _ => match star {
                    Some((behind, end)) => {
                        star = Some((behind, end + 1));
                        (at, in_name) = (behind, end + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0.iter().skip(at).all(|byte| *byte == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        let matches = |pattern: &str, name: &str| Pattern::new(pattern).matches(name.as_bytes());
        assert!(matches("model.layers.*.down_proj.weight", "model.layers.10.mlp.down_proj.weight"));
        assert!(matches("*", "") && matches("", "") && matches("**", "a") && matches("a*", "a"));
        assert!(matches("a?c", "abc") && !matches("a?c", "ac") && !matches("", "a") && !matches("a", ""));
        assert!(!matches("model.layers.1.*", "model.layers.10.weight"));
        assert!(matches("*.json", "sub/dir/x.json") && !matches("*.json", "x.json5"));
        assert!(matches("[a]", "[a]") && !matches("[a]", "a"));
        assert!(!matches(&"*a".repeat(30), &"a".repeat(29)) && matches(&"*a".repeat(30), &"a".repeat(31)));
    }

    /// As the definition has it.
    fn slowly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, _) => name.is_empty(),
            (Some((b'*', rest)), None) => slowly(rest, name),
            (Some((b'*', rest)), Some((_, left))) => slowly(rest, name) || slowly(pattern, left),
            (Some((b'?', rest)), Some((_, left))) => slowly(rest, left),
            (Some((wanted, rest)), Some((byte, left))) => wanted == byte && slowly(rest, left),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn as_defined(pattern in "[ab?*]{0,8}", name in "[abc]{0,10}") {
            let found = Pattern::new(&pattern).matches(name.as_bytes());
            prop_assert_eq!(found, slowly(pattern.as_bytes(), name.as_bytes()), "{} {}", pattern, name);
        }
    }
}
