//! Copies on GPUs: the verb `upload`, and how GPUs are named.

use super::socket::{SocketArgs, parse_name};
use clap::Args;
use daxfs_device::DeviceName;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Arguments of `daxfs upload`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  daxfs upload llama cuda:0\n  daxfs upload llama cuda:1 --verify\n  \
    daxfs upload llama cuda:all\n  daxfs upload llama cuda-host:0\n  \
    daxfs upload llama --place plan.json --ranks cuda:2,cuda:3")]
pub struct UploadArgs {
    /// Name of the image
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The GPU: cuda:N, counted from 0 among those that this process may see, or cuda:all for a copy on each; or
    /// cuda-host:N for one in host memory, on the NUMA node of that GPU, which all GPUs read in place
    #[arg(default_value = "cuda:0", conflicts_with = "place")]
    pub device: Gpu,
    /// Copy what this plan, a JSON file, gives each of its ranks
    #[arg(long, value_name = "PLAN")]
    pub place: Option<PathBuf>,
    /// GPUs of the plan's ranks, in order; by default cuda:0, cuda:1, ...
    #[arg(long, value_name = "cuda:N,...", value_delimiter = ',', requires = "place", value_parser = parse_gpu)]
    pub ranks: Vec<usize>,
    /// The holder.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// No progress bar and no summary
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON: {"name": ..., "generation": ..., "size": ..., "copies": [{"device": ..., "device_name": ...,
    /// "uuid": ..., "rank": ..., "size": ..., "copied": ...}]}; "uuid" is null for host memory
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// A GPU by its number, or all of them, or the host memory beside one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gpu {
    /// That one.
    One(usize),
    /// All that the process may see.
    All,
    /// Memory of the host's, on the node of that one.
    Host(usize),
}

impl FromStr for Gpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let gpu = match text {
            "cuda:all" => Some(Self::All),
            "cuda-host:all" => {
                return Err("one copy in host memory serves all GPUs: give it as cuda-host:N".to_owned());
            }
            _ => cuda(text).map(|name| {
                if name.is_host() { Self::Host(name.number()) } else { Self::One(name.number()) }
            }),
        };
        gpu.ok_or_else(|| "expected cuda:N, such as cuda:0, cuda:all, or cuda-host:N".to_owned())
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(number) => write!(f, "cuda:{number}"),
            Self::All => f.write_str("cuda:all"),
            Self::Host(number) => write!(f, "cuda-host:{number}"),
        }
    }
}

/// Reads one GPU.
pub(super) fn parse_gpu(text: &str) -> Result<usize, String> {
    match cuda(text) {
        Some(name) if name.is_host() => {
            Err("a rank's part is copied to a GPU's own memory: cuda:N".to_owned())
        }
        Some(name) => Ok(name.number()),
        None => Err("expected cuda:N, such as cuda:0".to_owned()),
    }
}

/// The name of a GPU, or of host memory beside one: devices of other families have no memory that is shared.
fn cuda(text: &str) -> Option<DeviceName> {
    text.parse().ok().filter(|name: &DeviceName| name.family() == "cuda")
}
