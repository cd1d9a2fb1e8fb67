//! One of several processes that use the same image at the same time.
//!
//! It says `ready`, waits for a line on standard input, opens the image and touches every page of every file, prints
//! its times, and stays, mapping and all, until standard input ends, so that its memory can be looked at.

use crate::rounds::touch;
use crate::{image_source, print};
use anyhow::{Context, Result};
use daxfs::{FileType, Image};
use serde_json::json;
use std::io::{self, BufRead, Read, Write};
use std::time::Instant;

pub(crate) fn run() -> Result<()> {
    let source = image_source()?;
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    let mut input = io::stdin().lock();
    input.read_line(&mut String::new()).context("standard input")?;

    let started = Instant::now();
    let image = Image::open(source)?;
    let opened = started.elapsed().as_secs_f64();
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        touch(entry.file()?.as_slice()?);
    }
    print(&json!({ "open": opened, "touched": started.elapsed().as_secs_f64() }))?;
    input.read_to_end(&mut Vec::new())?;
    drop(image);
    Ok(())
}
