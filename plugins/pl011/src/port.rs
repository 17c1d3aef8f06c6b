//! The UART between its two ends: vCPU threads, which never wait for the host, and the pump thread, which does.
//!
//! A vCPU writes to the host itself when the guest waits for just that and the host takes it at once; all else is left
//! to the [`pump`](crate::pump). The lock is never held over a call that can block, and only one thread writes at a
//! time, so that bytes keep their order.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::tracing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::{TimeSpec, TimeValLike};

use crate::uart::Uart;

/// What the pump and the vCPUs share.
#[derive(Debug)]
pub(crate) struct Port {
    state: Mutex<State>,
    /// Non-blocking.
    pub(crate) input: OwnedFd,
    /// May block, unless `poll` says that it is writable and the write is small.
    pub(crate) output: OwnedFd,
    line: Interrupt,
    /// Calls the pump.
    pub(crate) wake: Event,
    pub(crate) stopping: AtomicBool,
    output_fails: AtomicBool,
    pub(crate) counters: Counters,
}

/// The UART and what the two sides have to know of each other.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) uart: Uart,
    /// The pump is writing the oldest unsent bytes.
    pub(crate) sending: bool,
    /// The output took no more; the pump waits until it does.
    pub(crate) blocked: bool,
    /// The pump knows that there are unsent bytes.
    pub(crate) output_known: bool,
    /// The pump has left the input alone until the guest wants it.
    pub(crate) input_paused: bool,
}

/// Counts for statistics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
    pub(crate) lost: Counter,
    pub(crate) overruns: Counter,
}

impl Counters {
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        vec![
            Metric::new("tx_bytes", self.sent.get()),
            Metric::new("rx_bytes", self.received.get()),
            Metric::new("tx_lost_bytes", self.lost.get()),
            Metric::new("overruns", self.overruns.get()),
        ]
    }
}

impl Port {
    pub(crate) fn new(input: OwnedFd, output: OwnedFd, line: Interrupt) -> std::io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            input,
            output,
            line,
            wake: Event::new()?,
            stopping: AtomicBool::new(false),
            output_fails: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back and tells the guest and the pump what they have to know.
    pub(crate) fn settle(&self, mut state: MutexGuard<'_, State>) {
        let edge = state.uart.take_edge();
        let more_output = !state.output_known && !state.uart.unsent().is_empty();
        let more_input = state.input_paused && state.uart.wants_input();
        state.output_known |= more_output;
        state.input_paused &= !more_input;
        drop(state);
        if edge {
            self.line.raise();
        }
        if more_output || more_input {
            self.wake.signal();
        }
    }

    /// Raises the line without a new cause.
    pub(crate) fn remind_guest(&self) {
        self.line.raise();
    }

    /// Sends what is unsent, as far as the host takes it at once. For vCPU threads.
    pub(crate) fn send_now(&self, state: &mut State) {
        if state.sending || state.blocked || state.uart.unsent().is_empty() {
            return;
        }
        if self.writable() {
            let bytes = unsent_bytes(&state.uart);
            state.uart.sent(self.write(&bytes));
        } else {
            state.blocked = true;
            self.wake.signal();
        }
    }

    /// Sends what is unsent, as far as the host takes it at once; the lock is not held meanwhile. For the pump.
    pub(crate) fn send(&self) {
        let mut state = self.lock();
        let bytes = unsent_bytes(&state.uart);
        // From here on no vCPU writes, so that the output stays as writable as it is found.
        state.sending = true;
        drop(state);
        let writable = self.writable();
        let sent = if writable { self.write(&bytes) } else { 0 };
        let mut state = self.lock();
        state.sending = false;
        state.blocked = !writable;
        state.uart.sent(sent);
        self.settle(state);
    }

    /// Whether the output takes a small write without blocking, be it by failing.
    fn writable(&self) -> bool {
        let mut output = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
        ppoll(&mut output, Some(TimeSpec::zero()), None).is_ok_and(|ready| ready > 0)
    }

    /// Writes to the host; how many bytes are off the line. An output that fails is one that nobody reads: the bytes
    /// are lost, but the guest goes on.
    fn write(&self, bytes: &[u8]) -> usize {
        match nix::unistd::write(&self.output, bytes) {
            Ok(count) => {
                self.output_fails.store(false, Ordering::Relaxed);
                self.counters.sent.add(count as u64);
                count
            }
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => {
                if !self.output_fails.swap(true, Ordering::Relaxed) {
                    tracing::warn!("console output fails, what the guest prints is lost: {}", error.desc());
                }
                self.counters.lost.add(bytes.len() as u64);
                bytes.len()
            }
        }
    }
}

/// A copy of the bytes on their way to the host.
fn unsent_bytes(uart: &Uart) -> Vec<u8> {
    uart.unsent().iter().copied().collect()
}
