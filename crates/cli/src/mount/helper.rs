//! The command as a helper of mount(8): under the name `mount.fuse.daxfs`, a link to it in `/sbin`, it takes that
//! program's arguments, `SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`. The type is FUSE's; `as=` in the
//! options says otherwise.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The name of the link.
const NAME: &str = "mount.fuse.daxfs";

/// The arguments of `daxfs mount` for those that mount(8) gives, none if it does not mean it (`-f`); `None` when the command
/// was not started by that name.
pub fn translate(args: &[OsString]) -> Option<Vec<OsString>> {
    let (program, rest) = args.split_first()?;
    if Path::new(program).file_name() != Some(OsStr::new(NAME)) {
        return None;
    }
    let mut line: Vec<OsString> = ["daxfs", "mount", "--as", "fuse"].map(OsString::from).into();
    let mut rest = rest.iter();
    while let Some(arg) = rest.next() {
        match arg.to_str() {
            // What it is to be quiet about, to write down or to say more of: there is nothing of that.
            Some("-n" | "-s" | "-v" | "-r" | "-w") => {}
            Some("-t") => _ = rest.next(),
            Some("-o") => {
                line.push(arg.clone());
                line.extend(rest.next().cloned());
            }
            Some("-f") => return Some(Vec::new()),
            // Others, `-N` among them, are errors where they are read.
            _ => line.push(arg.clone()),
        }
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mount_gives_becomes_a_verb() {
        let translated = |line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            let line = translate(&line)?;
            Some(line.into_iter().map(|arg| arg.into_string().unwrap()).collect::<Vec<_>>())
        };
        let line = [
            "/sbin/mount.fuse.daxfs",
            "-n",
            "daxfs://a",
            "/mnt",
            "-s",
            "-o",
            "rw,nofail",
            "-t",
            "fuse.daxfs",
        ];
        let expected = ["daxfs", "mount", "--as", "fuse", "daxfs://a", "/mnt", "-o", "rw,nofail"];
        assert_eq!(translated(&line).unwrap(), expected);
        assert_eq!(translated(&["mount.fuse.daxfs", "a", "/mnt", "-f"]).unwrap(), [""; 0]);
        assert_eq!(translated(&["daxfs", "mount"]), None);
        assert_eq!(translated(&[]), None);
    }
}
