//! Where bytes go that pass through the host: the terminal, files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// A place for what a console shows. It never fails: the guest goes on, whatever happens to its console.
#[derive(Debug)]
pub(super) struct Sink {
    name: String,
    output: OwnedFd,
    /// Bytes lost since the last success.
    lost: u64,
}

impl Sink {
    /// Standard output.
    pub(super) fn stdout() -> io::Result<Self> {
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self { name: "standard output".to_owned(), output, lost: 0 })
    }

    /// A file that is made or appended to. A FIFO needs a reader, or this fails instead of waiting for one.
    pub(super) fn file(path: &Path) -> Result<Self, FileError> {
        let failed = |error| FileError { path: path.to_owned(), error };
        let file: File = OpenOptions::new()
            .append(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(failed)?;
        Ok(Self { name: path.display().to_string(), output: file.into(), lost: 0 })
    }

    /// Writes everything, or says once what is lost.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            match write(&self.output, left) {
                Ok(done) => left = &left[done..],
                Err(Errno::EINTR) => {}
                // Another process that shares the descriptor may have made it non-blocking.
                Err(Errno::EAGAIN) => self.wait(),
                Err(error) => {
                    self.lose(left.len(), error);
                    return;
                }
            }
        }
        if self.lost > 0 {
            tracing::warn!("{}: console output is kept again; {} bytes were lost", self.name, self.lost);
            self.lost = 0;
        }
    }

    fn wait(&self) {
        // Whatever comes of it, the next write tells.
        let _ = poll(&mut [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
    }

    fn lose(&mut self, len: usize, error: Errno) {
        if self.lost == 0 {
            tracing::warn!(
                "{}: console output is lost until this passes: {}; the guest goes on",
                self.name,
                error.desc()
            );
        }
        self.lost += len as u64;
    }
}

/// A file that cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot write console output to {}: {error}", .path.display())]
pub(super) struct FileError {
    path: PathBuf,
    error: io::Error,
}
