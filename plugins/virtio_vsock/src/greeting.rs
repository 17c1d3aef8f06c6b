//! The first line of a host program: `CONNECT PORT`.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// Longest line in bytes: the word, a space, ten digits, a carriage return, and some to spare.
const MAX_LINE: usize = 32;

/// A host program that has connected and not yet said what to.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) stream: UnixStream,
    line: Vec<u8>,
}

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It is not complete.
    Unknown,
    Port(u32),
    /// It is none, or nobody is there any more.
    Nonsense,
}

impl Greeting {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// Reads on, not a byte beyond the line: what follows is for the guest.
    pub(crate) fn read(&mut self) -> Wish {
        let mut byte = [0];
        while self.line.len() < MAX_LINE {
            match self.stream.read(&mut byte) {
                Ok(0) => return Wish::Nonsense,
                Ok(_) if byte == [b'\n'] => return parse(&self.line).map_or(Wish::Nonsense, Wish::Port),
                Ok(_) => self.line.extend(byte),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Wish::Unknown,
                Err(_) => return Wish::Nonsense,
            }
        }
        Wish::Nonsense
    }
}

/// The port of a line, without its end. `VMADDR_PORT_ANY` is no port.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let word = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?.parse().ok().filter(|port| *port != u32::MAX);
    (word && words.next().is_none()).then_some(port)?
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_read_with_a_port_or_not_at_all() {
        assert_eq!(parse(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse(b"connect 4294967294\r"), Some(4_294_967_294));
        for line in
            [&b""[..], b"CONNECT", b"CONNECT x", b"CONNECT 1 2", b"CONNECT 4294967295", b"GET 1", b"\xff"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_line_may_come_in_pieces_and_what_follows_stays() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(stream);
        client.write_all(b"CONN").unwrap();
        assert_eq!(greeting.read(), Wish::Unknown);
        client.write_all(b"ECT 5\nhello").unwrap();
        assert_eq!(greeting.read(), Wish::Port(5));
        let mut rest = [0; 8];
        assert_eq!(greeting.stream.read(&mut rest).unwrap(), 5);
    }

    #[test]
    fn an_endless_line_is_nonsense() {
        let (mut client, stream) = UnixStream::pair().unwrap();
        client.write_all(&[b'C'; 100]).unwrap();
        assert_eq!(Greeting::new(stream).read(), Wish::Nonsense);
    }
}
