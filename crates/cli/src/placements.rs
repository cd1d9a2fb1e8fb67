//! `daxfs place`: what a placement plan gives each rank of an image. No GPU is needed.

use crate::args::PlaceArgs;
use crate::json;
use crate::output::{Outcome, Output};
use crate::text::{Side, Table, escape_message, hex, human};
use anyhow::{Context, ensure};
use daxfs::Image;
use daxfs_device::placement::{Assigned, PartLayout};
use daxfs_device::{Placement, Plan};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// Reads a plan.
///
/// # Errors
/// When the file cannot be read or holds no plan.
pub fn read(path: &Path) -> anyhow::Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Plan::parse(&text).with_context(|| path.display().to_string())
}

/// What each rank has, in order.
///
/// # Errors
/// When the plan does not fit the image.
pub fn of_all_ranks(plan: &Plan, image: &Image) -> anyhow::Result<Vec<Placement>> {
    (0..plan.ranks()).map(|rank| Ok(plan.place(image, rank)?)).collect()
}

/// Numbers of the ranks' GPUs: those that were given, or as the ranks.
///
/// # Errors
/// When there are not as many as ranks.
pub fn gpus(plan: &Plan, given: &[usize]) -> anyhow::Result<Vec<usize>> {
    let (ranks, count) = (plan.ranks(), given.len());
    ensure!(given.is_empty() || count == ranks, "--ranks names {count} GPUs, and the plan has {ranks} ranks");
    Ok(if given.is_empty() { (0..ranks).collect() } else { given.to_vec() })
}

#[derive(Debug, Serialize)]
struct PlacedJson<'a> {
    /// Bytes of the image.
    size: u64,
    ranks: Vec<RankJson>,
    strided: Vec<StridedJson>,
    /// Patterns of rules that decide nothing.
    unused_rules: Vec<&'a str>,
}

#[derive(Debug, Default, Serialize)]
struct RankJson {
    rank: usize,
    size: u64,
    /// Tells what the rank has from what others have, as `daxfs ps --json` shows it.
    placement: String,
    whole: u64,
    contiguous: u64,
    gathered: u64,
    strided: u64,
    files: u64,
}

/// A tensor of which ranks have views with gaps, and so all of it.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct StridedJson {
    tensor: String,
    file: String,
    shape: Vec<u64>,
    dim: usize,
    size: u64,
}

/// Shows what each rank has.
///
/// # Errors
/// When the plan cannot be read, or does not fit the image.
pub fn run(image: &Image, args: &PlaceArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let plan = read(&args.plan)?;
    let (mut ranks, mut strided, mut unused) = (Vec::new(), Vec::new(), Vec::new());
    for placement in of_all_ranks(&plan, image)? {
        // Each rank whose part has gaps has the same tensors of them, but for ranks that a rule leaves out.
        let (rank, found) = look(&placement)?;
        strided.extend(found);
        ranks.push(rank);
        let used = |number: usize| !placement.unused_rules().contains(&number);
        unused =
            plan.patterns().enumerate().filter(|(number, _)| !used(*number)).map(|(_, text)| text).collect();
    }
    strided.sort_by(|one, other| (&one.file, &one.tensor).cmp(&(&other.file, &other.tensor)));
    strided.dedup();
    if args.json {
        let size = image.superblock().total_size;
        json::write(out, &PlacedJson { size, ranks, strided, unused_rules: unused })?;
        return Ok(Outcome::Clean);
    }
    table(&ranks).write(out, 0)?;
    if !strided.is_empty() {
        writeln!(
            out,
            "\nSTRIDED parts have gaps, so these ranks hold the whole tensor (\"gather\": true copies them):"
        )?;
        for StridedJson { tensor, shape, dim, size, .. } in &strided {
            let name = escape_message(tensor);
            writeln!(out, "  {name}: dimension {dim} of {shape:?}, {}", human(*size))?;
        }
    }
    if !unused.is_empty() {
        writeln!(out, "\nRules that decide nothing in this image:")?;
        unused.iter().try_for_each(|text| writeln!(out, "  {}", escape_message(text)))?;
    }
    Ok(Outcome::Clean)
}

/// Counts what a rank has, and names the tensors of which it has views with gaps.
fn look(placement: &Placement) -> anyhow::Result<(RankJson, Vec<StridedJson>)> {
    let mut rank = RankJson {
        rank: placement.rank(),
        size: placement.len(),
        placement: hex(&placement.identity()),
        files: placement.files(),
        ..RankJson::default()
    };
    let mut strided = Vec::new();
    for pair in placement.tensors() {
        let (tensor, assigned) = pair?;
        match assigned {
            Assigned::Nothing => {}
            Assigned::Whole => rank.whole = rank.whole.saturating_add(1),
            Assigned::Part { layout: PartLayout::Contiguous, .. } => {
                rank.contiguous = rank.contiguous.saturating_add(1);
            }
            Assigned::Part { layout: PartLayout::Gathered, .. } => {
                rank.gathered = rank.gathered.saturating_add(1);
            }
            Assigned::Part { layout: PartLayout::Strided, dim, .. } => {
                rank.strided = rank.strided.saturating_add(1);
                strided.push(StridedJson {
                    tensor: tensor.name().to_owned(),
                    file: String::from_utf8_lossy(&tensor.file().path()).into_owned(),
                    shape: tensor.shape().to_vec(),
                    dim,
                    size: tensor.nbytes(),
                });
            }
        }
    }
    Ok((rank, strided))
}

fn table(ranks: &[RankJson]) -> Table<7> {
    let mut table = Table::new([Side::Right; 7]);
    table.row(["RANK", "SIZE", "WHOLE", "CONTIGUOUS", "GATHERED", "STRIDED", "FILES"].map(str::to_owned));
    for rank in ranks {
        let counts = [rank.whole, rank.contiguous, rank.gathered, rank.strided, rank.files];
        let [whole, contiguous, gathered, strided, files] = counts.map(|count| count.to_string());
        table.row([rank.rank.to_string(), human(rank.size), whole, contiguous, gathered, strided, files]);
    }
    table
}
