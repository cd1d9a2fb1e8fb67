//! One side of the tests with two kernels (`tests/kernel/two.py`): it reads commands from standard input, one JSON
//! object a line, and answers each on standard output. It runs in both guests and on the machine that boots them.
//!
//! Every command runs in a thread of its own, so an image can be read and replaced at the same time. An answer carries
//! the number of its command: `{"id": 3, "ok": ...}` or `{"id": 3, "error": "..."}`.

#![allow(clippy::print_stdout, reason = "a command line program")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use daxfs::{FileType, Image, Source};
use dmabuf::Mapping;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Deserialize)]
struct Request {
    id: u64,
    #[serde(flatten)]
    task: Task,
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Task {
    /// Hashes of the files below a folder, without any of our own code.
    HashTree { folder: PathBuf },
    /// Opens an image for the commands below.
    Open { source: String },
    /// What the open image holds: every byte is read.
    Report,
    /// Reads the image again and again, until one of this generation has been seen.
    Watch { until: u64 },
    /// Whether the open image is still the one that its source means.
    IsCurrent,
    /// Tries to write to the open image's memory in the ways that a reader has.
    WriteAsReader,
    /// Writes eight bytes at `offset` of a source, opened for writing; answers what is there then.
    Store { source: String, offset: u64, value: u64 },
    /// Eight bytes of the open image's region.
    Load { offset: u64 },
    /// Runs a command to its end.
    Run { command: Vec<String> },
}

/// What an image holds, by name. Equal reports mean equal contents.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    generation: u64,
    content_hash: Option<String>,
    /// BLAKE3 of each file but those that the packer added.
    files: BTreeMap<String, String>,
    /// Data type, shape, and BLAKE3 of the bytes.
    tensors: BTreeMap<String, (String, Vec<u64>, String)>,
}

/// The image that `open` opened, and its source.
type Opened = Arc<Mutex<Option<(String, Image)>>>;

fn main() {
    let opened = Opened::default();
    for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        if line == "end" {
            break;
        }
        let request: Request = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => {
                answer(&json!({ "id": 0, "error": format!("{line}: {error}") }));
                continue;
            }
        };
        let opened = Arc::clone(&opened);
        thread::spawn(move || {
            let id = request.id;
            answer(&match perform(request.task, &opened) {
                Ok(value) => json!({ "id": id, "ok": value }),
                Err(error) => json!({ "id": id, "error": error.to_string() }),
            });
        });
    }
}

/// One line at once: threads must not mix theirs.
fn answer(value: &Value) {
    let line = format!("{value}\n");
    let mut output = std::io::stdout().lock();
    // Nobody is left to tell when the other end is gone.
    let _ = output.write_all(line.as_bytes()).and_then(|()| output.flush());
}

fn perform(task: Task, opened: &Opened) -> Result<Value> {
    match task {
        Task::HashTree { folder } => {
            let mut hashes = BTreeMap::new();
            hash_tree(&folder, "", &mut hashes)?;
            Ok(json!(hashes))
        }
        Task::Open { source } => {
            let image = Image::open(&source)?;
            let region = image.region();
            let (provenance, class) = (region.provenance().to_string(), region.class().name());
            let answer = json!({ "len": region.len(), "provenance": provenance, "class": class });
            *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some((source, image));
            Ok(answer)
        }
        Task::Report => Ok(json!(report(&current(opened)?.1)?)),
        Task::Watch { until } => watch(opened, until),
        Task::IsCurrent => Ok(json!(current(opened)?.1.is_current()?)),
        Task::WriteAsReader => write_as_reader(&current(opened)?.1),
        Task::Store { source, offset, value } => store(&source, offset, value),
        Task::Load { offset } => {
            let mut word = [0; 8];
            current(opened)?.1.region().view().read_at(offset, &mut word)?;
            Ok(json!(u64::from_le_bytes(word)))
        }
        Task::Run { command } => run(&command),
    }
}

fn current(opened: &Opened) -> Result<(String, Image)> {
    opened.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| "no image is open".into())
}

fn hash_tree(folder: &Path, prefix: &str, hashes: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            hash_tree(&entry.path(), &name, hashes)?;
        } else if kind.is_file() {
            hashes.insert(name, blake3::hash(&fs::read(entry.path())?).to_hex().to_string());
        }
    }
    Ok(())
}

fn report(image: &Image) -> Result<Report> {
    let mut files = BTreeMap::new();
    for entry in image.walk() {
        let path = String::from_utf8_lossy(&entry.path()).into_owned();
        if entry.file_type() == FileType::File && !path.starts_with("/.daxfs/") {
            files.insert(path, hex(entry.file()?.hash()?));
        }
    }
    let mut tensors = BTreeMap::new();
    let all = image.tensors()?;
    for name in all.names() {
        let name = name?;
        let tensor = all.get(&name)?;
        let hash = blake3::hash(&tensor.bytes()?.to_vec());
        let value = (tensor.dtype().name().to_owned(), tensor.shape().to_vec(), hash.to_hex().to_string());
        tensors.insert(name, value);
    }
    Ok(Report {
        generation: image.generation(),
        content_hash: image.content_hash().map(|hash| hash.digits().to_string()),
        files,
        tensors,
    })
}

fn hex(hash: [u8; 32]) -> String {
    blake3::Hash::from_bytes(hash).to_hex().to_string()
}

/// Reads all of the image, and only then asks whether it is still the current one: what was read before an answer of
/// yes must be one whole image, which the caller checks. After a no it is refreshed.
///
/// Answers with every different report that passed for valid, in the order in which they were seen; whether the image
/// that was open at first has kept its bytes; and how often something was read that did not pass.
fn watch(opened: &Opened, until: u64) -> Result<Value> {
    let (source, first) = current(opened)?;
    let before = report(&first);
    let mut image = first.clone();
    let mut seen: Vec<Report> = Vec::new();
    let (mut outdated, mut unreadable) = (0u64, 0u64);
    loop {
        // What is being replaced may be refused by the reader.
        let result = report(&image);
        if image.is_current()? {
            let report = result?;
            if seen.last() != Some(&report) {
                seen.push(report);
            }
            if image.generation() >= until {
                break;
            }
            continue;
        }
        outdated += 1;
        image = loop {
            match image.refresh() {
                Ok(Some(image)) => break image,
                Ok(None) => return Err("an image that was outdated is current".into()),
                Err(_) => unreadable += 1,
            }
        };
    }
    let kept = matches!((before, report(&first)), (Ok(before), Ok(after)) if before == after);
    let first_is_current = first.is_current()?;
    *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some((source, image));
    Ok(json!({
        "seen": seen, "outdated": outdated, "unreadable": unreadable, "kept": kept, "first_is_current": first_is_current
    }))
}

/// Every way must be refused, and the bytes stay what they are.
fn write_as_reader(image: &Image) -> Result<Value> {
    let region = image.region();
    let fd = region.fd().ok_or("a region without a descriptor")?;
    let mut before = [0; 16];
    region.view().read_at(0, &mut before)?;
    let mut allowed = Vec::new();
    if Mapping::read_write(fd, region.offset(), 4096).is_ok() {
        allowed.push("a writable mapping of the reader's descriptor");
    }
    if fs::File::from(fd.as_fd().try_clone_to_owned()?).write_at(&[0xff; 16], 0).is_ok() {
        allowed.push("write(2) to the reader's descriptor");
    }
    // As a debugger writes: past the protection of the page, but not past that of the mapping.
    let memory = fs::OpenOptions::new().write(true).open("/proc/self/mem")?;
    if memory.write_at(&[0xff; 16], region.view().as_ptr().addr() as u64).is_ok() {
        allowed.push("a write to the reader's mapping");
    }
    let mut after = [0; 16];
    region.view().read_at(0, &mut after)?;
    Ok(json!({ "allowed": allowed, "changed": before != after }))
}

fn store(source: &str, offset: u64, value: u64) -> Result<Value> {
    let opened = Source::parse(source.as_ref())?.open(true, None)?;
    let mut mapping = Mapping::read_write(opened.fd.as_fd(), opened.part.offset + offset, 8)?;
    mapping.view_mut()?.copy_from(0, &value.to_le_bytes())?;
    let mut word = [0; 8];
    mapping.view().read_at(0, &mut word)?;
    Ok(json!(u64::from_le_bytes(word)))
}

fn run(command: &[String]) -> Result<Value> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(json!({ "status": done.status.code(), "stdout": text(&done.stdout), "stderr": text(&done.stderr) }))
}
