//! Taking images back from the supervisor that kept them while no holder lived.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use daxfs_protocol::message::Role;
use nix::sys::stat::fstat;

use crate::access::Access;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::limits::Budget;
use crate::signed;
use crate::socket::Listener;
use crate::stored::{Stored, StoredCopy, StoredKind, is_stored};
use crate::systemd::{Notify, Passed, SetAside, stored_access};
use crate::table::{Ready, Table};

/// Puts every stored image into the table and returns the listening socket, if one was passed.
///
/// # Errors
/// [`Error::Socket`] for a socket of another kind.
pub(crate) fn restore_all(
    passed: Vec<Passed>,
    table: &mut Table,
    budget: &Budget,
    notify: &mut Notify,
    config: &Config,
) -> Result<Option<Listener>> {
    let mut listener = None;
    let access = stored_access(&passed);
    // What they are copies of has to be there first.
    let is_copy = |passed: &Passed| StoredCopy::parse(&passed.name).is_some();
    let (copies, passed): (Vec<_>, Vec<_>) = passed.into_iter().partition(is_copy);
    let mut signatures = HashMap::new();
    // An image may be there more than once, where a load or a holder ended at the wrong moment.
    let mut images: HashMap<(u64, String), Vec<(StoredKind, OwnedFd)>> = HashMap::new();
    let mut others = Vec::new();
    for passed in passed {
        let Some(Stored { kind, generation, name }) = Stored::parse(&passed.name) else {
            others.push((passed, None));
            continue;
        };
        let key = (generation, name.to_owned());
        match kind {
            StoredKind::Signature => drop(signatures.insert(key, passed.fd)),
            StoredKind::Access | StoredKind::Listed => others.push((passed, None)),
            StoredKind::Open | StoredKind::Restricted => match images.entry(key) {
                Entry::Occupied(mut twins) => twins.get_mut().push((kind, passed.fd)),
                Entry::Vacant(first) => {
                    others.push((passed, Some(first.key().clone())));
                    first.insert(Vec::new());
                }
            },
        }
    }
    for (passed, image) in others {
        match (Stored::parse(&passed.name), image) {
            (Some(Stored { kind, .. }), Some(key)) => {
                let twins = images.remove(&key).unwrap_or_default();
                let is_restricted = twins.iter().any(|(kind, _)| *kind == StoredKind::Restricted)
                    || kind == StoredKind::Restricted;
                // Who may attach was stored before the image; without it only the holder's own user may.
                let access = match access.get(&key) {
                    Some(access) => access.clone(),
                    None if is_restricted => Access::nobody(),
                    None => Access::default(),
                };
                let twins = twins.into_iter().map(|(_, fd)| fd);
                let fds = std::iter::once(passed.fd).chain(twins).collect();
                let signature = signatures.remove(&key);
                restore(table, budget, notify, Restored { key, access, fds, signature }, config);
            }
            (Some(_), None) => {}
            (None, _) if is_stored(&passed.name) => {
                tracing::warn!(
                    stored = passed.name,
                    "another version's descriptor in the store, or a damaged name"
                );
                notify.forget_stored(&passed.name);
            }
            (None, _) => listener = Some(Listener::foreign(passed.fd, &config.socket)?),
        }
    }
    // Of images that are not there any more: a later one of that name must not get them.
    for (generation, name) in signatures.into_keys() {
        notify.forget_stored(&Stored { kind: StoredKind::Signature, generation, name: &name }.to_string());
    }
    for copy in copies {
        restore_copy(table, notify, copy, config.require_signed.is_some());
    }
    Ok(listener)
}

/// What is stored of an image.
struct Restored {
    /// Generation and name.
    key: (u64, String),
    access: Access,
    /// Its memory, as often as it was stored.
    fds: Vec<OwnedFd>,
    signature: Option<OwnedFd>,
}

/// Puts the copy of an image on a device beside it. Without the image of that generation it is of no use; with one that
/// was set aside it waits. Where images must be `signed` it is dropped: no signature says what lies on a device.
fn restore_copy(table: &mut Table, notify: &mut Notify, passed: Passed, signed: bool) {
    let Some(StoredCopy { copy, generation, name }) = StoredCopy::parse(&passed.name) else { return };
    if signed {
        tracing::warn!(name, generation, size = copy.size, "copy on a device dropped: nobody has signed it");
        notify.forget_copy(name, generation, &copy);
        return;
    }
    if table.get(name).is_some_and(|held| held.info.generation == generation) {
        table.keep(name, copy, Arc::new([passed.fd]));
        tracing::info!(name, generation, size = copy.size, "copy on a device found in the descriptor store");
    } else if let Some(image) = notify.aside_mut(name, generation) {
        image.copies.push(copy);
    } else {
        notify.forget_copy(name, generation, &copy);
    }
}

/// Takes an image back from the descriptor store. One that is not valid any more is left out, not fatal. One that
/// cannot be looked at for now (no descriptors, no memory) is left out as well, but stays stored for the next start,
/// unless its name is dropped or given to another image before. So does one that is not signed, where it must be: a
/// holder that does not require that finds it again.
fn restore(
    table: &mut Table,
    budget: &Budget,
    notify: &mut Notify,
    Restored { key: (generation, name), access, fds, signature }: Restored,
    config: &Config,
) {
    let name = name.as_str();
    let stored = fds.len() + usize::from(signature.is_some());
    let signature = signature.and_then(signed::cleaned);
    let look = |fd: OwnedFd| {
        let described = fd
            .try_clone()
            .map_err(|error| Error::system("duplicate the image's descriptor", error))
            .and_then(|fd| crate::load::describe(&daxfs::Image::from_fd(fd)?))
            .and_then(|info| {
                let text = signature.as_ref().map(|(text, _)| text.as_str());
                signed::check(config.require_signed.as_ref(), &info, text).map(|()| info)
            });
        (fd, described)
    };
    let mut looked: Vec<_> = fds.into_iter().map(look).collect();
    // The one that is an image; else what the next holder may find to be one.
    let best = looked.iter().position(|(_, described)| described.is_ok());
    let best =
        best.or_else(|| looked.iter().position(|(_, described)| described.as_ref().is_err_and(is_passing)));
    let (fd, described) = looked.swap_remove(best.unwrap_or(0));
    let newer = table.get(name).map_or(0, |held| held.info.generation);
    match described {
        Ok(mut info) if generation > newer => {
            info.name = name.to_owned();
            info.generation = generation;
            info.loaded = made(&fd).map_or(info.loaded, |made| made.min(info.loaded));
            let reservation = budget.adopt(info.size);
            let mut fds = vec![fd];
            if let Some((_, signature)) = signature {
                fds.push(signature);
                info.roles.push(Role::Signature);
            }
            let old = table.adopt(Ready { info, fds, access: Some(access), reservation });
            if let Some(old) = old {
                notify.forget(name, old.info.generation, &[]);
            }
            tracing::info!(name, generation, "found in the descriptor store");
        }
        Ok(_) => notify.forget(name, generation, &[]),
        Err(error) if is_passing(&error) => {
            tracing::error!(name, generation, %error, "left in the descriptor store, not held");
            table.continue_at(generation.saturating_add(1));
            let memory = fstat(&fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
            notify.set_aside(SetAside {
                name: name.to_owned(),
                generation,
                access,
                memory,
                stored,
                copies: Vec::new(),
            });
        }
        Err(error) => {
            tracing::error!(name, generation, %error, "the descriptor store holds no valid image of that name");
            notify.forget(name, generation, &[]);
        }
    }
}

/// When memory was made, which for what a load has packed or copied is when it was loaded; seconds since 1970. Writing
/// by a mapping does not change it.
fn made(fd: &OwnedFd) -> Option<u64> {
    fstat(fd).ok().and_then(|stat| u64::try_from(stat.st_mtime).ok()).filter(|time| *time > 0)
}

/// True when the system refused something, which says nothing of the image, or this holder takes less than another.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::NotSigned(_) | Error::SignedNotSealed => true,
        Error::System { source, .. } => source.raw_os_error().is_some(),
        Error::Memory(error) => error.raw_os_error().is_some(),
        Error::Image(error) => error.raw_os_error().is_some(),
        _ => false,
    }
}
