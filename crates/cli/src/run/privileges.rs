//! What a program in a container may do: the rights of its user, and no capabilities beyond a container's usual ones.

use super::namespaces::Users;
use super::users::Identity;
use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// Capabilities that root keeps in a container: the set that container engines give by default, without those for devices
/// (nothing here limits devices otherwise), raw sockets (the network is the machine's) and its audit log.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT);

/// Gives this process the rights of a user in a container, for good.
///
/// # Errors
/// What the system says; for an id that the user namespace has not, what it takes.
pub fn become_user(who: &Identity, users: Users) -> anyhow::Result<()> {
    drop_from_bounding_set().context("capabilities")?;
    let absent = |errno| match errno {
        Errno::EINVAL if users == Users::One => anyhow::anyhow!(
            "user {}, group {}: this user namespace has root alone; others take newuidmap (package uidmap) and ranges in \
             /etc/subuid and /etc/subgid; --user 0 runs it as root",
            who.uid,
            who.gid
        ),
        Errno::EINVAL => {
            anyhow::anyhow!("user {}, group {}: not in the ranges of /etc/subuid", who.uid, who.gid)
        }
        errno => anyhow::anyhow!("user {}, group {}: {}", who.uid, who.gid, errno.desc()),
    };
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&groups) {
        Ok(()) => {}
        // Where nobody may change groups; they are those of who runs this, and count for nothing inside.
        Err(Errno::EPERM) if users == Users::One => {}
        Err(errno) => bail!(absent(errno)),
    }
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    setresgid(gid, gid, gid).map_err(absent)?;
    setresuid(uid, uid, uid).map_err(absent)?;
    // What programs would inherit; those of root are made anew from the bounding set when it starts one.
    clear_ambient_capability_set().context("capabilities")?;
    let mut sets = capabilities(None).context("capabilities")?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).context("capabilities")?;
    if users != Users::All {
        set_no_new_privs(true).context("no_new_privs")?;
    }
    Ok(())
}

/// Takes away for good what is not kept.
fn drop_from_bounding_set() -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // There are no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
