//! The UART as a device of the machine.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use gvmm_plugin_api::fdt::{FdtNode, FdtValue};
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use gvmm_plugin_api::services::{Console, Services};

use crate::port::{Counters, Port};
use crate::pump::Pump;
use crate::registers::{PERIPHERAL_ID, Register, WINDOW};
use crate::uart::Written;

/// Frequency of UARTCLK and of the bus clock in Hz. It decides nothing but the divisors that drivers compute.
const CLOCK: u32 = 24_000_000;

/// A PL011 with a console of the host at its far end.
#[derive(Debug)]
pub struct Pl011 {
    services: Services,
    /// Input and output, until the device starts.
    console: Mutex<Option<(OwnedFd, OwnedFd)>>,
    running: OnceLock<Running>,
}

/// What exists once the device has its interrupt line.
#[derive(Debug)]
struct Running {
    port: Arc<Port>,
    pump: Mutex<Option<JoinHandle<Option<()>>>>,
}

impl Pl011 {
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

impl MmioDevice for Pl011 {
    fn layout(&self) -> MmioLayout {
        MmioLayout { windows: vec![WINDOW], lines: 1 }
    }

    fn node(&self) -> FdtNode {
        let names = ["uartclk", "apb_pclk"].map(str::to_owned);
        FdtNode::new("serial", &["arm,pl011", "arm,primecell"])
            .with("arm,primecell-periphid", FdtValue::U32s(vec![PERIPHERAL_ID]))
            .with("clocks", FdtValue::FixedClocks(vec![CLOCK, CLOCK]))
            .with("clock-names", FdtValue::Strings(names.to_vec()))
            .as_console()
    }

    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String> {
        let line = lines.into_iter().next().ok_or("the machine gave it no interrupt line")?;
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (input, output) = console.ok_or("it is already started")?;
        let port = Port::new(input, output, line).map_err(|e| format!("cannot make an eventfd: {e}"))?;
        let port = Arc::new(port);
        let pump = Pump::new(port.clone());
        let thread = self.services.spawn("pl011", move || pump.run());
        let pump = Mutex::new(Some(thread.map_err(|e| format!("cannot start a thread: {e}"))?));
        self.running.set(Running { port, pump }).map_err(|_| "it is already started".to_owned())
    }

    fn read(&self, window: u32, offset: u64, width: Width) -> Result<u64, AccessError> {
        let register = decode(window, offset, width)?;
        let port = self.port()?;
        let mut state = port.lock();
        if register == Register::Flags && state.uart.polls_transmitter() {
            port.send_now(&mut state);
        }
        let value = state.uart.read(register);
        port.settle(state);
        Ok(u64::from(value?) & low_bits(width))
    }

    fn write(&self, window: u32, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let register = decode(window, offset, width)?;
        let port = self.port()?;
        let mut state = port.lock();
        if register == Register::Data && state.uart.transmit_full() {
            port.send_now(&mut state);
        }
        // No register has more than 16 bits.
        let written = state.uart.write(register, (value & low_bits(width)) as u16);
        if state.uart.must_send() {
            port.send_now(&mut state);
        }
        port.settle(state);
        match written? {
            Written::Done => {}
            Written::Lost => port.counters.lost.add(1),
            Written::Overrun => port.counters.overruns.add(1),
        }
        Ok(())
    }

    fn reset(&self) {
        if let Ok(port) = self.port() {
            let mut state = port.lock();
            port.counters.lost.add(state.uart.reset() as u64);
            port.settle(state);
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        self.port().map_or_else(|_| Counters::default().metrics(), |port| port.counters.metrics())
    }
}

impl Drop for Pl011 {
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

/// The register of an access. Registers are 16 bits or less in words of their own; drivers access them as bytes,
/// half-words and words.
fn decode(window: u32, offset: u64, width: Width) -> Result<Register, AccessError> {
    if width == Width::Double || !offset.is_multiple_of(4) {
        return Err(AccessError::Width);
    }
    Register::at(offset).filter(|_| window == 0).ok_or(AccessError::NoRegister)
}

/// The bits that an access of a width carries.
fn low_bits(width: Width) -> u64 {
    u64::MAX >> (64 - 8 * width.bytes())
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
