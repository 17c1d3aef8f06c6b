//! The socket at which programs of the host see and set the lines.
//!
//! A client is told all lines, then each change: `LINE in|out 0|1`. It sets the outside of a line by `set LINE 0|1`.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::device::Lines;

/// Lines of the controller.
const LINES: u8 = 8;
/// Clients at a time; more are hung up on.
pub(crate) const MAX_CLIENTS: usize = 8;
/// Longest command in bytes.
const MAX_COMMAND: usize = 64;

/// The socket before anybody listens; its file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    pub(crate) fn bind(path: &Path) -> Result<Self, String> {
        let error = |e: std::io::Error| match e.kind() {
            ErrorKind::AddrInUse => format!("socket {}: there is a file already: remove it", path.display()),
            _ => format!("cannot make the socket {}: {e}", path.display()),
        };
        let socket = UnixListener::bind(path).map_err(error)?;
        let listener = Self { socket, path: path.to_owned() };
        listener.socket.set_nonblocking(true).map_err(error)?;
        Ok(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The thread that serves the socket. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Control {
    lines: Arc<Lines>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Control {
    pub(crate) fn start(listener: Listener, lines: Arc<Lines>, services: &Services) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let state = lines.state();
        let server =
            Server { listener, lines: lines.clone(), stop: stop.clone(), told: state, clients: Vec::new() };
        let thread = services.spawn("pl061", move || server.run())?;
        Ok(Self { lines, stop, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.lines.changed.signal();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: Listener,
    lines: Arc<Lines>,
    stop: Arc<AtomicBool>,
    /// Outputs and levels that the clients know of.
    told: (u8, u8),
    clients: Vec<Client>,
}

impl Server {
    fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.wait().and_then(|()| self.accept()) {
                tracing::warn!("the socket is no longer served: {error}");
                return;
            }
            self.lines.changed.take();
            let lines = &self.lines;
            self.clients.retain_mut(|client| client.listen(lines));
            self.tell();
        }
    }

    /// Waits for a change, a client or a command; which it was, the non-blocking calls find out.
    fn wait(&self) -> std::io::Result<()> {
        let sources = [self.lines.changed.as_fd(), self.listener.socket.as_fd()];
        let sources = sources.into_iter().chain(self.clients.iter().map(|client| client.stream.as_fd()));
        let mut fds: Vec<_> = sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) -> std::io::Result<()> {
        let stream = match self.listener.socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {
                    return Ok(());
                }
                _ => return Err(error),
            },
        };
        if self.clients.len() == MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
            return Ok(());
        }
        let mut client = Client { stream, command: Vec::new() };
        if client.say(&describe(self.told, 0xff)) {
            self.clients.push(client);
        }
        Ok(())
    }

    /// Tells the clients what has changed.
    fn tell(&mut self) {
        let now = self.lines.state();
        let changed = (now.0 ^ self.told.0) | (now.1 ^ self.told.1);
        self.told = now;
        let text = describe(now, changed);
        if !text.is_empty() {
            self.clients.retain_mut(|client| client.say(&text));
        }
    }
}

/// A text line for each line of the mask.
fn describe((outputs, levels): (u8, u8), mask: u8) -> String {
    let set = |lines: u8, line: u8| lines >> line & 1 != 0;
    let describe = |line| {
        let direction = if set(outputs, line) { "out" } else { "in" };
        format!("{line} {direction} {}\n", u8::from(set(levels, line)))
    };
    (0..LINES).filter(|line| set(mask, *line)).map(describe).collect()
}

/// A program of the host.
struct Client {
    stream: UnixStream,
    /// What has come of the next command.
    command: Vec<u8>,
}

impl Client {
    /// Does some of what the client asks for; whether it is still there.
    fn listen(&mut self, lines: &Lines) -> bool {
        let mut bytes = [0; 256];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(len) => bytes[..len].iter().all(|&byte| self.take(byte, lines)),
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Takes one byte of a command, and obeys when it is the last.
    fn take(&mut self, byte: u8, lines: &Lines) -> bool {
        if byte != b'\n' {
            self.command.push(byte);
            return self.command.len() <= MAX_COMMAND;
        }
        let command = String::from_utf8_lossy(&std::mem::take(&mut self.command)).into_owned();
        match parse(&command) {
            Some((line, high)) => {
                lines.set_outside(line, high);
                true
            }
            None => self.say(&format!("error: '{}' is not `set LINE 0|1`\n", command.trim())),
        }
    }

    /// Writes to the client; one that does not read what it is told is hung up on.
    fn say(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).is_ok()
    }
}

/// The line and its level of a command.
fn parse(command: &str) -> Option<(u8, bool)> {
    let mut words = command.split_ascii_whitespace();
    words.next().filter(|word| *word == "set")?;
    let line = words.next()?.parse().ok().filter(|line| *line < LINES)?;
    let high = match words.next()? {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    words.next().is_none().then_some((line, high))
}
