//! The `daxfs-pack` command.

fn main() -> std::process::ExitCode {
    mkimage::command::main(std::env::args_os()).into()
}
