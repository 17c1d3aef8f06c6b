//! The virtio-pci transport, modern devices only (virtio 1.2, 4.1).

mod image;
mod interrupts;
mod spec;
#[cfg(test)]
mod test;

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gvmm_plugin_api::mmio::{AccessError, Width};

use super::function::{QueueRegisters, VirtioFunction};
use crate::memory::RegisterImage;
use crate::pci::function::FunctionDevice;

pub use interrupts::Interrupts;
pub use spec::spec;

/// Places of the structures in BAR 0; each has pages of its own.
mod place {
    /// Common configuration.
    pub(super) const COMMON: u64 = 0;
    /// Interrupt status.
    pub(super) const ISR: u64 = 0x1000;
    /// Notifications, [`NOTIFY_STRIDE`] bytes a queue. The device's configuration is behind them.
    pub(super) const NOTIFY: u64 = 0x2000;
    /// Bytes of a page.
    pub(super) const PAGE: u64 = 0x1000;
    /// Bytes from one queue's notification address to the next: one address a queue, so that a write need not be
    /// looked at to know which queue it is for.
    pub(super) const NOTIFY_STRIDE: u64 = 4;
}

/// Fields of the common configuration (virtio 1.2, 4.1.4.3).
mod reg {
    use gvmm_plugin_api::mmio::Width;

    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    pub(super) const QUEUE_NOTIFY_DATA: u64 = 0x38;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
    /// Bytes of the structure.
    pub(super) const END: u64 = 0x3c;

    /// Every field.
    pub(super) const ALL: [(u64, Width); 17] = [
        (DEVICE_FEATURE_SELECT, Width::Word),
        (DEVICE_FEATURE, Width::Word),
        (DRIVER_FEATURE_SELECT, Width::Word),
        (DRIVER_FEATURE, Width::Word),
        (CONFIG_MSIX_VECTOR, Width::Half),
        (NUM_QUEUES, Width::Half),
        (DEVICE_STATUS, Width::Byte),
        (CONFIG_GENERATION, Width::Byte),
        (QUEUE_SELECT, Width::Half),
        (QUEUE_SIZE, Width::Half),
        (QUEUE_MSIX_VECTOR, Width::Half),
        (QUEUE_ENABLE, Width::Half),
        (QUEUE_NOTIFY_OFF, Width::Half),
        (QUEUE_DESC, Width::Double),
        (QUEUE_DRIVER, Width::Double),
        (QUEUE_DEVICE, Width::Double),
        // What is behind reads as zero.
        (QUEUE_NOTIFY_DATA, Width::Half),
    ];
}

/// Bytes of the common configuration.
const COMMON_SIZE: u64 = reg::END;
/// Interrupt causes (virtio 1.2, 4.1.4.5).
const ISR_QUEUE: u64 = 1;
const ISR_CONFIG: u64 = 2;

/// The registers of a virtio-pci device in BAR 0.
pub struct PciTransport {
    function: Arc<VirtioFunction>,
    interrupts: Arc<Interrupts>,
    device_feature_select: AtomicU32,
    driver_feature_select: AtomicU32,
    queue_select: AtomicU16,
    /// Taken by a write to the common configuration until its effect is shown.
    writing: Mutex<()>,
}

impl PciTransport {
    /// The registers of a function whose interrupts go by these.
    pub fn new(function: Arc<VirtioFunction>, interrupts: Arc<Interrupts>) -> Self {
        Self {
            function,
            interrupts,
            device_feature_select: AtomicU32::new(0),
            driver_feature_select: AtomicU32::new(0),
            queue_select: AtomicU16::new(0),
            writing: Mutex::new(()),
        }
    }

    fn queue_count(&self) -> u16 {
        u16::try_from(self.function.traits().queue_sizes.len()).unwrap_or(u16::MAX)
    }

    fn selected(&self) -> u16 {
        self.queue_select.load(Ordering::Relaxed)
    }

    fn queue(&self) -> QueueRegisters {
        // A queue that the device does not have reads as one without entries.
        self.function.queue(self.selected()).unwrap_or_default()
    }

    /// Why the driver was interrupted by the line; a read acknowledges it.
    ///
    /// As with virtio-mmio the queue bit is always set while the device runs: a worker's signal does not pass through
    /// here. Messages tell the cause by themselves.
    fn take_isr(&self) -> u64 {
        if self.interrupts.uses_messages() {
            return 0;
        }
        let queue = if self.function.running() { ISR_QUEUE } else { 0 };
        let config = if self.function.config_pending(true) { ISR_CONFIG } else { 0 };
        queue | config
    }

    fn device_feature(&self) -> u64 {
        match self.device_feature_select.load(Ordering::Relaxed) {
            0 => self.function.offered_features() & 0xffff_ffff,
            1 => self.function.offered_features() >> 32,
            _ => 0,
        }
    }

    fn driver_feature(&self) -> u64 {
        match self.driver_feature_select.load(Ordering::Relaxed) {
            0 => self.function.driver_features() & 0xffff_ffff,
            1 => self.function.driver_features() >> 32,
            _ => 0,
        }
    }

    fn set_driver_feature(&self, bits: u32) {
        match self.driver_feature_select.load(Ordering::Relaxed) {
            0 => self.function.set_driver_features(false, bits),
            1 => self.function.set_driver_features(true, bits),
            _ => {}
        }
    }

    fn set_status(&self, value: u8) {
        self.function.set_status(value.into());
        if value == 0 {
            self.forget();
        }
    }

    /// What the driver told the transport alone.
    fn forget(&self) {
        self.interrupts.reset();
        self.queue_select.store(0, Ordering::Relaxed);
        self.device_feature_select.store(0, Ordering::Relaxed);
        self.driver_feature_select.store(0, Ordering::Relaxed);
    }

    fn set_queue_size(&self, size: u16) {
        let index = self.selected();
        if size.is_power_of_two() && size <= self.function.queue_max_size(index) {
            self.function.change_queue(index, |queue| queue.size = size);
        } else {
            tracing::warn!("device {}: queue {index}: size {size} refused", self.function.id());
        }
    }

    /// A queue in use keeps its vector.
    fn set_queue_vector(&self, vector: u16) {
        if !self.queue().ready {
            self.interrupts.set_queue_vector(self.selected(), vector);
        }
    }

    fn reset_queue(&self) {
        let index = self.selected();
        self.function.reset_queue(index);
        if !self.queue().ready {
            self.interrupts.take_queue_vector(index);
        }
    }

    fn read_common(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        let queue = || self.queue();
        let (field, value) = match offset {
            reg::DEVICE_FEATURE_SELECT => {
                (Width::Word, self.device_feature_select.load(Ordering::Relaxed).into())
            }
            reg::DEVICE_FEATURE => (Width::Word, self.device_feature()),
            reg::DRIVER_FEATURE_SELECT => {
                (Width::Word, self.driver_feature_select.load(Ordering::Relaxed).into())
            }
            reg::DRIVER_FEATURE => (Width::Word, self.driver_feature()),
            reg::CONFIG_MSIX_VECTOR => (Width::Half, self.interrupts.config_vector().into()),
            reg::NUM_QUEUES => (Width::Half, self.queue_count().into()),
            // The bits of the status fit a byte.
            reg::DEVICE_STATUS => (Width::Byte, u64::from(self.function.status()) & 0xff),
            reg::CONFIG_GENERATION => (Width::Byte, u64::from(self.function.config_generation()) & 0xff),
            reg::QUEUE_SELECT => (Width::Half, self.selected().into()),
            reg::QUEUE_SIZE => (Width::Half, queue().size.into()),
            reg::QUEUE_MSIX_VECTOR => (Width::Half, self.interrupts.queue_vector(self.selected()).into()),
            reg::QUEUE_ENABLE => (Width::Half, queue().ready.into()),
            reg::QUEUE_NOTIFY_OFF => (Width::Half, self.selected().into()),
            // VIRTIO_F_NOTIF_CONFIG_DATA is not offered, and a reset is over when the write that asks for it is.
            reg::QUEUE_NOTIFY_DATA | reg::QUEUE_RESET => (Width::Half, 0),
            _ => return self.read_address(offset, width),
        };
        if field == width { Ok(value) } else { Err(AccessError::Width) }
    }

    fn write_common(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        // Each arm takes the width that its value is cut to.
        match (offset, width) {
            (reg::DEVICE_FEATURE_SELECT, Width::Word) => {
                self.device_feature_select.store(value as u32, Ordering::Relaxed);
            }
            (reg::DRIVER_FEATURE_SELECT, Width::Word) => {
                self.driver_feature_select.store(value as u32, Ordering::Relaxed);
            }
            (reg::DRIVER_FEATURE, Width::Word) => self.set_driver_feature(value as u32),
            (reg::CONFIG_MSIX_VECTOR, Width::Half) => self.interrupts.set_config_vector(value as u16),
            (reg::DEVICE_STATUS, Width::Byte) => self.set_status(value as u8),
            (reg::QUEUE_SELECT, Width::Half) => self.queue_select.store(value as u16, Ordering::Relaxed),
            (reg::QUEUE_SIZE, Width::Half) => self.set_queue_size(value as u16),
            (reg::QUEUE_MSIX_VECTOR, Width::Half) => self.set_queue_vector(value as u16),
            // A driver never writes 0 here (virtio 1.2, 4.1.4.3.2).
            (reg::QUEUE_ENABLE, Width::Half) if value as u16 == 1 => {
                self.function.ready_queue(self.selected());
            }
            (reg::QUEUE_RESET, Width::Half) if value as u16 == 1 => self.reset_queue(),
            (reg::QUEUE_ENABLE | reg::QUEUE_RESET, Width::Half) => {}
            (
                reg::DEVICE_FEATURE
                | reg::NUM_QUEUES
                | reg::CONFIG_GENERATION
                | reg::QUEUE_NOTIFY_OFF
                | reg::QUEUE_NOTIFY_DATA,
                _,
            ) => return Err(AccessError::Direction),
            (reg::QUEUE_DESC..reg::QUEUE_NOTIFY_DATA, _) => return self.write_address(offset, width, value),
            (0..reg::END, _) => return Err(AccessError::Width),
            _ => return Err(AccessError::NoRegister),
        }
        Ok(())
    }

    /// The three addresses of a queue: as a whole, or by halves.
    fn read_address(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        let address = *address_field(offset)?(&mut self.queue());
        match (offset % 8, width) {
            (0, Width::Double) => Ok(address),
            (0, Width::Word) => Ok(address & 0xffff_ffff),
            (4, Width::Word) => Ok(address >> 32),
            _ => Err(AccessError::Width),
        }
    }

    fn write_address(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let field = address_field(offset)?;
        let (shift, keep) = match (offset % 8, width) {
            (0, Width::Double) => (0, 0),
            (0, Width::Word) => (0, 0xffff_ffff << 32),
            (4, Width::Word) => (32, 0xffff_ffff),
            _ => return Err(AccessError::Width),
        };
        self.function.change_queue(self.selected(), |queue| {
            let address = field(queue);
            *address = (*address & keep) | (value << shift);
        });
        Ok(())
    }
}

/// The address of a queue that a field of the common configuration is part of.
fn address_field(offset: u64) -> Result<fn(&mut QueueRegisters) -> &mut u64, AccessError> {
    match offset & !7 {
        reg::QUEUE_DESC => Ok(|queue| &mut queue.descriptor_table),
        reg::QUEUE_DRIVER => Ok(|queue| &mut queue.available_ring),
        reg::QUEUE_DEVICE => Ok(|queue| &mut queue.used_ring),
        _ => Err(if offset < reg::END { AccessError::Width } else { AccessError::NoRegister }),
    }
}

/// Bytes of the notification addresses of so many queues, in whole pages.
fn notify_size(queues: usize) -> u64 {
    (queues as u64 * place::NOTIFY_STRIDE).next_multiple_of(place::PAGE).max(place::PAGE)
}

impl PciTransport {
    /// Where the device's configuration begins in BAR 0.
    fn config_at(&self) -> u64 {
        place::NOTIFY + notify_size(self.function.traits().queue_sizes.len())
    }
}

impl PciTransport {
    /// Shows the common configuration to a guest that reads it as memory.
    fn show(&self) {
        self.interrupts.common.show(|| self.structure(), || self.function.own_state());
    }

    /// The common configuration as bytes.
    fn structure(&self) -> [u8; COMMON_SIZE as usize] {
        let mut structure = [0; COMMON_SIZE as usize];
        for (offset, width) in reg::ALL {
            // Each is read in its width, and is inside of the structure.
            let value = self.read_common(offset, width).unwrap_or(0);
            let at = offset as usize;
            structure[at..at + width.bytes()].copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
        }
        structure
    }
}

impl FunctionDevice for PciTransport {
    fn read(&self, _: usize, offset: u64, width: Width) -> Result<u64, AccessError> {
        if let Some(offset) = offset.checked_sub(self.config_at()) {
            let mut bytes = [0; 8];
            let known = self.function.read_config(offset, &mut bytes[..width.bytes()]);
            return if known { Ok(u64::from_le_bytes(bytes)) } else { Err(AccessError::NoRegister) };
        }
        match offset {
            place::COMMON..place::ISR => self.read_common(offset, width),
            place::ISR if width == Width::Byte => Ok(self.take_isr()),
            place::ISR..place::NOTIFY => Err(AccessError::NoRegister),
            _ => Err(AccessError::Direction),
        }
    }

    fn write(&self, _: usize, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if let Some(offset) = offset.checked_sub(self.config_at()) {
            let known = self.function.write_config(offset, &value.to_le_bytes()[..width.bytes()]);
            return if known { Ok(()) } else { Err(AccessError::NoRegister) };
        }
        match offset {
            place::COMMON..place::ISR => {
                let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
                let written = self.write_common(offset, width, value);
                self.show();
                written
            }
            place::ISR..place::NOTIFY => Err(AccessError::Direction),
            _ => {
                // A kick that the hypervisor did not take: the address tells the queue.
                let queue = (offset - place::NOTIFY) / place::NOTIFY_STRIDE;
                self.function.kick(u16::try_from(queue).unwrap_or(u16::MAX));
                Ok(())
            }
        }
    }

    fn use_messages(&self, on: bool) {
        self.interrupts.use_messages(on);
    }

    fn reset(&self) {
        self.forget();
        self.show();
    }

    /// The page of the common configuration: the others have registers whose reads have effects, or the device's own.
    fn image(&self) -> Option<Arc<RegisterImage>> {
        let image = self.interrupts.common.make();
        self.show();
        image
    }
}
