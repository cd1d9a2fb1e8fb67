//! `daxfs inspect`: what an image is made of and where it lies, as text, JSON and a picture.

mod json;
mod layout;
mod markup;
mod paint;
mod report;
mod rows;
mod svg;

use crate::args::InspectArgs;
use crate::memory::Memory;
use crate::output::{Outcome, Output, report as report_error};
use crate::source::name;
use crate::text::escape;
use anyhow::{Context, anyhow};
use daxfs::{FileType, Image};
use layout::{FileMap, Layout};
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;

/// Shows the image, and draws it when a file for the picture was named.
pub fn run(image: &Image, args: &InspectArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let scopes = scopes(image, args)?;
    let memory = Memory::of(image.region())?;
    // The picture is of the whole image; otherwise only what is shown is parsed, and only that can be found broken.
    let wanted = |path: &[u8]| args.svg.is_some() || scopes.iter().any(|scope| scope.holds(path));
    let named: Vec<_> = scopes.iter().filter(|scope| !scope.directory).map(|scope| &scope.path[..]).collect();
    let layout = Layout::of(image, wanted, &named)?;
    let title = name(&args.image);
    if let Some(path) = &args.svg {
        let picture = svg::draw(image, &layout, &title);
        std::fs::write(path, picture).with_context(|| escape(path.as_os_str().as_bytes()))?;
    }
    let shown: Vec<&FileMap> =
        layout.files.iter().filter(|file| scopes.iter().any(|s| s.holds(&file.path))).collect();
    if args.json {
        json::write(image, &layout, &memory, &shown, args.align, out)?;
    } else {
        report::write(image, &layout, &memory, &shown, args.align, out)?;
    }
    Ok(complain(&layout, &scopes, out)?)
}

/// A file or directory of the command line.
struct Scope {
    path: Vec<u8>,
    directory: bool,
}

impl Scope {
    fn holds(&self, path: &[u8]) -> bool {
        match path.strip_prefix(self.path.as_slice()) {
            Some([]) => true,
            Some(rest) => self.directory && (self.path.ends_with(b"/") || rest.starts_with(b"/")),
            None => false,
        }
    }
}

/// What to show: the paths of the command line with links resolved, else everything.
fn scopes(image: &Image, args: &InspectArgs) -> anyhow::Result<Vec<Scope>> {
    if let Some(variant) = &args.variant {
        return variant_scopes(image, args, variant);
    }
    if args.paths.is_empty() {
        return Ok(vec![Scope { path: b"/".to_vec(), directory: true }]);
    }
    let mut scopes = Vec::new();
    for path in &args.paths {
        let entry = image.entry(path.as_bytes())?;
        let ino = entry.metadata().ino;
        let directory = entry.file_type() == FileType::Directory;
        // A file with several names is listed under the first of them.
        let first = (!directory).then(|| image.walk().find(|other| other.metadata().ino == ino)).flatten();
        scopes.push(Scope { path: first.unwrap_or(entry).path(), directory });
    }
    Ok(scopes)
}

/// The files that hold the tensors of a variant, under their first names.
fn variant_scopes(image: &Image, args: &InspectArgs, variant: &str) -> anyhow::Result<Vec<Scope>> {
    let [path] = args.paths.as_slice() else {
        anyhow::ensure!(
            args.paths.is_empty(),
            "--variant is for one directory, not for {}",
            args.paths.len()
        );
        return shards(image.tensors_of_variant("/", variant)?);
    };
    shards(image.tensors_of_variant(path.as_bytes(), variant)?)
}

fn shards(tensors: daxfs::Tensors) -> anyhow::Result<Vec<Scope>> {
    let inodes: HashSet<u64> = tensors.shards()?.iter().map(daxfs::File::ino).collect();
    let mut seen = HashSet::new();
    let first = |entry: &daxfs::Entry| {
        let ino = entry.metadata().ino;
        inodes.contains(&ino) && seen.insert(ino)
    };
    let entries = tensors.image().walk().filter(first);
    Ok(entries.map(|entry| Scope { path: entry.path(), directory: false }).collect())
}

/// Reports files that claim to hold tensors and do not, as far as they were asked for; the rest was shown all the same.
fn complain(layout: &Layout, scopes: &[Scope], out: &mut Output) -> std::io::Result<Outcome> {
    out.finish()?;
    let mut outcome = Outcome::Clean;
    let files =
        layout.files.iter().filter_map(|file| Some((&file.path, file.tensors.as_ref()?.as_ref().err()?)));
    let checkpoints = layout.checkpoints.iter().filter_map(|c| Some((&c.path, c.contents.as_ref().err()?)));
    let shown = |path: &[u8]| scopes.iter().any(|scope| scope.holds(path));
    for (path, error) in files.chain(checkpoints).filter(|(path, _)| shown(path)) {
        let path = escape(path);
        report_error(&if error.contains(&path) { anyhow!("{error}") } else { anyhow!("{path}: {error}") });
        outcome = Outcome::Failed;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_end_at_component_boundaries() {
        let scope = |path: &[u8], directory| Scope { path: path.to_vec(), directory };
        assert!(scope(b"/", true).holds(b"/a/b"));
        assert!(scope(b"/a", true).holds(b"/a/b"));
        assert!(!scope(b"/a", true).holds(b"/ab"));
        assert!(scope(b"/a/b", false).holds(b"/a/b"));
        assert!(!scope(b"/a/b", false).holds(b"/a/b/c"));
    }
}
