//! The `daxfs` command. See [`daxfs_cli`].

fn main() -> std::process::ExitCode {
    daxfs_cli::main(std::env::args_os()).into()
}
