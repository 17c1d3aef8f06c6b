//! A plugin's PCI device behind a function.

use std::sync::Arc;

use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::pci::{Bar, Interrupts, MessageSwitch, PciDevice};

use super::bars::RegisterBar;
use super::function::{FunctionDevice, FunctionSpec};
use crate::eventfd;
use crate::hypervisor::InterruptLine;

/// The device, which raises its line or its messages by itself once it knows which of them the guest uses.
struct Plugged {
    device: Arc<dyn PciDevice>,
    messages: MessageSwitch,
}

impl FunctionDevice for Plugged {
    fn read(&self, bar: usize, offset: u64, width: Width) -> Result<u64, AccessError> {
        // A BAR's number is below 6.
        self.device.read(bar as u8, offset, width)
    }

    fn write(&self, bar: usize, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.device.write(bar as u8, offset, width, value)
    }

    fn use_messages(&self, on: bool) {
        self.messages.set(on);
    }

    fn reset(&self) {
        self.device.reset();
    }
}

/// Starts a device and makes it a function. `line` is there if the device's layout, which has been checked, asks for one.
///
/// # Errors
///
/// The device's own words if it does not start; if there are no more eventfds.
pub fn spec(
    id: &str,
    device: Arc<dyn PciDevice>,
    line: Option<InterruptLine>,
) -> Result<FunctionSpec, String> {
    let layout = device.layout();
    let failed = |error: std::io::Error| format!("cannot make an eventfd: {error}");
    let vectors = (0..layout.vectors).map(|_| eventfd::new().map(Arc::new));
    let vectors = vectors.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let handed = vectors.iter().map(|event| eventfd::share(event).map(Interrupt::new));
    let handed = handed.collect::<Result<_, _>>().map_err(failed)?;
    let line_handed = line.as_ref().map(|line| eventfd::share(&line.eventfd).map(Interrupt::new));
    let (interrupts, messages) = Interrupts::new(line_handed.transpose().map_err(failed)?, handed);
    device.start(interrupts)?;
    let bar = |Bar { index, size }: &Bar| RegisterBar { index: (*index).into(), registers: (*size).into() };
    Ok(FunctionSpec {
        id: id.to_owned(),
        identity: layout.identity,
        device: Arc::new(Plugged { device, messages }),
        bars: layout.bars.iter().map(bar).collect(),
        shared_bar: None,
        capabilities: layout.capabilities,
        access_window: None,
        vectors,
        line,
        doorbells: Vec::new(),
    })
}
