//! Serves a console to clients that come and go.
//!
//! The first client has the keyboard until it leaves, and the guest waits for it when it does not keep up (flow
//! control, as at a terminal). All others look on; one that falls behind what is kept misses the part in between. What
//! was shown last is repeated to whoever comes. Without clients the guest goes on, as with a terminal switched off.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use gvmm_plugin_api::services::{Console, ConsoleSize};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use super::client::{Client, Typed};
use super::history::History;
use super::line::{Delivery, Line, Port};
use super::port::{Keyboard, event_pair, screen};
use super::sink::Sink;
use crate::thread;

/// Clients at a time; more are turned away.
const MAX_CLIENTS: usize = 32;
/// Bytes that are read at a time.
const CHUNK: usize = 16 << 10;

/// Where clients come from.
pub(super) trait Door: Send + 'static {
    /// Readable when a client may have come.
    fn fd(&self) -> BorrowedFd<'_>;

    /// The next client that has come, if there is one; its descriptor is non-blocking.
    fn arrived(&mut self) -> io::Result<Option<Arc<OwnedFd>>>;
}

/// A console with clients, served by a thread until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    size: ConsoleSize,
    done: mpsc::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    line: Line,
    /// Devices that the thread does not know yet.
    new: Mutex<Vec<Screen>>,
}

/// What a device shows.
#[derive(Debug)]
struct Screen {
    place: usize,
    pipe: OwnedFd,
    log: Option<Sink>,
}

impl Server {
    /// Serves whoever comes through the door; `size` tells the size of their windows.
    pub(super) fn start(door: impl Door, size: ConsoleSize) -> io::Result<Self> {
        let shared = Arc::new(Shared { line: Line::new()?, new: Mutex::default() });
        let (ended, done) = mpsc::channel();
        let worker = Worker {
            shared: shared.clone(),
            door,
            known_size: size.get(),
            size: size.clone(),
            screens: Vec::new(),
            clients: Vec::new(),
            history: History::default(),
            chunk: vec![0; CHUNK],
            door_rests: false,
        };
        thread::spawn("console-server", move || {
            worker.run();
            // Nobody waits when the hub is gone already.
            let _ = ended.send(());
        })?;
        Ok(Self { shared, size, done })
    }

    /// Adds a device.
    pub(super) fn open(&self, log: Option<&Path>) -> Result<Console, String> {
        let failed = |error: io::Error| format!("cannot attach a console: {error}");
        let (keyboard, input) = Keyboard::new().map_err(failed)?;
        let (resized, told) = event_pair().map_err(failed)?;
        let (pipe, output) = screen().map_err(failed)?;
        let log = log.map(Sink::file).transpose().map_err(|error| error.to_string())?;
        let place = self.shared.line.add(Port::new(keyboard, resized));
        let mut new = self.shared.new.lock().unwrap_or_else(PoisonError::into_inner);
        new.push(Screen { place, pipe, log });
        drop(new);
        self.shared.line.changed.signal();
        Ok(Console { input, output, resized: Some(told), size: self.size.clone() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.line.close();
        // The thread ends by itself within its own patience.
        let _ = self.done.recv();
    }
}

struct Worker<D> {
    shared: Arc<Shared>,
    door: D,
    size: ConsoleSize,
    known_size: (u16, u16),
    screens: Vec<Screen>,
    /// In the order in which they came.
    clients: Vec<Client>,
    history: History,
    chunk: Vec<u8>,
    /// The door failed: it is left alone until something else has happened.
    door_rests: bool,
}

/// What `poll` watches.
#[derive(Debug, Clone, Copy)]
enum Source {
    Changed,
    Door,
    /// Room for what was typed.
    Room,
    Client(usize),
    Screen(usize),
}

impl<D: Door> Worker<D> {
    fn run(mut self) {
        while !self.shared.line.closed() {
            let ready = self.wait(PollTimeout::NONE);
            self.handle(&ready);
        }
        self.finish();
    }

    /// Shows what devices have shown until now, as far as clients take it in time.
    fn finish(&mut self) {
        // A device that was added last may have shown something already.
        self.adopt();
        let deadline = Instant::now() + super::PATIENCE;
        let mut timeout = PollTimeout::ZERO;
        loop {
            let ready = self.wait(timeout);
            timeout = PollTimeout::ZERO;
            if self.handle(&ready) {
                continue;
            }
            if !self.clients.iter().any(|client| client.lags(&self.history)) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("the end of the console output is lost: a client does not read it");
                return;
            }
            timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        }
    }

    /// Waits for something to do.
    fn wait(&self, timeout: PollTimeout) -> Vec<(Source, PollFlags)> {
        let delivery = self.shared.line.deliver(&[]);
        let watched = self.watched(&delivery);
        let mut fds: Vec<_> = watched.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        if poll(&mut fds, timeout).is_err() {
            return Vec::new();
        }
        let ready = watched.iter().zip(&fds).map(|((source, ..), fd)| (*source, fd.revents()));
        ready.filter_map(|(source, flags)| Some((source, flags.filter(|flags| !flags.is_empty())?))).collect()
    }

    fn watched<'a>(&'a self, delivery: &'a Delivery) -> Vec<(Source, BorrowedFd<'a>, PollFlags)> {
        let mut watched = vec![(Source::Changed, self.shared.line.changed.as_fd(), PollFlags::POLLIN)];
        if !self.door_rests {
            watched.push((Source::Door, self.door.fd(), PollFlags::POLLIN));
        }
        if let Delivery::Full(room) = delivery {
            watched.push((Source::Room, room.as_fd(), PollFlags::POLLOUT));
        }
        let typist = self.typist();
        for (index, client) in self.clients.iter().enumerate() {
            // What the typist types waits on its side while the device has no room.
            let must_wait = typist == Some(index) && !matches!(delivery, Delivery::Done);
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, client.may_type() && !must_wait);
            flags.set(PollFlags::POLLOUT, client.lags(&self.history));
            // One that hangs up is always reported: look only if something can be done about it.
            if !must_wait || !flags.is_empty() {
                watched.push((Source::Client(index), client.fd(), flags));
            }
        }
        if self.room() > 0 {
            let screens = self.screens.iter().enumerate();
            watched.extend(
                screens.map(|(i, screen)| (Source::Screen(i), screen.pipe.as_fd(), PollFlags::POLLIN)),
            );
        }
        watched
    }

    /// Does what can be done; whether devices have shown something.
    fn handle(&mut self, ready: &[(Source, PollFlags)]) -> bool {
        self.door_rests = false;
        let mut shown = false;
        let mut ended = Vec::new();
        for &(source, flags) in ready {
            match source {
                Source::Changed => self.adopt(),
                Source::Door => self.admit(),
                // `wait` delivers.
                Source::Room => {}
                Source::Client(index) => self.hear(index, flags),
                Source::Screen(index) => match self.show(index) {
                    Ok(()) => shown = true,
                    Err(()) => ended.push(index),
                },
            }
        }
        for index in ended.into_iter().rev() {
            self.screens.remove(index);
        }
        for client in &mut self.clients {
            client.send(&self.history);
        }
        self.clients.retain(|client| !client.is_gone());
        shown
    }

    fn adopt(&mut self) {
        self.shared.line.changed.take();
        let mut new = self.shared.new.lock().unwrap_or_else(PoisonError::into_inner);
        self.screens.append(&mut new);
    }

    fn admit(&mut self) {
        loop {
            match self.door.arrived() {
                Ok(None) => return,
                Ok(Some(fd)) if self.clients.len() < MAX_CLIENTS => self.clients.push(Client::new(fd)),
                Ok(Some(_)) => {
                    tracing::warn!("a console client is turned away: {MAX_CLIENTS} are there already")
                }
                Err(error) => {
                    tracing::warn!("a console client cannot come in: {error}");
                    // It stays at the door; without a pause this would be all that the thread does.
                    self.door_rests = true;
                    return;
                }
            }
        }
    }

    /// The client that has the keyboard.
    fn typist(&self) -> Option<usize> {
        self.clients.iter().position(Client::may_type)
    }

    /// Takes what a client has typed; passes it on if that client has the keyboard.
    fn hear(&mut self, index: usize, flags: PollFlags) {
        let has_keyboard = self.typist() == Some(index);
        let client = &mut self.clients[index];
        let hung_up = flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
        if !client.may_type() {
            if hung_up {
                client.close();
            }
            return;
        }
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match client.read(&mut self.chunk) {
            Typed::Bytes(len) if has_keyboard => {
                self.shared.line.deliver(&self.chunk[..len]);
            }
            Typed::End if hung_up => client.close(),
            Typed::Bytes(_) | Typed::Nothing | Typed::End => {}
        }
        let size = self.size.get();
        if size != self.known_size {
            self.known_size = size;
            self.shared.line.resized();
        }
    }

    /// Bytes that may be shown without loss for the one who has the keyboard.
    fn room(&self) -> usize {
        self.typist().map_or(usize::MAX, |index| self.clients[index].room(&self.history))
    }

    /// Reads once what a device shows; an error when it shows nothing any more.
    fn show(&mut self, index: usize) -> Result<(), ()> {
        let room = self.room().min(CHUNK);
        if room == 0 {
            return Ok(());
        }
        let screen = &mut self.screens[index];
        match read(&screen.pipe, &mut self.chunk[..room]) {
            Ok(0) => Err(()),
            Ok(len) => {
                let bytes = &self.chunk[..len];
                if let Some(log) = &mut screen.log {
                    log.write(bytes);
                }
                self.history.append(bytes);
                self.shared.line.shown(screen.place, bytes);
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(error) => {
                tracing::warn!("console output ends: {}", error.desc());
                Err(())
            }
        }
    }
}
