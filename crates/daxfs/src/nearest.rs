//! "Did you mean": names that are like one that is not there.
//!
//! The cost is bounded whatever the image holds: so many names are looked at, and no longer ones.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

/// Most names that are compared.
pub(crate) const MOST: usize = 4096;
/// Longest name that is compared, in characters.
const LONGEST: usize = 200;
/// Most names that are proposed.
pub(crate) const PROPOSED: usize = 3;

/// Those of `names` that are like `wanted`, the nearest first, at most three.
pub(crate) fn nearest(wanted: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let length = wanted.chars().count();
    if length == 0 || length > LONGEST {
        return Vec::new();
    }
    // Of a longer name more characters may be wrong.
    let bound = (length / 4).clamp(1, 8);
    let mut found: Vec<(usize, String)> = Vec::new();
    for name in names.take(MOST).filter(|name| name != wanted) {
        let other = name.chars().count();
        if other > LONGEST {
            continue;
        }
        // A prefix or a suffix that was left out or added: `model.`, `.weight`.
        let part = length >= 4 && other >= 4 && (name.contains(wanted) || wanted.contains(name.as_str()));
        let distance = if part {
            1
        } else if length.abs_diff(other) > bound {
            continue;
        } else {
            strsim::osa_distance(&wanted.to_lowercase(), &name.to_lowercase())
        };
        if distance <= bound {
            found.push((distance, name));
        }
    }
    found.sort();
    found.truncate(PROPOSED);
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(wanted: &str, names: &[&str]) -> Vec<String> {
        nearest(wanted, names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn likely_mistakes_are_seen_through() {
        let names = ["model.embed.weight", "model.norm.weight", "lm_head.weight", "x"];
        assert_eq!(of("embed.weight", &names), ["model.embed.weight"]);
        assert_eq!(of("model.norn.weight", &names), ["model.norm.weight"]);
        assert_eq!(of("LM_HEAD.WEIGHT", &names), ["lm_head.weight"]);
        assert_eq!(of("y", &names), ["x"]);
        assert!(of("quite.another.thing", &names).is_empty());
        assert!(of("", &names).is_empty() && of(&"w".repeat(300), &names).is_empty());
        let many: Vec<_> = (0..100_000).map(|n| format!("layer.{n}.weight")).collect();
        assert_eq!(nearest("layer.7.weigth", many.into_iter()).len(), PROPOSED);
    }
}
