//! What runs in a container, as whom, where, and with which environment: what the command line says, else the image.

use crate::args::ProgramArgs;
use anyhow::{Context, bail};
use daxfs::format::index;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where programs are looked for, unless the image says it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The command, and its arguments.
    pub args: Vec<OsString>,
    /// Environment variables, each as `NAME=VALUE`.
    pub env: Vec<OsString>,
    /// The user, as `USER[:GROUP]`; none: root.
    pub user: String,
    /// Working directory.
    pub workdir: OsString,
}

/// The configuration of a container image, with the fields that are used. Those that have the form of Go may be `null`.
#[derive(Debug, Default, Deserialize)]
struct ImageConfig {
    config: Option<Execution>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// The configuration in a directory, where a mount by FUSE shows it; nothing where there is none.
///
/// # Errors
/// When it cannot be read, or is too long.
pub fn in_directory(directory: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let path = directory.join(index::CONFIG_PATH.trim_start_matches('/'));
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() && found.len() <= index::CONFIG_MOST => {
            std::fs::read(&path).map(Some).with_context(|| path.display().to_string())
        }
        Ok(_) => bail!("{}: no file of at most {} bytes", path.display(), index::CONFIG_MOST),
        Err(_) => Ok(None),
    }
}

impl Program {
    /// What is to run by the command line and the image's configuration, if it has one.
    ///
    /// # Errors
    /// For a configuration that is none, and where neither names a command.
    pub fn new(args: &ProgramArgs, config: Option<&[u8]>) -> anyhow::Result<Self> {
        let config: ImageConfig = match config {
            Some(bytes) => serde_json::from_slice(bytes).context(index::CONFIG_PATH)?,
            None => ImageConfig::default(),
        };
        let image = config.config.unwrap_or_default();
        let words = |words: Option<Vec<String>>| words.unwrap_or_default().into_iter().map(OsString::from);
        let mut command: Vec<OsString> = match &args.entrypoint {
            Some(word) if word.is_empty() => Vec::new(),
            Some(word) => vec![word.clone()],
            None => words(image.entrypoint).collect(),
        };
        if !args.command.is_empty() {
            command.extend(args.command.iter().cloned());
        } else if args.entrypoint.is_none() {
            // They belong to the entry point of the image.
            command.extend(words(image.cmd));
        }
        if command.first().is_none_or(|first| first.is_empty()) {
            bail!("the image names no command; give one behind --");
        }
        let mut env: Vec<OsString> = vec![PATH.into()];
        if let Some(term) = std::env::var_os("TERM") {
            set(&mut env, joined("TERM".as_ref(), &term));
        }
        for variable in words(image.env) {
            set(&mut env, variable);
        }
        for variable in &args.env {
            match (variable.as_bytes().contains(&b'='), std::env::var_os(variable)) {
                (true, _) => set(&mut env, variable.clone()),
                (false, Some(value)) => set(&mut env, joined(variable, &value)),
                (false, None) => {}
            }
        }
        let user = args.user.clone().or(image.user).unwrap_or_default();
        let workdir = args.workdir.clone().or(image.working_dir.map(Into::into));
        let workdir = workdir.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".into());
        if !Path::new(&workdir).is_absolute() {
            bail!("the working directory {} is not absolute", workdir.display());
        }
        let strings = command.iter().chain(&env).chain([&workdir]);
        if strings.into_iter().any(|string| string.as_bytes().contains(&0)) {
            bail!("a word of the command, its environment or the working directory has a NUL");
        }
        Ok(Self { args: command, env, user, workdir })
    }

    /// The value of an environment variable.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.env.iter().find_map(|variable| {
            let value = variable.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsStr::from_bytes(value))
        })
    }
}

fn joined(name: &OsStr, value: &OsStr) -> OsString {
    [name, OsStr::new("="), value].into_iter().collect()
}

/// Sets a variable, `NAME=VALUE`. What is none is left out, as a shell would.
fn set(env: &mut Vec<OsString>, variable: OsString) {
    let Some(len) = variable.as_bytes().iter().position(|&byte| byte == b'=').filter(|&len| len > 0) else {
        return;
    };
    let start = variable.as_bytes().get(..=len).unwrap_or_default().to_vec();
    env.retain(|other| !other.as_bytes().starts_with(&start));
    env.push(variable);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, ImageVerb, Verb};

    const CONFIG: &str = r#"{"architecture": "amd64", "config": {"User": "web:www", "Env": ["PATH=/opt", "A=1", "odd"],
        "Entrypoint": ["/bin/e", "-x"], "Cmd": ["c"], "WorkingDir": "/srv", "Labels": null, "Volumes": null}}"#;

    fn program(line: &[&str], config: Option<&str>) -> anyhow::Result<Program> {
        let cli = Cli::read(["daxfs", "run", "image"].iter().chain(line).map(OsString::from)).unwrap();
        let Verb::Image(ImageVerb::Run(args)) = &cli.verb else { panic!("another verb") };
        Program::new(&args.program, config.map(str::as_bytes))
    }

    #[test]
    fn the_command_line_comes_before_the_image() {
        let args = |line: &[&str]| program(line, Some(CONFIG)).unwrap().args.join(OsStr::new(" "));
        assert_eq!(args(&[]), "/bin/e -x c");
        assert_eq!(args(&["--", "a", "-b"]), "/bin/e -x a -b");
        assert_eq!(args(&["--entrypoint", "sh"]), "sh");
        assert_eq!(args(&["--entrypoint", "sh", "--", "-c", "x"]), "sh -c x");
        assert_eq!(args(&["--entrypoint", "", "--", "ls"]), "ls");
        let found = program(&["-e", "A=2", "-e", "B=", "--env", "NO_SUCH_VARIABLE"], Some(CONFIG)).unwrap();
        let values = ["PATH", "A", "B", "NO_SUCH_VARIABLE", "odd"].map(|name| found.variable(name));
        assert_eq!(values, [Some("/opt"), Some("2"), Some(""), None, None].map(|text| text.map(OsStr::new)));
        assert_eq!((found.user.as_str(), found.workdir.to_str()), ("web:www", Some("/srv")));
        let found = program(&["--user", "7", "--workdir", "/w"], Some(CONFIG)).unwrap();
        assert_eq!((found.user.as_str(), found.workdir.to_str()), ("7", Some("/w")));
    }

    #[test]
    fn an_image_without_a_configuration_takes_a_command() {
        let found = program(&["--", "ls"], None).unwrap();
        assert_eq!((found.user.as_str(), found.workdir.to_str()), ("", Some("/")));
        assert!(found.variable("PATH").unwrap().as_bytes().ends_with(b"/bin"));
        for (line, config, named) in [
            (&[][..], None, "no command"),
            (&[], Some("{\"config\": null}"), "no command"),
            (&["--entrypoint", ""], Some(CONFIG), "no command"),
            (&["--", "ls"], Some("[]"), "oci-config.json"),
            (&["--workdir", "w", "--", "ls"], None, "not absolute"),
            (&["--", "ls"], Some("{\"config\": {\"WorkingDir\": \"/a\\u0000b\"}}"), "NUL"),
        ] {
            let error = crate::output::one_line(&program(line, config).unwrap_err());
            assert!(error.contains(named), "{line:?}: {error}");
        }
    }
}
