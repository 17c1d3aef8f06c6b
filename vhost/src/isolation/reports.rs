//! What `gvmm-device` and the gvmm above it tell each other beside vhost-user: packets of JSON on a socket of type
//! `SOCK_SEQPACKET`, with descriptors where there are any.
//!
//! What comes from `gvmm-device` is hostile: it may be a plugin's that has taken the process over.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::protocol::rights;

/// Most bytes of a packet. A longer one is cut off, and what is left is no JSON.
const MAX_PACKET: usize = 16 << 10;
/// How long a packet may wait for its receiver.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the device's process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// A log line of the device: level (1 error to 5 trace), target, text.
    Log(u8, String, String),
    /// The device cannot go on.
    Failed(String),
    /// There will be no device: another try would end the same way.
    Refused(String),
    /// The device is there.
    Ready(Ready),
    /// A console attachment is asked for; answered.
    OpenConsole(String),
    /// The size of a console that is open is asked for; answered.
    ConsoleSize(String),
}

/// What vhost-user does not tell of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The largest size of each queue.
    pub(crate) queue_sizes: Vec<u16>,
    /// Bytes of configuration space.
    pub(crate) config_size: u32,
    /// What of the sandbox could not be applied.
    pub(crate) missing: Vec<String>,
}

/// What gvmm answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// Input and output come along, and an event for changes of the size if there is one.
    Console,
    /// Columns and rows.
    Size(u16, u16),
    /// No.
    Refused(String),
}

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Packets(OwnedFd);

impl From<OwnedFd> for Packets {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Packets {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends a packet; waits a while for a receiver that is slow.
    pub(crate) fn send(&self, packet: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(packet)?;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &[io::IoSlice::new(&bytes)], control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives a packet; `None` when the other end is closed.
    pub(crate) fn receive<P: DeserializeOwned>(&self) -> io::Result<Option<(P, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_PACKET];
        let mut fds = Vec::new();
        let len = loop {
            match rights::receive(self.0.as_fd(), &mut buffer, &mut fds) {
                Ok((0, _)) => return Ok(None),
                Ok((len, _)) => break len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                Err(error) => return Err(error),
            }
        };
        Ok(Some((serde_json::from_slice(&buffer[..len])?, fds)))
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        // Milliseconds of a few seconds.
        let timeout = PollTimeout::try_from(PATIENCE.as_millis() as i32).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), events)], timeout) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_whole_with_their_descriptors() {
        let (a, b) = Packets::pair().unwrap();
        a.send(&Answer::Console, &[b.as_fd(), a.as_fd()]).unwrap();
        a.send(&Answer::Size(80, 25), &[]).unwrap();
        let (answer, fds) = b.receive::<Answer>().unwrap().unwrap();
        assert!(matches!(answer, Answer::Console) && fds.len() == 2);
        let (answer, fds) = b.receive::<Answer>().unwrap().unwrap();
        assert!(matches!(answer, Answer::Size(80, 25)) && fds.is_empty());
        drop((a, fds));
    }

    #[test]
    fn what_is_no_packet_is_an_error_and_the_end_is_not() {
        let (a, b) = Packets::pair().unwrap();
        a.send(&"nonsense", &[]).unwrap();
        assert!(b.receive::<Report>().is_err());
        a.send(&Report::Failed("x".repeat(2 * MAX_PACKET)), &[]).unwrap();
        assert!(b.receive::<Report>().is_err());
        drop(a);
        assert!(b.receive::<Report>().unwrap().is_none());
    }
}
