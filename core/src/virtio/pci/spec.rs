//! What a virtio device is on a PCI bus: its ids and its capabilities (virtio 1.2, 4.1.2 and 4.1.4).

use std::sync::Arc;

use super::{COMMON_SIZE, Interrupts, PciTransport, place};
use crate::hypervisor::InterruptLine;
use crate::pci::bars::RegisterBar;
use crate::pci::config::Identity;
use crate::pci::function::{AccessWindow, Capability, FunctionSpec};
use crate::virtio::VirtioFunction;

/// Vendor of virtio devices.
const VENDOR: u16 = 0x1af4;
/// Id of a device of virtio type 0 without the legacy interface.
const FIRST_DEVICE: u16 = 0x1040;
/// Subsystem of devices without the legacy interface.
const SUBSYSTEM: u16 = 0x40;
/// Revision of devices without the legacy interface.
const REVISION: u8 = 1;
/// Id of a vendor-specific capability.
const VENDOR_CAPABILITY: u8 = 0x09;

/// What a capability is the place of (virtio 1.2, 4.1.4).
mod cfg {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// Fields of a capability, from its first byte on.
mod field {
    pub(super) const BAR: usize = 4;
    pub(super) const OFFSET: usize = 8;
    pub(super) const LENGTH: usize = 12;
    /// Behind the common part: the stride of notifications, or the data of the access window.
    pub(super) const EXTRA: usize = 16;
}

/// PCI classes by virtio device type; of the other types the class says nothing.
const CLASSES: [(u32, u32); 12] = [
    (1, 0x02_0000),  // network: Ethernet controller
    (2, 0x01_8000),  // block: mass storage
    (3, 0x07_8000),  // console: communication
    (8, 0x01_0000),  // SCSI host: SCSI controller
    (9, 0x01_8000),  // 9P: mass storage
    (16, 0x03_8000), // GPU: display
    (18, 0x09_8000), // input
    (19, 0x07_8000), // socket: communication
    (20, 0x10_8000), // crypto: encryption
    (25, 0x04_0100), // sound: audio device
    (26, 0x01_8000), // file system: mass storage
    (34, 0x0c_8000), // I2C: serial bus
];
/// Class of a device that fits none.
const UNASSIGNED: u32 = 0xff_0000;

/// A virtio function on the PCI bus, with the line for guests without MSI. `interrupts` are those that `function` was
/// made with.
pub fn spec(
    function: &Arc<VirtioFunction>,
    interrupts: &Arc<Interrupts>,
    line: InterruptLine,
) -> FunctionSpec {
    let traits = function.traits();
    let transport = PciTransport::new(function.clone(), interrupts.clone());
    let queues = traits.queue_sizes.len();
    let config_at = transport.config_at();
    let mut capabilities = vec![
        capability(cfg::COMMON, place::COMMON, COMMON_SIZE, &[]),
        capability(
            cfg::NOTIFY,
            place::NOTIFY,
            queues as u64 * place::NOTIFY_STRIDE,
            // The stride is 4.
            &(place::NOTIFY_STRIDE as u32).to_le_bytes(),
        ),
        capability(cfg::ISR, place::ISR, 1, &[]),
    ];
    if traits.config_size > 0 {
        capabilities.push(capability(cfg::DEVICE, config_at, traits.config_size.into(), &[]));
    }
    let (capability, access_window) = access(capabilities.len());
    capabilities.push(capability);
    let doorbells = (0..).zip(function.kicks());
    let doorbells =
        doorbells.map(|(queue, kick): (u64, _)| (place::NOTIFY + queue * place::NOTIFY_STRIDE, kick.clone()));
    FunctionSpec {
        id: function.id().to_owned(),
        identity: identity(traits.device_type),
        bars: vec![RegisterBar { index: 0, registers: config_at + u64::from(traits.config_size) }],
        shared_bar: Some(0),
        capabilities,
        access_window: Some(access_window),
        vectors: interrupts.vectors().to_vec(),
        line: Some(line),
        doorbells: doorbells.collect(),
        device: Arc::new(transport),
    }
}

fn identity(device_type: u32) -> Identity {
    let class = CLASSES.iter().find(|(known, _)| *known == device_type);
    Identity {
        vendor: VENDOR,
        // Device types have 6 bits in this scheme; a plugin that claims more gets an id that no driver knows.
        device: FIRST_DEVICE.saturating_add(u16::try_from(device_type).unwrap_or(u16::MAX)),
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
        class: class.map_or(UNASSIGNED, |(_, class)| *class),
        revision: REVISION,
    }
}

/// A capability that names a place in BAR 0, with what follows the common part.
fn capability(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Capability {
    // The common part has 16 bytes, of which the first two are not part of the body.
    let bytes = field::EXTRA + extra.len();
    let mut body = vec![bytes as u8, kind, 0, 0, 0, 0];
    // BAR 0 fits 32 bits: a larger one is refused when the function is made.
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&(length as u32).to_le_bytes());
    body.extend_from_slice(extra);
    Capability { id: VENDOR_CAPABILITY, body, writable: Vec::new() }
}

/// The capability through which a guest that does not map BARs reaches the others' places.
fn access(number: usize) -> (Capability, AccessWindow) {
    let mut access = capability(cfg::PCI, 0, 0, &[0; 4]);
    // All of BAR, offset, length and data, less the two bytes in front of the body.
    access.writable = vec![0; access.body.len()];
    access.writable[field::BAR - 2] = 0xff;
    access.writable[field::OFFSET - 2..].fill(0xff);
    let window = AccessWindow {
        capability: number,
        bar: field::BAR,
        offset: field::OFFSET,
        length: field::LENGTH,
        data: field::EXTRA,
    };
    (access, window)
}

const _: () = assert!(place::COMMON + COMMON_SIZE <= place::ISR && place::ISR < place::NOTIFY);
