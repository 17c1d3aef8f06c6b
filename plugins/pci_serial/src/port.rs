//! The UART between its two ends: vCPU threads, which never wait for the host, and the pump thread, which does.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::pci::Interrupts;

use crate::uart::Uart;

/// The one vector of the card.
const VECTOR: u16 = 0;

/// What the pump and the vCPUs share. The lock is never held over a call that can block.
#[derive(Debug)]
pub(crate) struct Port {
    state: Mutex<State>,
    /// Non-blocking.
    pub(crate) input: OwnedFd,
    /// May block, unless `poll` says that it is writable and the write is small.
    pub(crate) output: OwnedFd,
    interrupts: Interrupts,
    /// Calls the pump.
    pub(crate) wake: Event,
    pub(crate) stopping: AtomicBool,
    pub(crate) counters: Counters,
}

/// The UART and what the two sides have to know of each other.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) uart: Uart,
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
    interrupts: Counter,
}

impl Counters {
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        vec![
            Metric::new("tx_bytes", self.sent.get()),
            Metric::new("rx_bytes", self.received.get()),
            Metric::new("tx_lost_bytes", self.lost.get()),
            Metric::new("interrupts", self.interrupts.get()),
        ]
    }
}

impl Port {
    pub(crate) fn new(input: OwnedFd, output: OwnedFd, interrupts: Interrupts) -> std::io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            input,
            output,
            interrupts,
            wake: Event::new()?,
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back and tells the guest and the pump what they have to know.
    pub(crate) fn settle(&self, mut state: MutexGuard<'_, State>) {
        let interrupt = state.uart.take_interrupt();
        let lost = state.uart.take_lost();
        let more_output = !state.output_known && !state.uart.unsent().is_empty();
        let more_input = state.input_paused && state.uart.input_room() > 0;
        state.output_known |= more_output;
        state.input_paused &= !more_input;
        drop(state);
        self.counters.lost.add(lost);
        if interrupt {
            self.counters.interrupts.add(1);
            self.interrupts.raise(VECTOR);
        }
        if more_output || more_input {
            self.wake.signal();
        }
    }
}
