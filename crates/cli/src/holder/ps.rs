//! `daxfs ps`: the images of a holder, and the processes that have them.

use super::duration;
use crate::args::PsArgs;
use crate::json;
use crate::output::{Outcome, Output};
use crate::text::{Side, Table, alignment, count, escape_message, hex, human};
use daxfs_holder::users::{self, User};
use daxfs_protocol::message::{DeviceCopy, ImageInfo};
use daxfs_protocol::{Address, Attachment, Connection};
use serde::Serialize;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An image in JSON.
#[derive(Debug, Serialize)]
pub struct ImageJson {
    name: String,
    generation: u64,
    size: u64,
    memory: &'static str,
    /// `null` when it is not known.
    page_size: Option<u64>,
    content_hash: Option<String>,
    /// UUID of the device that has the memory; `null` for host memory.
    device: Option<String>,
    /// Copies in the memory of devices, or in host memory for them.
    copies: Vec<CopyJson>,
    /// Seconds since 1970.
    loaded: u64,
    attaches: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    holders: Option<Vec<UserJson>>,
    /// Processes that this user may not look into.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<usize>,
}

#[derive(Debug, Serialize)]
struct CopyJson {
    /// UUID; `null` for host memory.
    device: Option<String>,
    /// Identity of the placement that it was copied by; `null` for one of the whole image.
    placement: Option<String>,
    size: u64,
}

#[derive(Debug, Serialize)]
struct UserJson {
    pid: u32,
    command: String,
    descriptors: u32,
    mapped: bool,
}

/// Processes that have an image, and how many could not be looked into.
type Users = (Vec<User>, usize);

impl ImageJson {
    /// Of what the holder says, and of who has it, if that was asked for.
    pub fn new(info: &ImageInfo, users: Option<&Users>) -> Self {
        let user = |user: &User| UserJson {
            pid: user.pid,
            command: user.command.clone(),
            descriptors: user.descriptors,
            mapped: user.mapped,
        };
        Self {
            name: info.name.clone(),
            generation: info.generation,
            size: info.size,
            memory: info.kind.name(),
            page_size: Some(info.page_size).filter(|&size| size > 0),
            content_hash: info.content_hash.map(|hash| hash.to_string()),
            device: (!info.device.is_host()).then(|| info.device.to_string()),
            copies: info
                .copies
                .iter()
                .map(|copy| CopyJson {
                    device: (!copy.is_on_host()).then(|| copy.device.to_string()),
                    placement: (!copy.is_whole()).then(|| hex(&copy.placement)),
                    size: copy.size,
                })
                .collect(),
            loaded: info.loaded,
            attaches: info.attaches,
            holders: users.map(|(users, _)| users.iter().map(user).collect()),
            hidden: users.map(|(_, hidden)| *hidden),
        }
    }
}

#[derive(Debug, Serialize)]
struct Listing {
    images: Vec<ImageJson>,
}

/// Lists the images.
///
/// # Errors
/// When no holder answers.
pub fn run(args: &PsArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let socket = args.socket.path();
    let images = Connection::open(&socket)?.list()?;
    let mut all = Vec::new();
    for info in images {
        let users = args.holders.then(|| users_of(&socket, &info)).transpose()?;
        all.push((info, users));
    }
    if args.json {
        let images = all.iter().map(|(info, users)| ImageJson::new(info, users.as_ref())).collect();
        json::write(out, &Listing { images })?;
        return Ok(Outcome::Clean);
    }
    table(&all).write(out, 0)?;
    for (info, users) in &all {
        let Some((users, hidden)) = users else { continue };
        writeln!(out, "\n{}:", info.name)?;
        for user in users {
            let mapped = if user.mapped { ", mapped" } else { "" };
            let command = escape_message(&user.command);
            let descriptors = count(user.descriptors.into(), "descriptor", "descriptors");
            writeln!(out, "  {} {command}: {descriptors}{mapped}", user.pid)?;
        }
        if *hidden > 0 {
            let hidden = count(*hidden as u64, "process", "processes");
            writeln!(out, "  {hidden} cannot be looked into")?;
        }
    }
    Ok(Outcome::Clean)
}

fn table(all: &[(ImageInfo, Option<Users>)]) -> Table<9> {
    use Side::{Left, Right};
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut table = Table::new([Left, Right, Right, Left, Right, Left, Right, Right, Right]);
    let head = ["NAME", "GEN", "SIZE", "MEMORY", "PAGES", "CONTENT", "AGE", "ATTACHES", "COPIES"];
    table.row(head.map(str::to_owned));
    for (info, _) in all {
        table.row([
            info.name.clone(),
            info.generation.to_string(),
            human(info.size),
            info.kind.name().to_owned(),
            if info.page_size == 0 { "-".to_owned() } else { alignment(info.page_size) },
            content(info),
            duration(now.saturating_sub(info.loaded)),
            info.attaches.to_string(),
            copies(info),
        ]);
    }
    table
}

/// How many copies there are: on devices of the whole image, and by plans and in host memory, where there are any.
fn copies(info: &ImageInfo) -> String {
    let count = |what: fn(&DeviceCopy) -> bool| info.copies.iter().filter(|copy| what(copy)).count();
    let mut text = count(|copy| !copy.is_on_host() && copy.is_whole()).to_string();
    let placed = count(|copy| !copy.is_on_host() && !copy.is_whole());
    let on_host = count(DeviceCopy::is_on_host);
    for (count, what) in [(placed, "placed"), (on_host, "in host memory")] {
        if count > 0 {
            text += &format!(" + {count} {what}");
        }
    }
    text
}

/// The beginning of the content hash, as much as people compare.
pub fn content(info: &ImageInfo) -> String {
    info.content_hash.map_or_else(|| "-".to_owned(), |hash| hash.to_string().chars().take(19).collect())
}

/// Processes that have the image, besides this one. Only its memory tells, so it is attached for the moment; an image
/// that was dropped or swapped meanwhile has the users of what is there now.
fn users_of(socket: &Path, info: &ImageInfo) -> anyhow::Result<Users> {
    let address = Address { socket: socket.to_owned(), name: info.name.clone() };
    let fd = match Attachment::new(address, None) {
        Ok((_, fd)) => fd,
        Err(error) if error.is_not_found() => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error.into()),
    };
    let memory = dmabuf::describe(fd.as_fd())?;
    let (mut users, hidden) = users::of(memory.dev, memory.ino);
    users.retain(|user| user.pid != std::process::id());
    Ok((users, hidden))
}
