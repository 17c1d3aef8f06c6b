//! Descriptors that gvmm was started with: what they are and how frames go through them.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::packet::PacketPort;
use super::tap::{self, Tap};

/// A descriptor of the command line.
pub(crate) enum Descriptor {
    /// A tap or a datagram socket.
    Packets(PacketPort, Option<Tap>),
    /// A stream with length prefixes.
    Stream(OwnedFd),
}

/// Finds out what a descriptor is; the error says what it is instead.
pub(crate) fn open(number: i32, offload: bool) -> Result<Descriptor, String> {
    let fd = tap::duplicate(number).map_err(|error| format!("cannot be used: {error}"))?;
    let failed = |error: std::io::Error| error.to_string();
    match getsockopt(&fd, sockopt::SockType) {
        Ok(SockType::Stream) => Ok(Descriptor::Stream(fd)),
        Ok(kind @ (SockType::Datagram | SockType::SeqPacket)) => {
            let ends = kind == SockType::SeqPacket;
            Ok(Descriptor::Packets(PacketPort::new(fd, false, ends).map_err(failed)?, None))
        }
        Ok(other) => Err(format!("is a socket of type {other:?}, not of a stream or of datagrams")),
        Err(_) => {
            let (tap, port) = Tap::adopt(fd, offload).map_err(|error| error.to_string())?;
            Ok(Descriptor::Packets(port, Some(tap)))
        }
    }
}

/// The interface of a descriptor that is a tap.
pub(crate) fn interface_name(number: i32) -> Option<String> {
    tap::interface_name(&tap::duplicate(number).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn sockets_are_told_apart() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(matches!(open(stream.as_raw_fd(), true), Ok(Descriptor::Stream(_))));
        let (datagram, _other) = UnixDatagram::pair().unwrap();
        let Ok(Descriptor::Packets(port, None)) = open(datagram.as_raw_fd(), true) else {
            panic!("not taken for a datagram socket");
        };
        assert!(!port.has_header() && !port.ends());
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let error = open(file.as_raw_fd(), true).err().unwrap();
        assert!(error.contains("neither a tap nor a socket"), "{error}");
        let error = open(1_000_000, true).err().unwrap();
        assert!(error.contains("cannot be used"), "{error}");
    }
}
