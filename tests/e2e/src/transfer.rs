//! Checked transfers over TCP, Unix and vsock sockets.
//!
//! A client says what it will do, sends, closes its sending half unless told not to, and then receives until the server
//! closes; each side compares all that arrives with what must have been sent.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::str::FromStr;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen,
    shutdown, socket,
};

use crate::pattern;

/// Length of the content after which it repeats: a prime, so that a piece that is lost or doubled shows.
const PERIOD: usize = 65521;
/// Bytes sent with one call.
const BLOCK: usize = 32 << 10;
/// Bytes of what a client says first: rounds, bytes up, bytes down, whether it keeps its half open.
const HEADER: usize = 32;

/// Where a server is.
#[derive(Debug, Clone)]
enum Endpoint {
    Tcp(String),
    Unix(String),
    /// A Unix socket behind which a VMM has the ports of its guest's vsock.
    Guest(String, u32),
    Vsock(u32, u32),
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').context("no ':'")?;
        let numbered = || -> Result<(String, u32)> {
            let (place, port) = rest.rsplit_once(':').context("no port")?;
            Ok((place.to_owned(), port.parse()?))
        };
        Ok(match kind {
            "tcp" => Self::Tcp(rest.to_owned()),
            "unix" => Self::Unix(rest.to_owned()),
            "guest" => {
                let (path, port) = numbered()?;
                Self::Guest(path, port)
            }
            "vsock" => {
                let (cid, port) = numbered()?;
                Self::Vsock(cid.parse()?, port)
            }
            _ => bail!("not one of tcp:, unix:, guest: and vsock:"),
        })
    }
}

#[derive(clap::Args)]
pub(crate) struct ServeOptions {
    /// tcp:ADDRESS:PORT, unix:PATH or vsock:CID:PORT
    endpoint: Endpoint,
    /// End after so many connections
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Connect to the endpoint, where something joins this program to the one that asks
    #[arg(long)]
    connect: bool,
}

#[derive(clap::Args)]
pub(crate) struct TransferOptions {
    /// tcp:ADDRESS:PORT, unix:PATH, vsock:CID:PORT or guest:PATH:PORT
    endpoint: Endpoint,
    /// Connections at the same time
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Bytes to send on each
    #[arg(long, default_value_t = 0)]
    up: u64,
    /// Bytes to receive on each
    #[arg(long, default_value_t = 0)]
    down: u64,
    /// Bytes to send one by one first, each being answered
    #[arg(long, default_value_t = 0)]
    rounds: u64,
    /// Do not close the sending half before the other is done
    #[arg(long)]
    keep_open: bool,
}

pub(crate) fn serve(options: &ServeOptions) -> Result<()> {
    let accept =
        if options.connect { Box::new(|| open(&options.endpoint)) } else { listener(&options.endpoint)? };
    println!("@serving");
    let mut threads = Vec::new();
    for _ in 0..options.connections {
        let stream = accept()?;
        threads.push(thread::spawn(move || answer(stream)));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a connection's thread panicked"))??;
    }
    println!("served {} connections", options.connections);
    Ok(())
}

pub(crate) fn transfer(options: &TransferOptions) -> Result<()> {
    let started = Instant::now();
    thread::scope(|scope| {
        let ask = || ask(open(&options.endpoint)?, options);
        let threads: Vec<_> = (0..options.connections).map(|_| scope.spawn(ask)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| bail!("a connection's thread panicked"))
        };
        threads.into_iter().try_for_each(join)
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes = options.connections * (options.up + options.down);
    println!("@transfer {} connections {bytes} bytes {:.3} s", options.connections, seconds);
    println!("@rate {:.2} mb_per_s", bytes as f64 / 1e6 / seconds);
    // With anything else in it, the time is not that of the rounds.
    if options.rounds > 0 && bytes == 0 {
        println!("@round_trip {:.1} us", seconds * 1e6 / options.rounds as f64);
    }
    Ok(())
}

fn listener(endpoint: &Endpoint) -> Result<Box<dyn Fn() -> Result<File>>> {
    let place = format!("cannot listen on {endpoint:?}");
    match endpoint {
        Endpoint::Tcp(address) => {
            let listener = TcpListener::bind(address).context(place)?;
            Ok(Box::new(move || {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(File::from(OwnedFd::from(stream)))
            }))
        }
        Endpoint::Unix(path) => {
            let listener = UnixListener::bind(path).context(place)?;
            Ok(Box::new(move || Ok(File::from(OwnedFd::from(listener.accept()?.0)))))
        }
        Endpoint::Vsock(cid, port) => {
            let listener = vsock()?;
            bind(listener.as_raw_fd(), &VsockAddr::new(*cid, *port)).context(place)?;
            listen(&listener, Backlog::new(128)?)?;
            Ok(Box::new(move || {
                let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
                // SAFETY: the descriptor was just made and belongs to nobody else.
                Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
            }))
        }
        Endpoint::Guest(..) => bail!("a guest's port is connected to"),
    }
}

fn vsock() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn open(endpoint: &Endpoint) -> Result<File> {
    let place = || format!("cannot connect to {endpoint:?}");
    match endpoint {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(address).with_context(place)?;
            stream.set_nodelay(true)?;
            Ok(File::from(OwnedFd::from(stream)))
        }
        Endpoint::Unix(path) => Ok(File::from(OwnedFd::from(UnixStream::connect(path).with_context(place)?))),
        Endpoint::Vsock(cid, port) => {
            let stream = vsock()?;
            connect(stream.as_raw_fd(), &VsockAddr::new(*cid, *port)).with_context(place)?;
            Ok(File::from(stream))
        }
        Endpoint::Guest(path, port) => {
            let mut stream = UnixStream::connect(path).with_context(place)?;
            writeln!(stream, "CONNECT {port}")?;
            let mut line = String::new();
            // The server is silent before it is asked: nothing behind the line is lost in the buffer.
            BufReader::new(&stream).read_line(&mut line)?;
            ensure!(line.starts_with("OK "), "port {port} of the guest answered {line:?}");
            Ok(File::from(OwnedFd::from(stream)))
        }
    }
}

fn ask(mut stream: File, options: &TransferOptions) -> Result<()> {
    let numbers = [options.rounds, options.up, options.down, u64::from(options.keep_open)];
    stream.write_all(&numbers.map(u64::to_le_bytes).concat())?;
    let mut byte = [0];
    for _ in 0..options.rounds {
        stream.write_all(&[7])?;
        stream.read_exact(&mut byte).context("an answer")?;
    }
    let content = content();
    send(&mut stream, &content, options.up)?;
    if !options.keep_open {
        shutdown(stream.as_raw_fd(), Shutdown::Write)?;
    }
    receive(&mut stream, &content, options.down)
}

fn answer(mut stream: File) -> Result<()> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).context("the header")?;
    let [rounds, up, down, keep_open] = [0, 8, 16, 24].map(|at| {
        let mut number = [0; 8];
        number.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(number)
    });
    let mut byte = [0];
    for _ in 0..rounds {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
    let content = content();
    if keep_open == 0 {
        receive(&mut stream, &content, up)?;
    } else {
        receive(&mut (&mut stream).take(up), &content, up)?;
    }
    send(&mut stream, &content, down)
}

/// Two periods, so that a block may start anywhere in the first.
fn content() -> Vec<u8> {
    let mut content = vec![0; PERIOD];
    pattern::fill(&mut content, 0, 1);
    content.extend_from_within(..);
    content
}

fn send(to: &mut impl Write, content: &[u8], bytes: u64) -> Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let at = (sent % PERIOD as u64) as usize;
        let len = (bytes - sent).min(BLOCK as u64) as usize;
        to.write_all(&content[at..at + len]).with_context(|| format!("sending byte {sent}"))?;
        sent += len as u64;
    }
    Ok(())
}

/// Receives to the end and compares.
fn receive(from: &mut impl Read, content: &[u8], bytes: u64) -> Result<()> {
    let mut received = 0;
    let mut buffer = vec![0; BLOCK];
    loop {
        let len = from.read(&mut buffer).with_context(|| format!("receiving byte {received}"))?;
        if len == 0 {
            break;
        }
        let at = (received % PERIOD as u64) as usize;
        ensure!(buffer[..len] == content[at..at + len], "other bytes than were sent, from {received} on");
        received += len as u64;
    }
    ensure!(received == bytes, "{received} bytes arrived instead of {bytes}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(connections: u64, endpoint: Endpoint, keep_open: bool) -> TransferOptions {
        TransferOptions { endpoint, connections, up: 1_000_003, down: 2_000_001, rounds: 3, keep_open }
    }

    #[test]
    fn what_is_sent_arrives_over_many_connections() {
        passes(false);
    }

    #[test]
    fn what_is_sent_arrives_while_no_half_is_closed() {
        passes(true);
    }

    fn passes(keep_open: bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket").display().to_string();
        let endpoint: Endpoint = format!("unix:{path}").parse().unwrap();
        let accept = listener(&endpoint).unwrap();
        let client = thread::spawn(move || transfer(&options(4, endpoint, keep_open)));
        let answers: Vec<_> =
            (0..4).map(|_| accept().unwrap()).map(|s| thread::spawn(|| answer(s))).collect();
        client.join().unwrap().unwrap();
        answers.into_iter().for_each(|answer| answer.join().unwrap().unwrap());
    }

    #[test]
    fn a_lost_piece_and_a_missing_end_are_found() {
        let content = content();
        let mut sent = Vec::new();
        send(&mut sent, &content, 200_000).unwrap();
        assert!(receive(&mut &sent[..], &content, 200_000).is_ok());
        let error = receive(&mut &sent[..199_999], &content, 200_000).unwrap_err().to_string();
        assert_eq!(error, "199999 bytes arrived instead of 200000");
        sent.drain(100_000..100_512);
        assert!(receive(&mut &sent[..], &content, 199_488).unwrap_err().to_string().contains("other bytes"));
    }

    #[test]
    fn endpoints_are_told_apart() {
        assert!(matches!("tcp:10.0.0.1:80".parse(), Ok(Endpoint::Tcp(address)) if address == "10.0.0.1:80"));
        assert!(matches!("vsock:2:1024".parse(), Ok(Endpoint::Vsock(2, 1024))));
        assert!(matches!("guest:/a:b:5".parse(), Ok(Endpoint::Guest(path, 5)) if path == "/a:b"));
        assert!("udp:1:2".parse::<Endpoint>().is_err());
    }
}
