//! Plans: the JSON that says which rank holds what.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, SeqAccess, Visitor};

use super::PlanError;
use super::pattern::Pattern;

/// Ranks of a plan at most.
pub const MAX_RANKS: usize = 4096;

/// A plan by which several devices share an image. Ranks are numbers from 0; which device is which rank is up to the
/// caller. Cloning is cheap.
///
/// ```
/// let plan = daxfs_device::Plan::parse(r#"{
///     "ranks": 2,
///     "rules": [
///         {"tensors": "*.q_proj.weight", "split": 0},
///         {"tensors": "*.down_proj.weight", "split": 1, "gather": true},
///         {"tensors": "vision.*", "on": 0},
///         {"files": "*.json", "on": "all"}
///     ]
/// }"#)?;
/// assert_eq!(plan.ranks(), 2);
/// # Ok::<_, daxfs_device::Error>(())
/// ```
///
/// The first rule whose pattern fits a name decides. A tensor that no rule names is whole on every rank, and a file
/// that holds no tensors on none. `docs/plans.md` describes all keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan(Arc<Rules>);

#[derive(Debug, PartialEq, Eq)]
struct Rules {
    ranks: usize,
    rules: Vec<Rule>,
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// As it is written.
    text: String,
    pattern: Pattern,
    is_for_files: bool,
    /// The ranks, in order of their parts.
    ranks: Vec<usize>,
    split: Option<Split>,
}

/// How a tensor is cut among the ranks of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// The dimension, from 0.
    pub(super) dim: usize,
    /// Whether parts with gaps are copied together.
    pub(super) gather: bool,
    /// Whether the last parts may be smaller.
    uneven: bool,
}

impl Rule {
    /// Whether the rank is one of those that hold something.
    pub(super) fn names(&self, rank: usize) -> bool {
        self.ranks.contains(&rank)
    }

    pub(super) fn split(&self) -> Option<Split> {
        self.split
    }

    /// The rank with the first part; a rule that splits has one.
    pub(super) fn first(&self) -> Option<usize> {
        self.ranks.first().copied()
    }

    /// Ranks that share a tensor.
    pub(super) fn ways(&self) -> usize {
        self.ranks.len()
    }

    /// The indices of a dimension of `size` that a rank has; empty for one that the rule does not name. `None` where it
    /// does not divide, and need not.
    pub(super) fn range(&self, split: Split, size: u64, rank: usize) -> Option<Range<u64>> {
        let ways = self.ranks.len() as u64;
        if !split.uneven && !size.is_multiple_of(ways) {
            return None;
        }
        let Some(number) = self.ranks.iter().position(|own| *own == rank) else { return Some(0..0) };
        let each = size.div_ceil(ways);
        let edge = |number: u64| each.saturating_mul(number).min(size);
        Some(edge(number as u64)..edge(number as u64 + 1))
    }
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`PlanError::Syntax`] for what is no JSON of this form, with line and column, and [`PlanError::Rule`] for rules
    /// that mean nothing; both as [`crate::Error::Plan`].
    pub fn parse(text: &str) -> crate::Result<Self> {
        let PlanText { ranks, rules } =
            serde_json::from_str(text).map_err(|error| PlanError::Syntax { why: error.to_string() })?;
        if !(1..=MAX_RANKS).contains(&ranks) {
            let why = format!("\"ranks\" is from 1 to {MAX_RANKS}, not {ranks}");
            return Err(PlanError::Syntax { why }.into());
        }
        let rule = |(number, rule): (usize, RuleText)| {
            rule.check(ranks).map_err(|why| PlanError::Rule { rule: number + 1, why })
        };
        let rules = rules.into_iter().enumerate().map(rule).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Rules { ranks, rules })))
    }

    /// How many ranks there are, numbered from 0.
    pub fn ranks(&self) -> usize {
        self.0.ranks
    }

    /// The patterns of the rules, in order, as they are written.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0.rules.iter().map(|rule| rule.text.as_str())
    }

    /// Number and content of the rule for a tensor.
    pub(super) fn rule_for_tensor(&self, name: &str) -> Option<(usize, &Rule)> {
        self.find(false, name.as_bytes())
    }

    /// Number and content of the rule for a file that holds no tensors. A path begins with a slash or not, as does a
    /// pattern.
    pub(super) fn rule_for_file(&self, path: &[u8]) -> Option<(usize, &Rule)> {
        self.find(true, path.strip_prefix(b"/").unwrap_or(path))
    }

    fn find(&self, is_for_files: bool, name: &[u8]) -> Option<(usize, &Rule)> {
        let mut rules = self.0.rules.iter().enumerate();
        rules.find(|(_, rule)| rule.is_for_files == is_for_files && rule.pattern.matches(name))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanText {
    ranks: usize,
    rules: Vec<RuleText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    tensors: Option<String>,
    files: Option<String>,
    split: Option<usize>,
    #[serde(default)]
    gather: bool,
    #[serde(default)]
    uneven: bool,
    on: Option<On>,
}

impl RuleText {
    fn check(self, ranks: usize) -> Result<Rule, String> {
        let (text, is_for_files) = match (self.tensors, self.files) {
            (Some(pattern), None) => (pattern, false),
            (None, Some(pattern)) => (pattern, true),
            _ => return Err("a rule has either \"tensors\" or \"files\"".into()),
        };
        if self.split.is_none() {
            if self.gather || self.uneven {
                return Err("\"gather\" and \"uneven\" say how to \"split\"".into());
            }
            if self.on.is_none() {
                return Err("a rule says where things are: \"split\" or \"on\"".into());
            }
        } else if is_for_files {
            return Err("files are not split".into());
        }
        let is_none = matches!(self.on, Some(On::None));
        if is_none && self.split.is_some() {
            return Err("what is on no rank is not split".into());
        }
        let on: Vec<usize> = match self.on {
            Some(On::Ranks(list)) => list,
            Some(On::None) => Vec::new(),
            Some(On::All) | None => (0..ranks).collect(),
        };
        if on.is_empty() && !is_none {
            return Err("a list of ranks names at least one; on none is \"none\"".into());
        }
        let mut seen = HashSet::new();
        if let Some(rank) = on.iter().find(|rank| **rank >= ranks || !seen.insert(**rank)) {
            return Err(match *rank >= ranks {
                true => format!("rank {rank} is not one of the {ranks}, which are numbered from 0"),
                false => format!("rank {rank} is named twice"),
            });
        }
        let split = self.split.map(|dim| Split { dim, gather: self.gather, uneven: self.uneven });
        let relative = text.strip_prefix('/').filter(|_| is_for_files).unwrap_or(&text);
        Ok(Rule { pattern: Pattern::new(relative), text, is_for_files, ranks: on, split })
    }
}

/// The value of `on`.
enum On {
    All,
    None,
    Ranks(Vec<usize>),
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = On;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rank, a list of ranks, \"all\" or \"none\"")
            }

            fn visit_u64<E: de::Error>(self, rank: u64) -> Result<On, E> {
                // One that fits nothing is none of the plan's, which is said later.
                Ok(On::Ranks(vec![usize::try_from(rank).unwrap_or(usize::MAX)]))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<On, E> {
                match text {
                    "all" => Ok(On::All),
                    "none" => Ok(On::None),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<On, A::Error> {
                let mut ranks = Vec::new();
                while let Some(rank) = list.next_element()? {
                    ranks.push(rank);
                }
                Ok(On::Ranks(ranks))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rules: &str) -> crate::Result<Plan> {
        Plan::parse(&format!(r#"{{"ranks": 4, "rules": [{rules}]}}"#))
    }

    #[test]
    fn the_first_rule_decides() {
        let plan = plan(
            r#"{"tensors": "a.*", "on": [2, 1]}, {"files": "*", "on": "none"}, {"tensors": "*", "split": 0}"#,
        );
        let plan = plan.unwrap();
        assert_eq!(plan.rule_for_tensor("a.b").unwrap().0, 0);
        assert_eq!(plan.rule_for_tensor("b").unwrap().0, 2);
        assert_eq!(plan.rule_for_file(b"b").unwrap().0, 1);
        assert!(!plan.rule_for_file(b"b").unwrap().1.names(0));
        let slash = super::Plan::parse(r#"{"ranks": 1, "rules": [{"files": "/a/*", "on": 0}]}"#).unwrap();
        assert!(slash.rule_for_file(b"/a/b").is_some() && slash.rule_for_file(b"b/a/b").is_none());
        assert_eq!(plan.patterns().collect::<Vec<_>>(), ["a.*", "*", "*"]);
    }

    #[test]
    fn ranges_are_those_of_the_ranks_in_the_order_of_the_rule() {
        let plan = plan(
            r#"{"tensors": "a", "split": 0, "on": [3, 1]}, {"tensors": "b", "split": 1, "uneven": true}"#,
        )
        .unwrap();
        let ranges = |name: &str, size| {
            let (_, rule) = plan.rule_for_tensor(name).unwrap();
            (0..4).map(|rank| rule.range(rule.split().unwrap(), size, rank)).collect::<Option<Vec<_>>>()
        };
        assert_eq!(ranges("a", 10).unwrap(), [0..0, 5..10, 0..0, 0..5]);
        assert_eq!(ranges("a", 9), None);
        assert_eq!(ranges("b", 9).unwrap(), [0..3, 3..6, 6..9, 9..9]);
        assert_eq!(ranges("b", 3).unwrap(), [0..1, 1..2, 2..3, 3..3]);
        assert_eq!(ranges("b", u64::MAX).unwrap()[3], 3 << 62..u64::MAX);
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (rules, why) in [
            (r#"{"tensors": "a", "splitt": 0}"#, "unknown field `splitt`"),
            (r#"{"tensors": "a", "split": 0, "split": 1}"#, "duplicate field `split`"),
            (r#"{"tensors": "a", "files": "b", "on": 0}"#, "rule 1: a rule has either"),
            (r#"{"on": 0}"#, "rule 1: a rule has either"),
            (r#"{"files": "a", "on": 0}, {"tensors": "a"}"#, "rule 2: a rule says where"),
            (r#"{"files": "a", "split": 0}"#, "files are not split"),
            (r#"{"tensors": "a", "on": 0, "gather": true}"#, "say how to \"split\""),
            (r#"{"tensors": "a", "on": "none", "split": 0}"#, "on no rank is not split"),
            (r#"{"tensors": "a", "on": []}"#, "names at least one"),
            (r#"{"tensors": "a", "on": 4}"#, "rank 4 is not one of the 4"),
            (r#"{"tensors": "a", "on": [1, 1]}"#, "rank 1 is named twice"),
            (r#"{"tensors": "a", "on": "every"}"#, "a rank, a list of ranks, \"all\" or \"none\""),
            (r#"{"tensors": "a", "on": -1}"#, "a rank, a list of ranks"),
            (r#"{"tensors": "a", "split": -1}"#, "invalid value"),
        ] {
            let error = plan(rules).unwrap_err();
            assert!(matches!(error, crate::Error::Plan(_)), "{error}");
            assert!(error.to_string().contains(why), "{rules}: {error}");
        }
        for text in
            ["", "[]", r#"{"ranks": 0, "rules": []}"#, r#"{"ranks": 5000, "rules": []}"#, r#"{"ranks": 1}"#]
        {
            assert!(Plan::parse(text).is_err(), "{text}");
        }
        let deep = format!(r#"{{"ranks": 1, "rules": {}"#, "[".repeat(100_000));
        assert!(Plan::parse(&deep).is_err());
    }
}
