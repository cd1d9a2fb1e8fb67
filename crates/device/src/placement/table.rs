//! Placements: the bytes of an image that one rank of a plan holds, and where.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::plan::Rule;
use super::{Plan, PlanError};
use crate::Result;
use crate::copy::segments::{Segment, Segments};
use crate::part::Part;
use daxfs::{Entry, File, FileType, Image, Piece, PieceSource, Tensor};

/// How names of safetensors files end.
const SUFFIX: &[u8] = b".safetensors";

/// Longest path of a file that a pattern can fit.
const PATH_MAX: usize = 4096;

/// A segment begins where its source does, modulo this: what packing aligns in the image is aligned on the
/// device, too.
pub const ALIGNMENT: u64 = 256;

/// What one rank of a plan holds of an image: byte ranges of it, packed one after the other. Made by [`Plan::place`],
/// without a device. It holds the image; cloning is cheap.
#[derive(Debug, Clone)]
pub struct Placement(Arc<Table>);

#[derive(Debug)]
struct Table {
    image: Image,
    plan: Plan,
    rank: usize,
    /// First the contiguous ones, in the order of the image, then the gathered ones, in their own.
    segments: Segments,
    contiguous: usize,
    /// The safetensors files, each once.
    checkpoints: Vec<File>,
    files: u64,
    unused: Vec<usize>,
    identity: [u8; 32],
}

/// What a rank has of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assigned {
    /// Nothing.
    Nothing,
    /// All of it.
    Whole,
    /// A range of one dimension.
    Part {
        /// The dimension, from 0.
        dim: usize,
        /// The indices.
        range: Range<u64>,
        /// How its bytes lie.
        layout: PartLayout,
    },
}

/// How the bytes of a part lie in the rank's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartLayout {
    /// One after the other, as in the image; only they are held.
    Contiguous,
    /// One after the other, copied together run by run; only they are held.
    Gathered,
    /// With the other ranks' in between: the whole tensor is held.
    Strided,
}

/// How a rule applies to one tensor.
struct Applied {
    dim: usize,
    range: Range<u64>,
    layout: PartLayout,
    part: Part,
}

impl Plan {
    /// What rank `rank` holds of an image. Takes time and memory linear in the number of names in the image, but for
    /// sorting; nothing is read but metadata.
    ///
    /// # Errors
    /// [`PlanError`], as [`crate::Error::Plan`], and what is wrong with a header of the image.
    pub fn place(&self, image: &Image, rank: usize) -> Result<Placement> {
        if rank >= self.ranks() {
            return Err(PlanError::NoSuchRank { rank, ranks: self.ranks() }.into());
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut gathered = Vec::new();
        let mut used = HashSet::new();
        let names = Names::of(image)?;
        for file in &names.checkpoints {
            for tensor in file.tensors()?.iter() {
                let tensor = tensor?;
                let rule = self.rule_for_tensor(tensor.name());
                used.extend(rule.map(|(number, _)| number));
                // A tensor that cannot be split is refused for all ranks, not only for those that would have a part.
                let applied = rule.map(|rule| apply(&tensor, rule, rank)).transpose()?.flatten();
                if rule.is_some_and(|(_, rule)| !rule.names(rank)) {
                    continue;
                }
                let start = |within: u64| Ok::<_, PlanError>(extent(file)?.start + tensor.offset() + within);
                match applied {
                    _ if tensor.nbytes() == 0 => {}
                    None => ranges.push(start(0)?..start(tensor.nbytes())?),
                    Some(Applied { part, .. }) if part.run == 0 => {}
                    Some(Applied { part, layout: PartLayout::Contiguous, .. }) => {
                        ranges.push(start(part.start)?..start(part.start + part.run)?);
                    }
                    Some(Applied { layout: PartLayout::Strided, .. }) => {
                        ranges.push(start(0)?..start(tensor.nbytes())?);
                    }
                    Some(Applied { part, layout: PartLayout::Gathered, .. }) => {
                        gathered.push(segment(start(part.start)?, &part));
                    }
                }
            }
        }
        let mut files = HashSet::new();
        for (file, entry) in &names.others {
            let Some(path) = short_path(entry) else { continue };
            let Some((number, rule)) = self.rule_for_file(&path) else { continue };
            used.insert(number);
            if rule.names(rank) && files.insert(file.ino()) && !file.is_empty() {
                ranges.push(extent(file)?);
            }
        }
        gathered.sort_unstable();
        gathered.dedup();
        let bytes = gathered.iter().map(Segment::len).fold(0, u64::saturating_add);
        let bound = image.superblock().total_size;
        if bytes > bound {
            return Err(PlanError::TooMuch { rank, bytes, bound }.into());
        }
        let mut list = contiguous(ranges);
        let contiguous = list.len();
        list.extend(gathered);
        pack(&mut list);
        Ok(Placement(Arc::new(Table {
            image: image.clone(),
            plan: self.clone(),
            rank,
            identity: identity(&list),
            segments: Segments::new(list),
            contiguous,
            checkpoints: names.checkpoints,
            files: files.len() as u64,
            unused: (0..self.patterns().count()).filter(|number| !used.contains(number)).collect(),
        })))
    }
}

/// What a rule makes of a tensor for one rank, if it splits.
fn apply(tensor: &Tensor, (number, rule): (usize, &Rule), rank: usize) -> Result<Option<Applied>, PlanError> {
    let Some(split) = rule.split() else { return Ok(None) };
    let dim = split.dim;
    let refuse = |why| PlanError::NotSplit {
        tensor: tensor.name().into(),
        shape: tensor.shape().to_vec(),
        rule: number + 1,
        dim,
        ways: rule.ways(),
        why,
    };
    let size = *tensor.shape().get(dim).ok_or_else(|| refuse("there is no such dimension"))?;
    let does_not_divide = "its size is no multiple of that; \"uneven\": true gives the last ones less";
    let range = |rank| rule.range(split, size, rank).ok_or_else(|| refuse(does_not_divide));
    // A rank may have nothing of a tensor that cannot be cut. All parts begin at multiples of the first one's size, so
    // where that ends with a byte, all of them do.
    if let Some(first) = rule.first() {
        Part::of(tensor, dim, &range(first)?).map_err(refuse)?;
    }
    let range = range(rank)?;
    let part = Part::of(tensor, dim, &range).map_err(refuse)?;
    let layout = match part.count {
        1 => PartLayout::Contiguous,
        _ if split.gather => PartLayout::Gathered,
        _ => PartLayout::Strided,
    };
    Ok(Some(Applied { dim, range, layout, part }))
}

impl Placement {
    /// The image.
    pub fn image(&self) -> &Image {
        &self.0.image
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// Bytes of memory that it takes on the device, before the driver rounds them up.
    pub fn len(&self) -> u64 {
        self.0.segments.len()
    }

    /// True when the rank holds nothing of the image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells this table of bytes from others: a BLAKE3 hash of the ranges and of where they lie. Copies of one image by
    /// placements of one identity are the same, whatever the plans are called.
    pub fn identity(&self) -> [u8; 32] {
        self.0.identity
    }

    /// Files without tensors that the rank holds.
    pub fn files(&self) -> u64 {
        self.0.files
    }

    /// Numbers of the plan's rules, from 0, that decide nothing in this image: misspelt, or behind others.
    pub fn unused_rules(&self) -> &[usize] {
        &self.0.unused
    }

    /// All tensors of the image with what the rank has of them, file by file. A tensor of a header that was checked is
    /// there; for others see the errors of [`Plan::place`].
    pub fn tensors(&self) -> impl Iterator<Item = Result<(Tensor, Assigned)>> {
        let tensors = |file: &File| -> Result<Vec<_>> {
            let with = |tensor: daxfs::Result<Tensor>| {
                let tensor = tensor?;
                Ok((tensor.clone(), self.assigned(&tensor)?))
            };
            file.tensors()?.iter().map(with).collect()
        };
        self.0.checkpoints.iter().flat_map(move |file| match tensors(file) {
            Ok(list) => list.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// What the rank has of a tensor.
    ///
    /// # Errors
    /// [`PlanError::NotSplit`] for a tensor that cannot be cut as the plan says, which those of the image can.
    pub fn assigned(&self, tensor: &Tensor) -> Result<Assigned> {
        let (plan, rank) = (self.plan(), self.rank());
        match plan.rule_for_tensor(tensor.name()) {
            None => Ok(Assigned::Whole),
            Some((_, rule)) if !rule.names(rank) => Ok(Assigned::Nothing),
            Some(rule) => Ok(match apply(tensor, rule, rank)? {
                None => Assigned::Whole,
                Some(Applied { dim, range, layout, .. }) => Assigned::Part { dim, range, layout },
            }),
        }
    }

    pub(crate) fn segments(&self) -> &Segments {
        &self.0.segments
    }

    /// Where `offset..offset + len` of the image's region lies in the rank's memory, if it does, and in one place.
    pub(crate) fn find(&self, offset: u64, len: u64) -> Option<u64> {
        let list = self.0.segments.as_slice().get(..self.0.contiguous)?;
        let behind = list.partition_point(|segment| segment.from <= offset);
        let segment = list.get(behind.checked_sub(1)?)?;
        let skip = offset - segment.from;
        (skip.checked_add(len)? <= segment.run).then_some(segment.to + skip)
    }

    /// The file that the byte `at` of the rank's memory is of, by its path.
    pub(crate) fn path_at(&self, at: u64) -> Option<Vec<u8>> {
        let list = self.0.segments.as_slice();
        let segment = list.get(list.partition_point(|segment| segment.end() <= at))?;
        let skip = at.checked_sub(segment.to)?;
        let from = segment.from + skip / segment.run * segment.step + skip % segment.run;
        let mut files = self.image().walk().filter_map(|entry| entry.file().ok());
        files.find(|file| extent(file).is_ok_and(|extent| extent.contains(&from))).map(|file| file.path())
    }

    /// Where the gathered part of a tensor lies in the rank's memory.
    pub(crate) fn find_gathered(&self, tensor: &Tensor, part: &Part) -> Option<u64> {
        let wanted = segment(extent(tensor.file()).ok()?.start + tensor.offset() + part.start, part);
        let list = self.0.segments.as_slice().get(self.0.contiguous..)?;
        let key = |segment: &Segment| (segment.from, segment.run, segment.count, segment.step);
        list.binary_search_by_key(&key(&wanted), key).ok().map(|at| list[at].to)
    }
}

/// The names of an image that a plan speaks of.
struct Names {
    /// Files whose tensors are placed, each once, whatever its names and the links to it.
    checkpoints: Vec<File>,
    /// All others, under each of their names.
    others: Vec<(File, Entry)>,
}

impl Names {
    fn of(image: &Image) -> Result<Self> {
        // A link stands for the file that it leads to: in caches of model hubs all names are links.
        let target = |entry: Entry| match entry.file_type() {
            FileType::Symlink => image.entry(short_path(&entry)?).ok()?.file().ok().map(|file| (file, entry)),
            _ => entry.file().ok().map(|file| (file, entry)),
        };
        let all: Vec<(File, Entry)> = image.walk().filter_map(target).collect();
        let mut checkpoints: HashMap<u64, File> = HashMap::new();
        for (file, entry) in &all {
            if entry.name().ends_with(SUFFIX) {
                checkpoints.entry(file.ino()).or_insert_with(|| file.clone());
            }
        }
        let others = all.into_iter().filter(|(file, _)| !checkpoints.contains_key(&file.ino()));
        let others = others.collect();
        let mut checkpoints: Vec<File> = checkpoints.into_values().collect();
        checkpoints.sort_unstable_by_key(File::ino);
        Ok(Self { checkpoints, others })
    }
}

/// The path, if it is no longer than a path may be: in a tree that is made to be deep the paths together are far longer
/// than the image.
fn short_path(entry: &Entry) -> Option<Vec<u8>> {
    let (mut names, mut len) = (Vec::new(), 0);
    let mut above = Some(entry.clone());
    while let Some(entry) = above.filter(|entry| !entry.name().is_empty()) {
        len += 1 + entry.name().len();
        if len > PATH_MAX {
            return None;
        }
        above = entry.parent();
        names.push(entry);
    }
    let mut path = Vec::with_capacity(len);
    for entry in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(entry.name());
    }
    Some(path)
}

/// The file's bytes in the image's region.
fn extent(file: &File) -> Result<Range<u64>, PlanError> {
    let why = match file.pieces().as_deref() {
        Ok(_) if file.is_changed() => "it was changed after packing and lies in pieces",
        Ok([]) => return Ok(0..0),
        Ok([Piece { source: PieceSource::Image(at), len, .. }]) => return Ok(*at..at + len),
        Ok([Piece { source: PieceSource::Backing(_), .. }]) => "it lies in a backing file",
        Ok(_) => "it lies in pieces",
        Err(_) => "its contents are not in the image",
    };
    Err(PlanError::NotInOnePlace { path: file.path(), why })
}

/// Not packed yet.
fn segment(from: u64, part: &Part) -> Segment {
    Segment { from, run: part.run, count: part.count, step: part.step, to: 0 }
}

/// The bytes of all ranges, each once, in order.
fn contiguous(mut ranges: Vec<Range<u64>>) -> Vec<Segment> {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut list: Vec<Segment> = Vec::new();
    for range in ranges {
        match list.last_mut() {
            Some(last) if range.start <= last.source_end() => {
                last.run = last.run.max(range.end - last.from);
            }
            _ => {
                let run = range.end - range.start;
                list.push(Segment { from: range.start, run, count: 1, step: 0, to: 0 });
            }
        }
    }
    list
}

/// Gives each segment its place behind the one before. The numbers stay below the sum of the image's size, twice, and
/// of a gap for each segment, so none exceeds 64 bits.
fn pack(list: &mut [Segment]) {
    let mut end: u64 = 0;
    for segment in list {
        // Gathered bytes begin at a multiple: they lie as nowhere in the image.
        let wanted = if segment.count == 1 { segment.from % ALIGNMENT } else { 0 };
        segment.to = end + (wanted + ALIGNMENT - end % ALIGNMENT) % ALIGNMENT;
        end = segment.end();
    }
}

fn identity(list: &[Segment]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"daxfs placement 1\0");
    for segment in list {
        for number in [segment.from, segment.run, segment.count, segment.step, segment.to] {
            hasher.update(&number.to_le_bytes());
        }
    }
    hasher.finalize().into()
}
