//! The card as a device of the machine.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::pci::{Bar, Identity, Interrupts, PciDevice, PciLayout};
use gvmm_plugin_api::services::{Console, Services};

use crate::port::{Counters, Port};
use crate::pump::Pump;
use crate::uart::REGISTERS;

/// The virtual serial port of HPE's management processors. Linux's driver 8250_pci knows it as a UART with its registers in
/// BAR 1, a byte each, and uses its messages (drivers/tty/serial/8250/8250_pci.c, `PCI_DEVICE_ID_HPE_PCI_SERIAL`).
const IDENTITY: Identity = Identity {
    vendor: 0x1590,
    device: 0x037e,
    subsystem_vendor: 0x1590,
    subsystem: 0x037e,
    // Serial controller, compatible with the 16550 (PCI Code and ID Assignment Specification 1.11, 1.8).
    class: 0x07_0002,
    revision: 0,
};
/// The BAR with the registers.
const BAR: u8 = 1;

/// A 16550A on PCI with a console of the host at its far end.
#[derive(Debug)]
pub struct SerialCard {
    services: Services,
    /// Input and output, until the device starts.
    console: Mutex<Option<(OwnedFd, OwnedFd)>>,
    running: OnceLock<Running>,
}

/// What exists once the device has its interrupts.
#[derive(Debug)]
struct Running {
    port: Arc<Port>,
    pump: Mutex<Option<JoinHandle<Option<()>>>>,
}

impl SerialCard {
    /// A device at power-on.
    pub fn new(console: Console, services: Services) -> Self {
        let console = Mutex::new(Some((console.input, console.output)));
        Self { services, console, running: OnceLock::new() }
    }

    /// The port, for an access to a register of it.
    fn port(&self) -> Result<&Port, AccessError> {
        self.running.get().map(|running| &*running.port).ok_or(AccessError::Failed)
    }
}

impl PciDevice for SerialCard {
    fn layout(&self) -> PciLayout {
        PciLayout {
            identity: IDENTITY,
            bars: vec![Bar { index: BAR, size: gvmm_plugin_api::pci::LEAST_BAR }],
            capabilities: Vec::new(),
            vectors: 1,
            line: true,
        }
    }

    fn start(&self, interrupts: Interrupts) -> Result<(), String> {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (input, output) = console.ok_or("it is already started")?;
        let port =
            Port::new(input, output, interrupts).map_err(|e| format!("cannot make an eventfd: {e}"))?;
        let port = Arc::new(port);
        let pump = Pump::new(port.clone());
        let thread = self.services.spawn("pci_serial", move || pump.run());
        let pump = Mutex::new(Some(thread.map_err(|e| format!("cannot start a thread: {e}"))?));
        self.running.set(Running { port, pump }).map_err(|_| "it is already started".to_owned())
    }

    fn read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        let register = decode(bar, offset, width)?;
        let port = self.port()?;
        let mut state = port.lock();
        let value = state.uart.read(register);
        port.settle(state);
        Ok(value.into())
    }

    fn write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let register = decode(bar, offset, width)?;
        let port = self.port()?;
        let mut state = port.lock();
        // The access is one of a byte.
        state.uart.write(register, value as u8);
        port.settle(state);
        Ok(())
    }

    fn reset(&self) {
        if let Ok(port) = self.port() {
            let mut state = port.lock();
            state.uart.reset();
            port.settle(state);
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        self.port().map_or_else(|_| Counters::default().metrics(), |port| port.counters.metrics())
    }
}

impl Drop for SerialCard {
    fn drop(&mut self) {
        let Some(running) = self.running.get() else { return };
        running.port.stopping.store(true, Ordering::Release);
        running.port.wake.signal();
        if let Some(pump) = running.pump.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the pump has been reported by the thread itself.
            let _ = pump.join();
        }
    }
}

/// The register of an access.
fn decode(bar: u8, offset: u64, width: Width) -> Result<u8, AccessError> {
    let register = u8::try_from(offset).ok().filter(|register| bar == BAR && *register < REGISTERS);
    match (register, width) {
        (Some(register), Width::Byte) => Ok(register),
        (Some(_), _) => Err(AccessError::Width),
        (None, _) => Err(AccessError::NoRegister),
    }
}

#[cfg(test)]
#[path = "card_test.rs"]
mod tests;
