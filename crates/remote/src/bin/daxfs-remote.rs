//! The program that `daxfs`, `daxfs.open` and `daxfs::Source` start for images that lie elsewhere. See
//! [`daxfs_remote::talk`].

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use daxfs_remote::talk;

const HELP: &str = "\
Fetches a DAXFS image from an object store or a web server into sealed memory.

Other programs start it, with a socket as standard input: `daxfs load NAME s3://BUCKET/KEY`, `daxfs.open(\"https://...\")`.
Credentials, certificates and proxies come from the environment; docs/remote.md names the variables.
";

fn main() -> ExitCode {
    dmabuf::fill_standard_descriptors();
    let said = match std::env::args_os().nth(1) {
        None => return serve(),
        Some(arg) if arg == "--version" => concat!("daxfs-remote ", env!("CARGO_PKG_VERSION"), "\n"),
        Some(arg) if arg == "--help" || arg == "-h" => HELP,
        Some(_) => return fail("it takes no arguments but --help and --version"),
    };
    match std::io::stdout().write_all(said.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn serve() -> ExitCode {
    let stdin = std::io::stdin();
    if dmabuf::peer(stdin.as_fd()).is_err() {
        return fail("standard input is no socket: other programs start this one, see --help");
    }
    match stdin.as_fd().try_clone_to_owned() {
        Ok(socket) => ExitCode::from(if talk::serve(socket) { 0 } else { 2 }),
        Err(error) => fail(&format!("cannot duplicate standard input: {error}")),
    }
}

fn fail(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "daxfs-remote: {text}");
    ExitCode::from(2)
}
