//! Several cases, timed in turns: whatever disturbs the machine for a while disturbs all of them.

use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes between two touches: every page of the smallest kind is reached.
const PAGE: usize = 4096;

/// How long to go on.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Limits {
    /// Rounds at most; each runs every case once.
    #[arg(long, default_value_t = 2000)]
    rounds: usize,

    /// Begin no further round after so many seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

/// A name and what to time. The closure times itself, so that setting up and dropping stay out.
pub(crate) type Case<'a> = (&'a str, Box<dyn FnMut() -> Result<Duration> + 'a>);

/// How long `work` takes; dropping its result is not counted.
pub(crate) fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let started = Instant::now();
    let result = black_box(work()?);
    let elapsed = started.elapsed();
    drop(result);
    Ok(elapsed)
}

/// Reads one byte of each page and returns a sum that keeps the compiler from leaving it out.
pub(crate) fn touch(bytes: &[u8]) -> u64 {
    black_box(bytes.iter().step_by(PAGE).map(|&byte| u64::from(byte)).sum())
}

/// Runs every case once unmeasured, then in turns, each round beginning with another one. Gives the seconds of all
/// runs by name.
pub(crate) fn interleave(cases: &mut [Case<'_>], limits: Limits) -> Result<Value> {
    interleave_apart(&mut [cases], limits)
}

/// As [`interleave`], one set of cases after the other, in an equal part of the seconds each.
pub(crate) fn interleave_apart(sets: &mut [&mut [Case<'_>]], limits: Limits) -> Result<Value> {
    let mut samples = BTreeMap::new();
    let limits = Limits { seconds: limits.seconds / sets.len().max(1) as f64, ..limits };
    for cases in sets {
        take_turns(cases, limits, &mut samples)?;
    }
    Ok(json!({ "seconds": samples }))
}

fn take_turns<'n>(
    cases: &mut [Case<'n>],
    limits: Limits,
    samples: &mut BTreeMap<&'n str, Vec<f64>>,
) -> Result<()> {
    for (_, case) in &mut *cases {
        case()?;
    }
    let started = Instant::now();
    let mut round = 0;
    while round < limits.rounds.max(1) && (round == 0 || started.elapsed().as_secs_f64() < limits.seconds) {
        cases.rotate_left(1);
        for (name, case) in &mut *cases {
            samples.entry(name).or_default().push(case()?.as_secs_f64());
        }
        round += 1;
    }
    Ok(())
}
