//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::mmio::{AccessError, Width};
use vmm_sys_util::eventfd::EventFd;

use super::function::{InterruptRoute, OwnState, QueueRegisters, VirtioFunction};
use crate::bus::Registers;
use crate::eventfd;

/// Bytes of a transport's register window.
pub const WINDOW_SIZE: u64 = 0x1000;
/// Offset of QueueNotify: a write of a queue's index kicks it (virtio 1.2, 4.2.2).
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Register offsets (virtio 1.2, 4.2.2).
mod reg {
    pub(super) const MAGIC: u64 = 0x00;
    pub(super) const VERSION: u64 = 0x04;
    pub(super) const DEVICE_ID: u64 = 0x08;
    pub(super) const VENDOR_ID: u64 = 0x0c;
    pub(super) const DEVICE_FEATURES: u64 = 0x10;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(super) const QUEUE_NUM: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const QUEUE_NOTIFY: u64 = super::QUEUE_NOTIFY;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const INTERRUPT_ACK: u64 = 0x64;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x80;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x84;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub(super) const SHM_SEL: u64 = 0xac;
    pub(super) const SHM_LEN_LOW: u64 = 0xb0;
    pub(super) const SHM_BASE_HIGH: u64 = 0xbc;
    pub(super) const CONFIG_GENERATION: u64 = 0xfc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// "virt", little endian.
const MAGIC: u64 = 0x7472_6976;
/// The layout of virtio 1.0 and later.
const VERSION: u64 = 2;
/// "GVMM", little endian.
const VENDOR: u64 = 0x4d4d_5647;

/// Interrupt causes (virtio 1.2, 4.2.2).
const INT_QUEUE: u64 = 1;
const INT_CONFIG: u64 = 2;

/// The one interrupt line of a virtio-mmio device, for all its queues and its configuration.
pub struct LineRoute(pub Arc<EventFd>);

impl InterruptRoute for LineRoute {
    fn queue(&self, _index: u16) -> std::io::Result<Event> {
        eventfd::share(&self.0)
    }

    fn configuration(&self, _: &dyn Fn() -> OwnState) {
        eventfd::signal(&self.0);
    }
}

/// The register window of a virtio-mmio device.
pub struct MmioTransport {
    function: Arc<VirtioFunction>,
    device_features_sel: AtomicU32,
    driver_features_sel: AtomicU32,
    queue_sel: AtomicU32,
}

impl MmioTransport {
    /// A window for a function.
    pub fn new(function: Arc<VirtioFunction>) -> Self {
        Self {
            function,
            device_features_sel: AtomicU32::new(0),
            driver_features_sel: AtomicU32::new(0),
            queue_sel: AtomicU32::new(0),
        }
    }

    fn selected_queue(&self) -> u16 {
        // An index beyond 16 bits selects a queue that no device has.
        u16::try_from(self.queue_sel.load(Ordering::Relaxed)).unwrap_or(u16::MAX)
    }

    /// Why the driver was interrupted.
    ///
    /// The queue bit is always set while the device runs: used buffers are announced by the device's worker straight to
    /// the hypervisor, whichever process it runs in, and a driver that looks at a queue in vain loses nothing. The line
    /// is edge-triggered and shared with nobody, so the bit holds no interrupt up.
    fn interrupt_status(&self) -> u64 {
        let queue = if self.function.running() { INT_QUEUE } else { 0 };
        let config = if self.function.config_pending(false) { INT_CONFIG } else { 0 };
        queue | config
    }

    fn device_features(&self) -> u64 {
        match self.device_features_sel.load(Ordering::Relaxed) {
            0 => self.function.offered_features() & 0xffff_ffff,
            1 => self.function.offered_features() >> 32,
            _ => 0,
        }
    }

    fn set_driver_features(&self, bits: u32) {
        match self.driver_features_sel.load(Ordering::Relaxed) {
            0 => self.function.set_driver_features(false, bits),
            1 => self.function.set_driver_features(true, bits),
            _ => {}
        }
    }

    fn set_queue_size(&self, size: u32) {
        let index = self.selected_queue();
        let max = self.function.queue_max_size(index);
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= max => {
                self.function.change_queue(index, |queue| queue.size = size);
            }
            _ => tracing::warn!("device {}: queue {index}: size {size} refused", self.function.id()),
        }
    }

    fn set_queue_ready(&self, value: u32) {
        let index = self.selected_queue();
        if value & 1 == 1 {
            self.function.ready_queue(index);
        } else {
            self.function.unready_queue(index);
        }
    }

    fn set_address(&self, field: fn(&mut QueueRegisters) -> &mut u64, high: bool, half: u32) {
        self.function.change_queue(self.selected_queue(), |queue| {
            let address = field(queue);
            let (shift, keep) = if high { (32, 0xffff_ffff) } else { (0, 0xffff_ffff << 32) };
            *address = (*address & keep) | (u64::from(half) << shift);
        });
    }

    fn read_register(&self, offset: u64) -> Result<u64, AccessError> {
        Ok(match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => u64::from(self.function.traits().device_type),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => self.device_features(),
            reg::QUEUE_NUM_MAX => u64::from(self.function.queue_max_size(self.selected_queue())),
            reg::QUEUE_READY => {
                u64::from(self.function.queue(self.selected_queue()).is_some_and(|queue| queue.ready))
            }
            reg::INTERRUPT_STATUS => self.interrupt_status(),
            reg::STATUS => u64::from(self.function.status()),
            // No shared memory: length and base read as all ones (virtio 1.2, 4.2.2).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => 0xffff_ffff,
            reg::CONFIG_GENERATION => u64::from(self.function.config_generation()),
            reg::DEVICE_FEATURES_SEL
            | reg::DRIVER_FEATURES
            | reg::DRIVER_FEATURES_SEL
            | reg::QUEUE_SEL
            | reg::QUEUE_NUM
            | reg::QUEUE_NOTIFY
            | reg::INTERRUPT_ACK
            | reg::QUEUE_DESC_LOW
            | reg::QUEUE_DESC_HIGH
            | reg::QUEUE_DRIVER_LOW
            | reg::QUEUE_DRIVER_HIGH
            | reg::QUEUE_DEVICE_LOW
            | reg::QUEUE_DEVICE_HIGH
            | reg::SHM_SEL => return Err(AccessError::Direction),
            _ => return Err(AccessError::NoRegister),
        })
    }

    fn write_register(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel.store(value, Ordering::Relaxed),
            reg::DRIVER_FEATURES => self.set_driver_features(value),
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel.store(value, Ordering::Relaxed),
            reg::QUEUE_SEL => self.queue_sel.store(value, Ordering::Relaxed),
            reg::QUEUE_NUM => self.set_queue_size(value),
            reg::QUEUE_READY => self.set_queue_ready(value),
            // VIRTIO_F_NOTIFICATION_DATA is not offered, so the value is the index.
            reg::QUEUE_NOTIFY => self.function.kick(u16::try_from(value).unwrap_or(u16::MAX)),
            reg::INTERRUPT_ACK => {
                if u64::from(value) & INT_CONFIG != 0 {
                    self.function.config_pending(true);
                }
            }
            reg::STATUS => {
                self.function.set_status(value);
                if value == 0 {
                    self.queue_sel.store(0, Ordering::Relaxed);
                }
            }
            reg::QUEUE_DESC_LOW => self.set_address(|queue| &mut queue.descriptor_table, false, value),
            reg::QUEUE_DESC_HIGH => self.set_address(|queue| &mut queue.descriptor_table, true, value),
            reg::QUEUE_DRIVER_LOW => self.set_address(|queue| &mut queue.available_ring, false, value),
            reg::QUEUE_DRIVER_HIGH => self.set_address(|queue| &mut queue.available_ring, true, value),
            reg::QUEUE_DEVICE_LOW => self.set_address(|queue| &mut queue.used_ring, false, value),
            reg::QUEUE_DEVICE_HIGH => self.set_address(|queue| &mut queue.used_ring, true, value),
            reg::SHM_SEL => {}
            reg::MAGIC..=reg::CONFIG_GENERATION => return Err(AccessError::Direction),
            _ => return Err(AccessError::NoRegister),
        }
        Ok(())
    }
}

impl Registers for MmioTransport {
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            let mut bytes = [0; 8];
            let known = self.function.read_config(offset, &mut bytes[..width.bytes()]);
            return if known { Ok(u64::from_le_bytes(bytes)) } else { Err(AccessError::NoRegister) };
        }
        if width != Width::Word || !offset.is_multiple_of(4) {
            return Err(AccessError::Width);
        }
        self.read_register(offset)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            let known = self.function.write_config(offset, &value.to_le_bytes()[..width.bytes()]);
            return if known { Ok(()) } else { Err(AccessError::NoRegister) };
        }
        if width != Width::Word || !offset.is_multiple_of(4) {
            return Err(AccessError::Width);
        }
        // The width is 32 bits.
        self.write_register(offset, value as u32)
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
