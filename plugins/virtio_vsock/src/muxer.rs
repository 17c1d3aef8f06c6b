//! All streams of a device.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use gvmm_plugin_api::metrics::Counter;
use gvmm_plugin_api::queue::{Chain, sub_ranges, total_len};
use gvmm_plugin_api::tracing::debug;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::connection::{Connection, Read, State};
use crate::greeting::{Greeting, Wish};
use crate::packet::{HEADER, Header, Op, Ports, TYPE_STREAM};

/// Most streams at a time.
pub(crate) const MAX_CONNECTIONS: usize = 1023;
/// Packets without data that wait for the guest at most, before no more of its own packets are looked at.
const MAX_CONTROL: usize = 512;
/// First port of the host that is given to a program that connects.
const FIRST_PORT: u32 = 1 << 30;
/// Token of the listening socket in the epoll; no stream has these ports.
const LISTENER: u64 = u64::MAX;
/// Port of the guest in the token of a program that has not named one (`VMADDR_PORT_ANY`).
const ANY_PORT: u32 = u32::MAX;

/// Counts for statistics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: Counter,
    pub(crate) refused: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) tx_bytes: Counter,
}

/// All streams of a device, and the socket that programs of the host connect to.
#[derive(Debug)]
pub(crate) struct Muxer {
    cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: Arc<Epoll>,
    counters: Arc<Counters>,
    /// Programs that have not named a port yet, by the port that they got.
    greetings: HashMap<u32, Greeting>,
    connections: HashMap<Ports, Connection>,
    /// Packets without data for the guest.
    control: VecDeque<Header>,
    /// Streams that may have data for the guest.
    readable: VecDeque<Ports>,
    next_port: u32,
}

fn token(ports: Ports) -> u64 {
    u64::from(ports.host) << 32 | u64::from(ports.guest)
}

fn ports(token: u64) -> Ports {
    Ports { host: (token >> 32) as u32, guest: token as u32 }
}

impl Muxer {
    /// Streams of the guest with this address, reached through a socket that listens at `path`.
    pub(crate) fn new(
        cid: u64,
        path: &Path,
        listener: UnixListener,
        epoll: Arc<Epoll>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            cid,
            path: path.to_owned(),
            listener,
            epoll,
            counters,
            greetings: HashMap::new(),
            connections: HashMap::new(),
            control: VecDeque::new(),
            readable: VecDeque::new(),
            next_port: FIRST_PORT,
        })
    }

    /// Ends all streams: the guest has gone or starts anew.
    pub(crate) fn clear(&mut self) {
        self.greetings.clear();
        self.connections.clear();
        self.control.clear();
        self.readable.clear();
    }

    /// Whether there may be something for the guest.
    pub(crate) fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.readable.is_empty()
    }

    /// Whether the guest must take packets before more of its own are looked at.
    pub(crate) fn is_full(&self) -> bool {
        self.control.len() >= MAX_CONTROL
    }

    /// Looks at what has happened to the sockets.
    pub(crate) fn poll(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept();
                continue;
            }
            let ports = ports(event.data());
            if ports.guest == ANY_PORT {
                self.greet(ports.host);
            } else {
                self.socket_ready(ports, event.events());
            }
        }
        Ok(())
    }

    /// Takes one program; the epoll reports further ones again.
    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let host = self.free_port();
        let full = self.connections.len() + self.greetings.len() >= MAX_CONNECTIONS;
        let token = token(Ports { host, guest: ANY_PORT });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        if full || stream.set_nonblocking(true).is_err() || self.epoll.add(&stream, event).is_err() {
            self.counters.refused.add(1);
            return;
        }
        self.greetings.insert(host, Greeting::new(stream));
    }

    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == u32::MAX - 1 { FIRST_PORT } else { port + 1 };
            // There are a million times more ports than streams.
            let taken = self.connections.keys().any(|ports| ports.host == port);
            if !taken && !self.greetings.contains_key(&port) {
                return port;
            }
        }
    }

    fn greet(&mut self, host: u32) {
        let Some(greeting) = self.greetings.get_mut(&host) else { return };
        let wish = greeting.read();
        if wish == Wish::Unknown {
            return;
        }
        let Some(greeting) = self.greetings.remove(&host) else { return };
        let Wish::Port(guest) = wish else {
            self.counters.refused.add(1);
            return;
        };
        // It comes back with the token of a stream.
        let _ = self.epoll.delete(&greeting.stream);
        let connection = Connection::new(Ports { host, guest }, greeting.stream, State::Requested);
        self.insert(connection, Op::Request);
    }

    /// Adds a stream, and tells the guest.
    fn insert(&mut self, mut connection: Connection, op: Op) {
        let ports = connection.ports;
        let event = EpollEvent::new(EpollFlags::EPOLLONESHOT, token(ports));
        if self.epoll.add(connection.stream(), event).is_err() {
            return self.control.push_back(Header::new(ports, Op::Reset));
        }
        connection.armed = Some(EpollFlags::EPOLLONESHOT);
        self.control.push_back(connection.header(op));
        self.connections.insert(ports, connection);
        self.counters.connections.add(1);
    }

    fn socket_ready(&mut self, ports: Ports, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        connection.armed = None;
        connection.gone |= events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if connection.flush().is_err() || connection.gone && connection.state == State::Requested {
            return self.reset(ports);
        }
        if events.contains(EpollFlags::EPOLLIN) {
            self.list(ports);
        }
        self.settle(ports);
    }

    /// Has the next free buffers of the guest filled from a stream.
    fn list(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && connection.should_list()
        {
            connection.listed = true;
            self.readable.push_back(ports);
        }
    }

    /// Ends a stream at once and tells the guest.
    fn reset(&mut self, ports: Ports) {
        self.connections.remove(&ports);
        self.control.push_back(Header::new(ports, Op::Reset));
    }

    /// After anything has happened to a stream: tells the guest of new room, ends what has ended, and has the epoll
    /// report what is of interest now.
    fn settle(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        if connection.settle() || connection.gone && connection.host_ended() {
            return self.reset(ports);
        }
        if connection.owes_credit() {
            connection.update_queued = true;
            self.control.push_back(Header::new(ports, Op::CreditUpdate));
        }
        if connection.gone {
            // The epoll would report it over and over.
            return self.list(ports);
        }
        let interest = connection.interest();
        if connection.armed != Some(interest) {
            let mut event = EpollEvent::new(interest, token(ports));
            if self.epoll.modify(connection.stream(), &mut event).is_err() {
                return self.reset(ports);
            }
            connection.armed = Some(interest);
        }
    }

    /// Handles a packet of the guest, with its data.
    pub(crate) fn handle(
        &mut self,
        header: &Header,
        memory: &GuestMemory,
        data: &[GuestRange],
    ) -> Result<(), MemoryError> {
        let ports = header.ports;
        let op = header.op.filter(|_| header.kind == TYPE_STREAM && ports.guest != ANY_PORT);
        if op == Some(Op::Request) {
            self.request(header);
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            if op != Some(Op::Reset) {
                self.control.push_back(Header::new(ports, Op::Reset));
            }
            return Ok(());
        };
        connection.take_credit(header);
        let sound = match op {
            Some(Op::Reset) => {
                self.connections.remove(&ports);
                return Ok(());
            }
            Some(Op::Response) => connection.state == State::Requested && connection.answered().is_ok(),
            Some(Op::Shutdown) => {
                connection.guest_shuts_down(header.flags);
                true
            }
            Some(Op::Data) => match connection.write(memory, data) {
                Ok(done) => done.is_some(),
                // The host's program is gone.
                Err(MemoryError::Io(_)) => false,
                Err(error) => return Err(error),
            },
            Some(Op::CreditUpdate) => true,
            Some(Op::CreditRequest) => {
                self.control.push_back(Header::new(ports, Op::CreditUpdate));
                true
            }
            Some(Op::Request) | None => false,
        };
        if sound {
            self.counters.tx_bytes.add(total_len(data));
            self.settle(ports);
        } else {
            self.reset(ports);
        }
        Ok(())
    }

    /// Connects the guest to the program that listens for a port.
    fn request(&mut self, header: &Header) {
        let ports = header.ports;
        let known = self.connections.contains_key(&ports);
        if known || self.connections.len() + self.greetings.len() >= MAX_CONNECTIONS {
            self.counters.refused.add(1);
            return self.reset(ports);
        }
        match dial(&self.path, ports.host) {
            Ok(stream) => {
                let mut connection = Connection::new(ports, stream, State::Open);
                connection.take_credit(header);
                self.insert(connection, Op::Response);
                self.settle(ports);
            }
            Err(error) => {
                debug!("port {}: nobody to connect the guest to: {error}", ports.host);
                self.counters.refused.add(1);
                self.control.push_back(Header::new(ports, Op::Reset));
            }
        }
    }

    /// Fills a buffer of the guest with the next packet; the bytes filled, `None` when there is no packet.
    pub(crate) fn fill(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<Option<u32>, MemoryError> {
        if let Some(header) = self.control.pop_front() {
            let header = match self.connections.get_mut(&header.ports) {
                Some(connection) => {
                    connection.update_queued &= header.op != Some(Op::CreditUpdate);
                    Header { flags: header.flags, ..connection.header(header.op.unwrap_or(Op::Reset)) }
                }
                None => header,
            };
            return self.put(memory, chain, header).map(Some);
        }
        let room: Vec<_> = sub_ranges(chain.writable(), HEADER as u64, u64::MAX).collect();
        while let Some(ports) = self.readable.pop_front() {
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            connection.listed = false;
            let header = match connection.read(memory, &room) {
                Ok(Read::Data(len)) => {
                    connection.listed = true;
                    self.readable.push_back(ports);
                    self.counters.rx_bytes.add(u64::from(len));
                    Some(Header { len, ..connection.header(Op::Data) })
                }
                Ok(Read::Ended(flags)) => Some(Header { flags, ..connection.header(Op::Shutdown) }),
                Ok(Read::NoCredit { ask: true }) => Some(connection.header(Op::CreditRequest)),
                Ok(Read::NoCredit { ask: false } | Read::Nothing) => None,
                Err(MemoryError::Io(_)) => {
                    self.connections.remove(&ports);
                    Some(Header::new(ports, Op::Reset))
                }
                Err(error) => return Err(error),
            };
            self.settle(ports);
            if let Some(header) = header {
                return self.put(memory, chain, header).map(Some);
            }
        }
        Ok(None)
    }

    fn put(&self, memory: &GuestMemory, chain: &Chain, header: Header) -> Result<u32, MemoryError> {
        chain.write(memory, 0, &header.to_guest(self.cid))?;
        Ok(HEADER as u32 + header.len)
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects to the program that listens for a port of the host, without waiting.
fn dial(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    let address = UnixAddr::new(name.as_os_str())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &address)?;
    Ok(UnixStream::from(fd))
}

/// Makes the socket that programs connect to; one that nobody listens at any more is replaced.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, String> {
    let place = path.display();
    let failed = |error: io::Error| format!("option 'socket': {place}: cannot listen: {error}");
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        other => return other.map_err(failed),
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)
        }
        _ => Err(format!(
            "option 'socket': {place} is in use: another gvmm listens there; choose another path"
        )),
    }
}

/// For tests: how many streams there are.
#[cfg(test)]
impl Muxer {
    pub(crate) fn len(&self) -> usize {
        self.connections.len() + self.greetings.len()
    }
}
