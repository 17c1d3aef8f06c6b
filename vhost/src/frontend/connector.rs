//! Ways to a back end.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::protocol::Channel;

/// What the way to a back end tells of its device, which vhost-user does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The largest size of each queue.
    pub queue_sizes: Vec<u16>,
    /// Bytes of configuration space.
    pub config_size: u32,
}

/// A way to a back end, used again each time that it has gone.
pub trait Connector: Send {
    /// A new connection. It does not wait: the error says why there is none now.
    fn connect(&mut self) -> Result<Channel, String>;

    /// What is known of the device; the error says why there will never be one.
    fn told(&mut self) -> Result<Option<Told>, String> {
        Ok(None)
    }

    /// The connection is over: what is left of the back end is of no use any more.
    fn lost(&mut self) {}

    /// Whether there may be another connection.
    fn can_return(&self) -> bool {
        true
    }
}

/// A socket that a back end listens on.
#[derive(Debug)]
pub struct SocketPath(pub PathBuf);

impl Connector for SocketPath {
    fn connect(&mut self) -> Result<Channel, String> {
        let failed = |errno: Errno| {
            let reason = match errno {
                Errno::ECONNREFUSED => "no program listens on it".to_owned(),
                Errno::EAGAIN => "its back end accepts no connection".to_owned(),
                other => other.desc().to_owned(),
            };
            format!("socket {}: {reason}", self.0.display())
        };
        let address = UnixAddr::new(&self.0).map_err(failed)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        // A back end that does not accept would block a socket that waits.
        connect(socket.as_raw_fd(), &address).map_err(failed)?;
        Ok(Channel::from(socket))
    }
}

/// A connection that the process was started with.
#[derive(Debug)]
pub struct Inherited(Option<OwnedFd>);

impl Inherited {
    /// Takes over a descriptor of the command line.
    pub fn new(fd: RawFd) -> Result<Self, String> {
        let refused = |why: &dyn std::fmt::Display| format!("option 'fd': {fd}: {why}");
        if fd <= 2 {
            return Err(refused(&"0, 1 and 2 are standard input, output and error"));
        }
        nix::sys::socket::getpeername::<UnixAddr>(fd).map_err(|errno| refused(&errno.desc()))?;
        // SAFETY: it is open, as getpeername has shown, and the command line gives it to this device.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // Not for programs that are started later.
        let own = socket.as_fd().try_clone_to_owned().map_err(|e| refused(&e))?;
        Ok(Self(Some(own)))
    }
}

impl Connector for Inherited {
    fn connect(&mut self) -> Result<Channel, String> {
        self.0
            .take()
            .map(Channel::from)
            .ok_or_else(|| "a connection given by fd= cannot be made again".to_owned())
    }

    fn can_return(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    #[test]
    fn a_socket_that_nobody_serves_is_named_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut connector = SocketPath(path.clone());
        let error = connector.connect().unwrap_err();
        assert_eq!(error, format!("socket {}: No such file or directory", path.display()));
        drop(UnixListener::bind(&path).unwrap());
        let error = connector.connect().unwrap_err();
        assert_eq!(error, format!("socket {}: no program listens on it", path.display()));
    }

    #[test]
    fn a_back_end_that_does_not_accept_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // The standard library gives the queue up to 4096 places, more than many users may open files.
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let mut connector = SocketPath(path);
        let connections: Vec<_> = (0..10).map_while(|_| connector.connect().ok()).collect();
        assert!(connections.len() < 10);
        assert!(connector.connect().unwrap_err().ends_with("accepts no connection"));
    }

    #[test]
    fn a_descriptor_serves_once() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut connector = Inherited::new(ours.into_raw_fd()).unwrap();
        assert!(connector.can_return() && connector.connect().is_ok());
        assert!(!connector.can_return() && connector.connect().is_err());
    }

    #[test]
    fn a_descriptor_that_is_no_connection_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        assert_eq!(
            Inherited::new(fd).unwrap_err(),
            format!("option 'fd': {fd}: Socket operation on non-socket")
        );
        assert!(Inherited::new(1).is_err());
    }
}
