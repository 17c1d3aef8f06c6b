//! A client of a Unix socket, typed to by a script.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::terminal::{Session, Step};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Path of the socket
    socket: PathBuf,
    /// What to do, in order: wait:TEXT, type:TEXT and paste:FILE, as for a terminal
    #[arg(long = "then", value_name = "STEP")]
    steps: Vec<String>,
    /// Read on after the last step until the other end closes, instead of hanging up
    #[arg(long)]
    to_end: bool,
    /// Where to write all that comes
    #[arg(long)]
    log: PathBuf,
    /// Seconds after which this gives up
    #[arg(long, default_value_t = 100)]
    timeout: u64,
}

/// Connects and goes through the steps.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.steps.iter().map(|step| Step::parse(step)).collect::<Result<Vec<_>>>()?;
    let stream = UnixStream::connect(&options.socket)
        .with_context(|| format!("cannot connect to {}", options.socket.display()))?;
    let mut session = Session::new(stream.into(), &options.log, options.timeout)?;
    for step in &steps {
        session.perform(step)?;
    }
    if options.to_end { session.read_to_end() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn options(folder: &tempfile::TempDir, steps: &[&str], to_end: bool) -> Options {
        Options {
            socket: folder.path().join("socket"),
            steps: steps.iter().map(|&step| step.to_owned()).collect(),
            to_end,
            log: folder.path().join("log"),
            timeout: 60,
        }
    }

    #[test]
    fn what_is_typed_arrives_and_what_comes_is_logged_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(b"name?").unwrap();
            let mut name = [0; 5];
            client.read_exact(&mut name).unwrap();
            client.write_all(b" hello ").unwrap();
            client.write_all(&name).unwrap();
        });
        run(&options(&folder, &["wait:name?", r"type:gvmm\r"], true)).unwrap();
        server.join().unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "name? hello gvmm\r");
    }

    #[test]
    fn an_end_before_the_text_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let server = thread::spawn(move || drop(listener.accept().unwrap()));
        let error = run(&options(&folder, &["wait:never"], false)).unwrap_err().to_string();
        server.join().unwrap();
        assert!(error.contains("gone before \"never\""), "{error}");
    }
}
