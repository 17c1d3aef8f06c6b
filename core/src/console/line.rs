//! The devices that share one attachment, and who of them has the keyboard.
//!
//! Everyone's output is shown. What is typed goes to one device, the *live* one: the first, until a later one has shown
//! something, since from then on the guest uses that one (a serial port for early messages, a faster console once its
//! driver is up). What was typed ahead moves along, so nothing is lost at the hand-over.
//!
//! It may be that only the kernel moves on, and the programs that read what is typed stay. They are known by their
//! prompt, output that stops within a line: a device that shows one gets the keyboard back from one that shows none,
//! until the user has typed at a prompt.

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
    keyboard: Keyboard,
    resized: Event,
    /// It has shown something.
    used: bool,
    /// Its output stopped within a line, as that of a program does that waits for input.
    prompts: bool,
}

impl Port {
    pub(super) fn new(keyboard: Keyboard, resized: Event) -> Self {
        Self { keyboard, resized, used: false, prompts: false }
    }
}

#[derive(Debug, Default)]
struct State {
    ports: Vec<Port>,
    live: usize,
    /// The user has typed at a prompt of the live device.
    settled: bool,
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
    pub(super) fn shown(&self, place: usize, bytes: &[u8]) {
        let mut state = self.state();
        let Some(port) = state.ports.get_mut(place) else { return };
        let first = !std::mem::replace(&mut port.used, true);
        port.prompts = !bytes.ends_with(b"\n");
        if state.belongs_to(place, first) {
            state.switch(place);
            self.changed.signal();
        }
    }

    /// Gives the keyboard to the next device.
    pub(super) fn switch_to_next(&self) {
        let mut state = self.state();
        let next = (state.live + 1) % state.ports.len().max(1);
        state.switch(next);
        state.settled = true;
    }

    /// Types as much as the live device takes.
    pub(super) fn deliver(&self, typed: &[u8]) -> Delivery {
        let mut state = self.state();
        state.held.extend_from_slice(typed);
        let State { ports, live, settled, held, ended, .. } = &mut *state;
        let Some(port) = ports.get_mut(*live) else { return Delivery::NoDevice };
        *settled |= port.prompts && !held.is_empty();
        if let Some(room) = port.keyboard.type_in(held) {
            return Delivery::Full(room);
        }
        if *ended {
            port.keyboard.hang_up();
        }
        Delivery::Done
    }

    /// Whether there are devices and none of them has shown anything.
    pub(super) fn is_silent(&self) -> bool {
        let state = self.state();
        !state.ports.is_empty() && !state.ports.iter().any(|port| port.used)
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
    /// Whether the keyboard goes to a device that has shown something, for the first time or again.
    fn belongs_to(&self, place: usize, first: bool) -> bool {
        let prompts = |place: usize| self.ports.get(place).is_some_and(|port| port.prompts);
        let asks_alone = prompts(place) && !prompts(self.live);
        place != self.live && ((first && place > self.live) || (asks_alone && !self.settled))
    }

    /// Gives the keyboard to a device, with what the one before has not read.
    fn switch(&mut self, place: usize) {
        if let Some(port) = self.ports.get(self.live) {
            let mut unread = port.keyboard.take_back();
            unread.append(&mut self.held);
            self.held = unread;
        }
        self.live = place;
        self.settled = false;
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::read;

    use super::*;
    use crate::console::port::event_pair;

    /// A line with a UART and a faster console, and their ends of it.
    fn two() -> (Line, [OwnedFd; 2]) {
        let line = Line::new().unwrap();
        let device = || {
            let (keyboard, input) = Keyboard::new().unwrap();
            line.add(Port::new(keyboard, event_pair().unwrap().0));
            input
        };
        let inputs = [device(), device()];
        (line, inputs)
    }

    /// What a device can read after this was typed.
    fn typed(line: &Line, text: &str, device: &OwnedFd) -> String {
        line.deliver(text.as_bytes());
        let mut bytes = [0; 64];
        let len = read(device, &mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn is_silent_until_a_device_shows_something() {
        assert!(!Line::new().unwrap().is_silent());
        let (line, _inputs) = two();
        assert!(line.is_silent());
        line.shown(1, b"kernel\n");
        assert!(!line.is_silent());
    }

    #[test]
    fn the_keyboard_comes_back_from_a_console_that_only_the_kernel_uses() {
        let (line, [uart, fast]) = two();
        line.shown(0, b"early\n");
        line.shown(1, b"kernel\n");
        assert_eq!(typed(&line, "a", &fast), "a");
        line.shown(0, b"login: ");
        line.shown(1, b"kernel\n");
        assert_eq!(typed(&line, "b", &uart), "b");
    }

    #[test]
    fn the_later_console_keeps_the_keyboard_while_it_shows_a_prompt() {
        let (line, [_uart, fast]) = two();
        line.shown(1, b"# ");
        line.shown(0, b"login: ");
        assert_eq!(typed(&line, "a", &fast), "a");
    }

    #[test]
    fn who_has_typed_at_a_prompt_stays_there() {
        let (line, [uart, fast]) = two();
        line.shown(1, b"# ");
        assert_eq!(typed(&line, "cat\n", &fast), "cat\n");
        line.shown(1, b"cat\n");
        line.shown(0, b"[ 1.0] message in ");
        assert_eq!(typed(&line, "a", &fast), "a");
        line.switch_to_next();
        line.shown(1, b"# ");
        assert_eq!(typed(&line, "b", &uart), "b");
    }

    #[test]
    fn what_was_typed_ahead_moves_along() {
        let (line, [_uart, fast]) = two();
        line.shown(0, b"boot> ");
        line.deliver(b"ahead");
        line.shown(1, b"kernel\n");
        assert_eq!(typed(&line, "", &fast), "ahead");
    }
}
