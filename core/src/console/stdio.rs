//! Standard input and output, shared by any number of devices.
//!
//! Everyone's output is shown. What is typed goes to one device, the *live* one: the first, until a later one has shown
//! something, since from then on the guest uses that one (a serial port for early messages, a faster console once its
//! driver is up). What was typed ahead moves along, so nothing is lost at the hand-over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::{Console, ConsoleSize};

use super::job_control::JobControl;
use super::port::{Keyboard, event_pair, screen};
use super::pump::Pump;
use super::sink::Sink;
use super::terminal::{self, RawTerminal};
use super::{escape, keyboard};

/// Called when the user wants to leave.
pub(super) type Leave = Arc<dyn Fn() + Send + Sync>;

/// The devices on standard input and output.
pub(super) struct Stdio {
    shared: Arc<Shared>,
    pumps: Vec<Pump>,
    job_control: Option<JobControl>,
    _terminal: Option<RawTerminal>,
}

/// What the threads share with [`Stdio`].
pub(super) struct Shared {
    state: Mutex<State>,
    /// Signalled when `state` has changed under the keyboard thread.
    pub(super) changed: Event,
    pub(super) leave: Leave,
}

/// How far what was typed has come.
pub(super) enum Delivery {
    /// The device has it all.
    Done,
    /// The device takes no more until this is writable.
    Full(Arc<OwnedFd>),
    /// There is no device yet.
    NoDevice,
}

#[derive(Default)]
struct State {
    ports: Vec<Port>,
    live: usize,
    /// Typed, and not yet taken by the live device.
    held: Vec<u8>,
    /// Nobody types any more.
    ended: bool,
    closed: bool,
}

struct Port {
    keyboard: Keyboard,
    resized: Event,
}

impl Stdio {
    /// Takes standard input and output. Nothing is read before the first device is there.
    pub(super) fn new(leave: Leave) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Event::new()?, leave });
        let terminal = RawTerminal::take()?;
        let job_control = terminal.is_some().then(|| JobControl::start(shared.clone())).transpose()?;
        if terminal.is_some() {
            terminal::say(escape::GREETING);
        }
        keyboard::start(shared.clone(), terminal.is_some())?;
        Ok(Self { shared, pumps: Vec::new(), job_control, _terminal: terminal })
    }

    /// Adds a device.
    pub(super) fn open(&mut self, log: Option<&Path>) -> Result<Console, String> {
        let failed = |error: io::Error| format!("cannot attach a console to standard output: {error}");
        let (keyboard, input) = Keyboard::new().map_err(failed)?;
        let (resized, told) = event_pair().map_err(failed)?;
        let log = log.map(Sink::file).transpose().map_err(|error| error.to_string())?;
        let index = self.shared.add(Port { keyboard, resized });
        let output = if index == 0 && log.is_none() {
            io::stdout().as_fd().try_clone_to_owned().map_err(failed)?
        } else {
            let (shown, output) = screen().map_err(failed)?;
            let mut sinks = vec![Sink::stdout().map_err(failed)?];
            sinks.extend(log);
            let shared = self.shared.clone();
            self.pumps.push(Pump::start(shown, sinks, move || shared.make_live(index)).map_err(failed)?);
            output
        };
        Ok(Console { input, output, resized: Some(told), size: ConsoleSize::new(terminal::size) })
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        for pump in self.pumps.drain(..) {
            pump.finish();
        }
        drop(self.job_control.take());
        self.shared.state().closed = true;
        self.shared.changed.signal();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, port: Port) -> usize {
        let mut state = self.state();
        state.ports.push(port);
        self.changed.signal();
        state.ports.len() - 1
    }

    /// Gives the keyboard to a device, with what the one before has not read.
    fn make_live(&self, index: usize) {
        let mut state = self.state();
        if index <= state.live {
            return;
        }
        state.switch(index);
        self.changed.signal();
    }

    /// Gives the keyboard to the next device.
    pub(super) fn switch_to_next(&self) {
        let mut state = self.state();
        let next = (state.live + 1) % state.ports.len().max(1);
        state.switch(next);
    }

    /// Whether the threads are to end.
    pub(super) fn closed(&self) -> bool {
        self.state().closed
    }

    /// Types as much as the live device takes; what to wait for if there is more.
    pub(super) fn deliver(&self, typed: &[u8]) -> Delivery {
        let mut state = self.state();
        state.held.extend_from_slice(typed);
        let State { ports, live, held, ended, .. } = &mut *state;
        let Some(port) = ports.get_mut(*live) else { return Delivery::NoDevice };
        if let Some(room) = port.keyboard.type_in(held) {
            return Delivery::Full(room);
        }
        if *ended {
            port.keyboard.hang_up();
        }
        Delivery::Done
    }

    /// Nobody will type any more.
    pub(super) fn end_input(&self) {
        self.state().ended = true;
    }

    /// The window has another size.
    pub(super) fn resized(&self) {
        for port in &self.state().ports {
            port.resized.signal();
        }
    }
}

impl State {
    fn switch(&mut self, index: usize) {
        if let Some(port) = self.ports.get(self.live) {
            let mut unread = port.keyboard.take_back();
            unread.append(&mut self.held);
            self.held = unread;
        }
        self.live = index;
    }
}
