//! What all queues of a disk share, and how a request is done by the calling thread.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gvmm_plugin_api::memory::{GuestMemory, MemoryError};
use gvmm_plugin_api::queue::{Chain, total_len};
use gvmm_plugin_api::tracing::{debug, warn};

use crate::engine::Choice;
use crate::image::Image;
use crate::metrics::Metrics;
use crate::request::{Limits, Operation, Segments};
use crate::throttle::Throttle;

/// What a failure of the host means for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// The request fails.
    Report,
    /// The request is tried again until it succeeds.
    Wait,
}

/// A disk with its guest-visible state.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) image: Box<dyn Image>,
    /// Size in bytes that the guest sees.
    pub(crate) capacity: AtomicU64,
    pub(crate) readonly: bool,
    /// What the driver reads as the disk's id, padded with zeros.
    pub(crate) serial: [u8; 20],
    /// Who waits for the image.
    pub(crate) engine: Choice,
    pub(crate) throttle: Option<Throttle>,
    pub(crate) on_error: OnError,
    /// The driver's choice: writes are durable only once flushed.
    pub(crate) writeback: AtomicBool,
    pub(crate) metrics: Metrics,
}

impl Disk {
    /// What requests are checked against at this moment.
    pub(crate) fn limits(&self) -> Limits {
        Limits { capacity: self.capacity.load(Ordering::Relaxed), readonly: self.readonly }
    }

    /// Does a request and waits for it; the number of bytes written to the data buffers.
    ///
    /// `through`: a write must be durable when this returns.
    pub(crate) fn execute(
        &self,
        operation: &Operation,
        chain: &Chain,
        memory: &GuestMemory,
        through: bool,
    ) -> Result<u64, MemoryError> {
        let image = &self.image;
        match operation {
            Operation::Read(extent) => {
                image.read(memory, chain.writable(), extent.offset)?;
                return Ok(extent.len);
            }
            Operation::Write(extent) => image.write(memory, chain.readable(), extent.offset)?,
            Operation::Flush => image.flush()?,
            Operation::GetId => return self.write_id(chain, memory),
            Operation::Discard(segments) => {
                for (extent, _) in segments.iter() {
                    image.discard(extent.offset, extent.len)?;
                }
            }
            Operation::WriteZeroes(segments) => self.write_zeroes(segments)?,
            Operation::Refuse(_) => {}
        }
        if through && matches!(operation, Operation::Write(_) | Operation::WriteZeroes(_)) {
            image.flush()?;
        }
        Ok(0)
    }

    fn write_zeroes(&self, segments: &Segments) -> Result<(), MemoryError> {
        for (extent, unmap) in segments.iter() {
            self.image.write_zeroes(extent.offset, extent.len, unmap)?;
        }
        Ok(())
    }

    fn write_id(&self, chain: &Chain, memory: &GuestMemory) -> Result<u64, MemoryError> {
        let room = total_len(chain.writable()).min(self.serial.len() as u64);
        chain.write(memory, 0, &self.serial[..room as usize])?;
        Ok(room)
    }

    /// Counts a request that was done.
    pub(crate) fn count(&self, operation: &Operation) {
        let metrics = &self.metrics;
        match operation {
            Operation::Read(extent) => {
                metrics.read_requests.add(1);
                metrics.read_bytes.add(extent.len);
            }
            Operation::Write(extent) => {
                metrics.write_requests.add(1);
                metrics.write_bytes.add(extent.len);
            }
            Operation::Flush => metrics.flushes.add(1),
            Operation::Discard(_) => metrics.discards.add(1),
            Operation::WriteZeroes(_) => metrics.write_zeroes.add(1),
            Operation::GetId | Operation::Refuse(_) => {}
        }
    }

    /// Counts and logs a request that failed; ever more rarely, as the guest may repeat it for ever.
    pub(crate) fn count_failure(&self, operation: &Operation, error: &MemoryError) {
        self.metrics.errors.add(1);
        let errors = self.metrics.errors.get();
        if matches!(error, MemoryError::Io(_)) && errors.is_power_of_two() {
            warn!("{operation} failed: {error} ({errors} failed requests so far)");
        } else {
            debug!("{operation} failed: {error}");
        }
    }

    /// Whether a request that failed is to be tried again until the host has recovered.
    ///
    /// A flush is not: the kernel reports lost writes once, so that trying again would only hide the loss.
    pub(crate) fn waits_for_recovery(&self, operation: &Operation, error: &MemoryError) -> bool {
        let host = |error: &io::Error| {
            matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EIO | libc::ENOMEM))
        };
        self.on_error == OnError::Wait
            && !matches!(operation, Operation::Flush)
            && matches!(error, MemoryError::Io(error) if host(error))
    }

    /// Whether a write must be durable when it is completed (virtio 1.2, 5.2.6.2): the driver has no flush, or has
    /// switched the write cache off.
    pub(crate) fn writes_through(&self, features: u64) -> bool {
        use crate::config::{F_CONFIG_WCE, F_FLUSH};
        let switched_off = features & F_CONFIG_WCE != 0 && !self.writeback.load(Ordering::Relaxed);
        !self.image.durable_writes() && (features & F_FLUSH == 0 || switched_off)
    }
}
