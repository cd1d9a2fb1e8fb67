//! The processes that copy a holder's first images to a GPU: the holder itself has no GPU driver.

use crate::args::{Gpu, ServeArgs};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `daxfs upload` for one image after the other, in the background.
#[derive(Debug)]
pub struct Uploads(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    is_ended: bool,
}

impl Uploads {
    /// Begins. An upload that fails is logged, and clients make copies of their own.
    pub fn begin(args: &ServeArgs) -> Self {
        let names: Vec<String> = args.images.iter().map(|image| image.name.clone()).collect();
        let (socket, uploads) = (args.socket.path(), Self(Arc::default()));
        let background = Self(Arc::clone(&uploads.0));
        let targets = targets(args);
        if targets.is_empty() {
            return uploads;
        }
        let work = move || {
            for (name, arguments) in
                names.iter().flat_map(|name| targets.iter().map(move |arguments| (name, arguments)))
            {
                let into = arguments.join(OsStr::new(" "));
                let into = into.display();
                match background.upload(&socket, name, arguments) {
                    Ok(None) => {}
                    Ok(Some(why)) => tracing::error!(name, %into, why, "no copy on the GPU"),
                    Err(error) => tracing::error!(name, %into, %error, "no copy on the GPU"),
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("upload".into()).spawn(work) {
            tracing::error!(%error, "no copies on GPUs");
        }
        uploads
    }

    /// Ends the upload that goes on, and begins no other.
    pub fn end(&self) {
        let mut state = self.state();
        state.is_ended = true;
        if let Some(child) = &mut state.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uploads one image. What the process complains of, if it fails.
    fn upload(&self, socket: &Path, name: &str, target: &[OsString]) -> std::io::Result<Option<String>> {
        let mut command = own_command()?;
        command.args(["upload", name, "--quiet"]).args(target).arg("--socket").arg(socket);
        // What a supervisor passed is the holder's.
        for variable in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let errors = {
            let mut state = self.state();
            if state.is_ended {
                return Ok(None);
            }
            let mut child = command.spawn()?;
            let errors = child.stderr.take();
            state.child = Some(child);
            errors
        };
        let mut text = Vec::new();
        if let Some(mut errors) = errors {
            // What cannot be read of it is missing in the log, and nothing else.
            let _ = errors.read_to_end(&mut text);
        }
        let mut state = self.state();
        let Some(child) = &mut state.child else { return Ok(None) };
        let status = child.wait()?;
        state.child = None;
        let failed = !status.success() && !state.is_ended;
        Ok(failed.then(|| format!("{}: {status}", String::from_utf8_lossy(&text).trim_end())))
    }
}

/// Where each image is to be copied, in the words of `daxfs upload`: to a GPU, by a plan, or both.
fn targets(args: &ServeArgs) -> Vec<Vec<OsString>> {
    let mut targets: Vec<Vec<OsString>> = Vec::new();
    targets.extend(args.into.gpu.map(|gpu| vec![gpu.to_string().into()]));
    if let Some(plan) = &args.place {
        let mut target = vec![OsString::from("--place"), plan.into()];
        if !args.ranks.is_empty() {
            let ranks: Vec<String> = args.ranks.iter().map(|number| Gpu::One(*number).to_string()).collect();
            target.extend(["--ranks".into(), ranks.join(",").into()]);
        }
        targets.push(target);
    }
    targets
}

/// This command once more, without verb: the program, or the interpreter that runs it and the script. Not by
/// `current_exe`, which leads out of a virtual environment.
pub(super) fn own_command() -> std::io::Result<Command> {
    let mut arguments = std::env::args_os();
    let mut command = match arguments.next() {
        Some(program) => Command::new(program),
        None => Command::new(std::env::current_exe()?),
    };
    command.args(arguments.take_while(|argument| argument != "serve"));
    Ok(command)
}
