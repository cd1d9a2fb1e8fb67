//! What a file of tensors holds, whatever its format: its tensors, where they lie, and its metadata.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::metadata::Value;
use super::{TensorError, TensorInfo};
use crate::format::index::FILLER_PREFIX;

/// A header that was checked as a whole: every tensor lies in the file, and no two share bytes.
#[derive(Debug)]
pub struct Header {
    data_start: u64,
    /// Sorted by name (bytes); fillers included.
    tensors: Vec<Arc<TensorInfo>>,
    /// Where the fillers stand: their common prefix keeps them together.
    fillers: Range<usize>,
    metadata: Option<BTreeMap<String, Value>>,
}

impl Header {
    /// Of tensors in any order.
    ///
    /// # Errors
    /// [`TensorError::DuplicateKey`] when two tensors have one name.
    pub(super) fn new(
        what: &'static str,
        data_start: u64,
        mut tensors: Vec<Arc<TensorInfo>>,
        metadata: Option<BTreeMap<String, Value>>,
    ) -> Result<Self, TensorError> {
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        let twice = tensors.windows(2).find_map(|pair| match pair {
            [left, right] if left.name == right.name => Some(left.name.clone()),
            _ => None,
        });
        if let Some(key) = twice {
            return Err(TensorError::DuplicateKey { what, key });
        }
        let first = tensors.partition_point(|info| info.name.as_str() < FILLER_PREFIX);
        let count = tensors[first..].partition_point(|info| info.name.starts_with(FILLER_PREFIX));
        let fillers = first..first.saturating_add(count);
        Ok(Self { data_start, tensors, fillers, metadata })
    }

    /// Where tensor data begins: what lies before it is the header.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// All tensors sorted by name (bytes), including the fillers that views hide.
    pub fn all(&self) -> &[Arc<TensorInfo>] {
        &self.tensors
    }

    /// The tensors that views show, sorted by name.
    pub fn visible(&self) -> impl Iterator<Item = &Arc<TensorInfo>> {
        self.tensors[..self.fillers.start].iter().chain(&self.tensors[self.fillers.end..])
    }

    /// Where those stand in [`Header::all`].
    pub(super) fn positions(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.fillers.start).chain(self.fillers.end..self.tensors.len())
    }

    /// How many tensors views show.
    pub fn len(&self) -> usize {
        self.tensors.len().saturating_sub(self.fillers.len())
    }

    /// True when views show no tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `position`th of [`Header::visible`].
    pub fn nth(&self, position: usize) -> Option<&Arc<TensorInfo>> {
        let hidden = if position < self.fillers.start { 0 } else { self.fillers.len() };
        self.tensors.get(position.checked_add(hidden)?)
    }

    /// The tensor of this name; `None` for fillers.
    pub fn get(&self, name: &str) -> Option<&Arc<TensorInfo>> {
        self.position(name).map(|position| &self.tensors[position])
    }

    /// Where [`Header::get`] finds the name in [`Header::all`].
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        let found = self.tensors.binary_search_by(|info| info.name.as_str().cmp(name)).ok()?;
        (!self.fillers.contains(&found)).then_some(found)
    }

    /// What the file says beside its tensors, by key; `None` where it has no place for that.
    pub fn metadata(&self) -> Option<&BTreeMap<String, Value>> {
        self.metadata.as_ref()
    }

    /// About how many bytes it occupies.
    pub(super) fn cost(&self) -> u64 {
        let tensors = self.tensors.iter().map(|info| {
            // With the counts and the pointer of the `Arc`.
            let fixed =
                size_of::<(TensorInfo, [usize; 3])>().saturating_add(size_of_val::<[u64]>(&info.shape));
            fixed.saturating_add(info.name.len()) as u64
        });
        let values = self
            .metadata
            .iter()
            .flatten()
            .map(|(key, value)| (key.len() as u64).saturating_add(value.cost()).saturating_add(64));
        tensors.chain(values).fold(0, u64::saturating_add)
    }
}
