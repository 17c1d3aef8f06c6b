//! Serves front ends, one after the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gvmm_plugin_api::virtio::VirtioDevice;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::host::BackendHost;
use super::session::{Fault, Session};
use crate::protocol::{Channel, ChannelError, Deadline};

/// How long a front end may take to send the rest of a message, or to read an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// The front end closed the connection.
    Gone,
    /// The program is to end.
    Stopped,
    /// The front end broke the rules, or asked for what cannot be.
    Fault(String),
}

/// Serves one front end until it goes or `stop` has input.
pub fn serve(
    device: &Arc<dyn VirtioDevice>,
    host: &Arc<BackendHost>,
    channel: &Channel,
    stop: BorrowedFd<'_>,
) -> End {
    let mut session = Session::new(device.clone(), host.clone());
    loop {
        match wait(channel.as_fd(), stop) {
            Err(errno) => return End::Fault(format!("cannot wait for requests: {errno}")),
            Ok(Ready::Stop) => return End::Stopped,
            Ok(Ready::Input) => {}
        }
        let message = match channel.receive(Deadline::after(PATIENCE)) {
            Ok(message) => message,
            Err(ChannelError::Closed) => return End::Gone,
            Err(error) => return End::Fault(error.to_string()),
        };
        match session.handle(message, channel, Deadline::after(PATIENCE)) {
            Ok(()) => {}
            Err(Fault::Channel(ChannelError::Closed)) => return End::Gone,
            Err(fault) => return End::Fault(fault.to_string()),
        }
    }
}

enum Ready {
    Input,
    Stop,
}

fn wait(input: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> Result<Ready, Errno> {
    loop {
        let mut fds = [PollFd::new(input, PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) if fds[1].any().unwrap_or(false) => return Ok(Ready::Stop),
            Ok(_) => return Ok(Ready::Input),
        }
    }
}

/// A socket that front ends connect to; one that was made here is removed with this value.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: Option<PathBuf>,
}

impl Listener {
    /// Listens at a path. A socket that nobody listens on any more, as a program that was killed leaves it, is replaced.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("socket {}: {e}", path.display());
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket {
            match UnixStream::connect(path) {
                Ok(_) => {
                    return Err(format!("socket {}: another program listens on it", path.display()));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let socket = UnixListener::bind(path).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, path: Some(path.to_owned()) })
    }

    /// Takes over a socket that listens already.
    pub fn inherited(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: None })
    }

    /// Waits for a front end; `None` when `stop` has input before one comes.
    pub fn accept(&self, stop: BorrowedFd<'_>) -> io::Result<Option<Channel>> {
        loop {
            if let Ready::Stop = wait(self.socket.as_fd(), stop)? {
                return Ok(None);
            }
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(Some(Channel::from(stream))),
                // It has gone again, or a signal came.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nobody is left to tell if it is gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error, format!("socket {}: another program listens on it", path.display()));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Listener::bind(file.path()).unwrap_err().contains("in use"));
        assert!(file.path().exists());
    }
}
