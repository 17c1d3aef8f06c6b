//! vhost-user back ends that are started for a while.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;

/// How long a back end may take to listen, and to end after its front end has gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A back end that has been started. Dropping it ends it.
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts a program and waits until it listens on a socket.
    ///
    /// # Errors
    ///
    /// It cannot be started, ends, or does not listen in time.
    pub(crate) fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let name = process::display(command);
        // Left behind by one that was killed.
        let _ = std::fs::remove_file(socket);
        let child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
        let mut started = Self { name, child };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = started.child.try_wait()?;
            if socket.exists() {
                return Ok(started);
            }
            if let Some(status) = ended {
                bail!("`{}` ended ({status})", started.name);
            }
            if Instant::now() > deadline {
                bail!("`{}` does not listen on {}", started.name, socket.display());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until it has ended because its front end has.
    ///
    /// # Errors
    ///
    /// It ends with a failure, or not in time.
    pub(crate) fn ended(mut self) -> Result<()> {
        match self.wait(PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("`{}` failed ({status})", self.name),
            None => bail!("`{}` has not ended with its front end", self.name),
        }
    }

    fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait()? {
                None if Instant::now() < deadline => std::thread::sleep(PAUSE),
                status => return Ok(status),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_back_end_that_ends_before_it_listens_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Running::start(&mut shell("exit 3"), &folder.path().join("socket")).err().unwrap();
        assert!(error.to_string().starts_with("`sh -c 'exit 3'` ended (exit status: 3)"), "{error}");
    }

    #[test]
    fn a_back_end_that_listened_and_failed_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let script = |status: u8| format!("touch {}; exit {status}", socket.display());
        Running::start(&mut shell(&script(0)), &socket).unwrap().ended().unwrap();
        let error = Running::start(&mut shell(&script(4)), &socket).unwrap().ended().unwrap_err();
        assert!(error.to_string().ends_with("failed (exit status: 4)"), "{error}");
    }
}
