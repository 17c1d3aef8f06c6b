//! Registers of a device under test, whichever kind it is of: windows of an MMIO device, or BARs of a PCI device.

use std::sync::Arc;

use gvmm_plugin_api::host::Instance;
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, Width};
use gvmm_plugin_api::pci::{Interrupts, MessageSwitch, PciDevice};

/// A device with registers of its own.
pub(super) enum RegisterDevice {
    Mmio(Arc<dyn MmioDevice>),
    Pci(Arc<dyn PciDevice>),
}

/// A part of the guest's addresses with registers of a device: a window, or a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    /// What the device knows it by.
    number: u32,
    /// Bytes.
    pub(super) size: u64,
    /// What its author calls it.
    what: &'static str,
}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.what, self.number)
    }
}

/// The far ends of a device's interrupts.
pub(super) struct Started {
    _events: Vec<Event>,
    messages: Option<MessageSwitch>,
}

impl Started {
    /// Whether the guest uses messages from now on.
    pub(super) fn use_messages(&self, on: bool) {
        if let Some(messages) = &self.messages {
            messages.set(on);
        }
    }
}

impl RegisterDevice {
    /// A device, if it has registers of its own.
    pub(super) fn of(device: &Instance) -> Option<Self> {
        match device {
            Instance::Mmio(device) => Some(Self::Mmio(device.clone())),
            Instance::Pci(device) => Some(Self::Pci(device.clone())),
            Instance::Virtio(_) => None,
        }
    }

    /// Where registers are.
    pub(super) fn areas(&self) -> Vec<Area> {
        match self {
            Self::Mmio(device) => {
                let windows = (0..).zip(device.layout().windows);
                windows.map(|(number, size)| Area { number, size, what: "window" }).collect()
            }
            Self::Pci(device) => {
                let bars = device.layout().bars.into_iter();
                bars.map(|bar| Area { number: bar.index.into(), size: bar.size.into(), what: "BAR" })
                    .collect()
            }
        }
    }

    /// Gives the device its interrupts.
    pub(super) fn start(&self) -> Result<Started, String> {
        let (count, line) = match self {
            Self::Mmio(device) => (device.layout().lines, false),
            Self::Pci(device) => (device.layout().vectors.into(), device.layout().line),
        };
        let events = (0..count + u32::from(line)).map(|_| Event::new());
        let events: Vec<Event> = events.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let handed = events.iter().map(|event| event.try_clone().map(Interrupt::new));
        let mut handed: Vec<_> = handed.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let mut messages = None;
        let started = match self {
            Self::Mmio(device) => device.start(handed),
            Self::Pci(device) => {
                let line = if line { handed.pop() } else { None };
                let (interrupts, switch) = Interrupts::new(line, handed);
                messages = Some(switch);
                device.start(interrupts)
            }
        };
        started.map_err(|e| format!("the device does not start: {e}"))?;
        Ok(Started { _events: events, messages })
    }

    pub(super) fn read(&self, area: Area, offset: u64, width: Width) -> Result<u64, AccessError> {
        match self {
            Self::Mmio(device) => device.read(area.number, offset, width),
            // The number of a BAR came from a byte.
            Self::Pci(device) => device.read(area.number as u8, offset, width),
        }
    }

    pub(super) fn write(&self, area: Area, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        match self {
            Self::Mmio(device) => device.write(area.number, offset, width, value),
            Self::Pci(device) => device.write(area.number as u8, offset, width, value),
        }
    }

    pub(super) fn reset(&self) {
        match self {
            Self::Mmio(device) => device.reset(),
            Self::Pci(device) => device.reset(),
        }
    }
}
