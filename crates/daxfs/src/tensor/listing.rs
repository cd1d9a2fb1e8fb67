//! Walks over a set of tensors: all of them, those whose names begin alike, and the names alone.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::iter;

use super::{Tensor, TensorError, Tensors};
use crate::{Error, Result};

impl Tensors {
    /// All tensors, sorted by name.
    ///
    /// Their names in an index together are no longer than what it has for names: an index where many records share one
    /// long name ends in an error before somebody has collected them.
    pub fn iter(&self) -> impl Iterator<Item = Result<Tensor>> + '_ {
        self.iter_from(0)
    }

    /// The tensors whose names begin with `prefix`, sorted by name; the first one is found by binary search.
    ///
    /// A record of the index that is wrong is an error among them: it may hide one of them. That can be one which lies right
    /// before or behind them.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let header = br#"{"layers.1.w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"layers.10.w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"lm_head":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    /// # let mut file = (header.len() as u64).to_le_bytes().to_vec();
    /// # file.extend(header);
    /// # file.extend([0, 1, 2]);
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("model.safetensors"), file)?;
    /// # let model = dir.path().join("model.daxfs");
    /// # mkimage::Packer::new().input(dir.path().join("model.safetensors")).plan()?.write_file(&model)?;
    /// let tensors = daxfs::Image::open(&model)?.tensors()?;
    /// for tensor in tensors.with_prefix("layers.1.") {
    ///     assert_eq!(tensor?.name(), "layers.1.w");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Result<Tensor>> + 'a {
        let begins = move |tensor: &Result<Tensor>| match tensor {
            Ok(tensor) => tensor.name().starts_with(prefix),
            Err(_) => true,
        };
        let is_before = move |tensor: &Result<Tensor>| matches!(tensor, Ok(tensor) if tensor.name() < prefix);
        // Where a wrong record misleads the search, it ends too early, among what sorts before.
        self.iter_from(self.position(prefix)).filter(move |tensor| !is_before(tensor)).take_while(begins)
    }

    /// The names of all tensors, sorted, without an allocation for each. A name that is wrong in the index is an error;
    /// whether the rest of its record holds, [`Tensors::get`] says.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut file = 60_u64.to_le_bytes().to_vec();
    /// # file.extend(br#"{"head":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}    "#);
    /// # file.extend([0, 1]);
    /// # let dir = tempfile::tempdir()?;
    /// # std::fs::write(dir.path().join("model.safetensors"), file)?;
    /// # let model = dir.path().join("model.daxfs");
    /// # mkimage::Packer::new().input(dir.path().join("model.safetensors")).plan()?.write_file(&model)?;
    /// let tensors = daxfs::Image::open(&model)?.tensors()?;
    /// let mut names = tensors.names();
    /// while let Some(name) = names.next()? {
    ///     println!("{name}"); // a &str, valid until the next one
    /// }
    /// // Copies, as the items of an iterator:
    /// assert_eq!(tensors.names().into_iter().collect::<daxfs::Result<Vec<String>>>()?, ["head"]);
    /// # Ok(()) }
    /// ```
    pub fn names(&self) -> Names<'_> {
        Names { tensors: self, position: 0, left: self.bytes_for_names(), buffer: Vec::new() }
    }

    /// The tensors from a position on.
    fn iter_from(&self, mut position: usize) -> impl Iterator<Item = Result<Tensor>> + '_ {
        let mut left = self.bytes_for_names();
        iter::from_fn(move || {
            let next = self.nth(position).transpose()?;
            position = position.saturating_add(1);
            let tensor = match next {
                Ok(tensor) => tensor,
                Err(error) => return Some(Err(error)),
            };
            let Some(rest) = left.checked_sub(tensor.name().len() as u64) else {
                position = usize::MAX;
                return Some(Err(shared_names(self.bytes_for_names())));
            };
            left = rest;
            Some(Ok(tensor))
        })
    }
}

fn shared_names(bytes: u64) -> Error {
    TensorError::Index {
        place: "tensor records".into(),
        rule: "the names of a set must have bytes of their own",
        found: format!("more than {bytes} bytes of names"),
    }
    .into()
}

/// The names of a set of tensors: [`Tensors::names`].
///
/// Names in an index lie in memory that others may write, so each is copied into one buffer and checked there; those of
/// parsed headers are the set's own.
#[derive(Debug)]
pub struct Names<'a> {
    tensors: &'a Tensors,
    position: usize,
    /// What of the bytes for names is left.
    left: u64,
    buffer: Vec<u8>,
}

impl Names<'_> {
    /// The next name; `None` behind the last.
    ///
    /// # Errors
    /// [`TensorError::Index`] when the index has a wrong name; the call after that gives the name behind it. When names
    /// together are longer than what the index has for them, that is the last.
    #[allow(
        clippy::should_implement_trait,
        reason = "the name is borrowed from the buffer, as no iterator's item can be"
    )]
    pub fn next(&mut self) -> Result<Option<&str>> {
        let position = self.position;
        self.position = position.saturating_add(1);
        let Some(name) = self.tensors.name_at(position, &mut self.buffer)? else { return Ok(None) };
        let Some(rest) = self.left.checked_sub(name.len() as u64) else {
            self.position = usize::MAX;
            return Err(shared_names(self.tensors.bytes_for_names()));
        };
        self.left = rest;
        Ok(Some(name))
    }
}

impl<'a> IntoIterator for Names<'a> {
    type Item = Result<String>;
    type IntoIter = NamesIter<'a>;

    fn into_iter(self) -> NamesIter<'a> {
        NamesIter(self)
    }
}

/// Copies of the names of a set of tensors: what [`Names`] is as an iterator.
#[derive(Debug)]
pub struct NamesIter<'a>(Names<'a>);

impl Iterator for NamesIter<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        self.0.next().map(|name| name.map(str::to_owned)).transpose()
    }
}
