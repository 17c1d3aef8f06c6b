//! A Unix socket whose clients see a console.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};

use super::server::Door;

/// A socket that is listened to; its file goes with it.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    listener: OwnedFd,
}

/// Why a socket cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    #[error("console socket {}: another program listens to it; choose another path or end that program", .0.display())]
    InUse(PathBuf),
    #[error("console socket {}: there is a file of that name, which is no socket; choose another path", .0.display())]
    NoSocket(PathBuf),
    #[error("console socket {}: {}", .path.display(), advice(.error))]
    Failed { path: PathBuf, error: io::Error },
}

fn advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENAMETOOLONG) => "the path is longer than the 107 bytes that sockets may have".to_owned(),
        _ => error.to_string(),
    }
}

impl Socket {
    /// Listens at a path. A socket that a program has left there when it ended is replaced.
    pub(super) fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |error| SocketError::Failed { path: path.to_owned(), error };
        remove_left_over(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let address = UnixAddr::new(path).map_err(|error| failed(error.into()))?;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|error| failed(error.into()))?;
        bind(listener.as_raw_fd(), &address).map_err(|error| failed(error.into()))?;
        let socket = Self { path: path.to_owned(), listener };
        // Nobody can connect before listen(): whoever can type at a console may own the guest.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        listen(&socket.listener, Backlog::MAXCONN).map_err(|error| failed(error.into()))?;
        Ok(socket)
    }
}

fn remove_left_over(path: &Path) -> Result<(), SocketError> {
    let failed = |error| SocketError::Failed { path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

impl Door for Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn arrived(&mut self) -> io::Result<Option<Arc<OwnedFd>>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: accept4 has just made the descriptor, nobody else has it.
            Ok(fd) => Ok(Some(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }))),
            // A client that has left already is none; another one is reported again.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("console socket {} is left over: {error}", self.path.display());
        }
    }
}
