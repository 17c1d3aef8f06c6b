//! The devices that share one attachment, and who of them has the keyboard.
//!
//! Everyone's output is shown. What is typed goes to one device, the *live* one: the first, until a later one has shown
//! something, since from then on the guest uses that one (a serial port for early messages, a faster console once its
//! driver is up). What was typed ahead moves along, so nothing is lost at the hand-over.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::Event;

use super::port::Keyboard;

/// The devices on one attachment. Any thread may call any method.
#[derive(Debug)]
pub(super) struct Line {
    state: Mutex<State>,
    /// Signalled when the thread that reads what is typed has to look at the line.
    pub(super) changed: Event,
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

/// One device.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) keyboard: Keyboard,
    pub(super) resized: Event,
}

#[derive(Debug, Default)]
struct State {
    ports: Vec<Port>,
    live: usize,
    /// Typed, and not yet taken by the live device.
    held: Vec<u8>,
    /// Nobody types any more.
    ended: bool,
    closed: bool,
}

impl Line {
    /// A line without devices.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), changed: Event::new()? })
    }

    /// Adds a device; its place on the line.
    pub(super) fn add(&self, port: Port) -> usize {
        let mut state = self.state();
        state.ports.push(port);
        self.changed.signal();
        state.ports.len() - 1
    }

    /// The device at this place has shown something.
    pub(super) fn shown(&self, place: usize) {
        let mut state = self.state();
        if place > state.live {
            state.switch(place);
            self.changed.signal();
        }
    }

    /// Gives the keyboard to the next device.
    pub(super) fn switch_to_next(&self) {
        let mut state = self.state();
        let next = (state.live + 1) % state.ports.len().max(1);
        state.switch(next);
    }

    /// Types as much as the live device takes.
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

    /// Asks the threads of the line to end.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.signal();
    }

    /// Whether the threads are to end.
    pub(super) fn closed(&self) -> bool {
        self.state().closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives the keyboard to a device, with what the one before has not read.
    fn switch(&mut self, place: usize) {
        if let Some(port) = self.ports.get(self.live) {
            let mut unread = port.keyboard.take_back();
            unread.append(&mut self.held);
            self.held = unread;
        }
        self.live = place;
    }
}
