//! This program once more, in a process of its own in which plugins may do what they want.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gvmm_plugin_api::host::program;
use nix::sys::signal::Signal;

/// What is kept of an output stream.
const MAX_OUTPUT: u64 = 1 << 20;
/// Pause between two looks at a child.
const PAUSE: Duration = Duration::from_millis(2);

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its status; `None` when it was killed because its time was over.
    pub(crate) status: Option<ExitStatus>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Ended {
    /// Whether it ended by itself and well.
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The signal that killed it, if one did.
    pub(crate) fn signal(&self) -> Option<Signal> {
        Signal::try_from(self.status?.signal()?).ok()
    }

    /// How it ended, with the last line that it wrote to standard error.
    pub(crate) fn describe(&self) -> String {
        let how = match (self.status, self.signal()) {
            (None, _) => "did not end in the time allowed".to_owned(),
            (_, Some(signal)) => format!("was killed by {signal}"),
            (Some(status), None) => format!("ended with {status}"),
        };
        match self.err.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => format!("the process {how}: {}", line.trim()),
            None => format!("the process {how}"),
        }
    }
}

/// Runs this program with the arguments, for at most `limit`.
///
/// # Errors
///
/// Why there is no such process.
pub(crate) fn run(arguments: &[&str], limit: Duration) -> Result<Ended, String> {
    let failed = |e: std::io::Error| format!("cannot start a process of this program: {e}");
    let program = program::path().ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait(&mut child, limit).map_err(failed)?;
    let text = |stream: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&stream.join().unwrap_or_default()).into_owned()
    };
    Ok(Ended { status, out: text(out), err: text(err) })
}

/// Reads a stream to its end, so that its writer never waits; keeps the first part.
fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stream) = stream {
            // What cannot be read is not there.
            let _ = stream.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        kept
    })
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}
