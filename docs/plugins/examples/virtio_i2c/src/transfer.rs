//! A request of the driver: one message on the bus (virtio 1.2, 5.15.6).

use gvmm_plugin_api::memory::{GuestMemory, MemoryError};
use gvmm_plugin_api::queue::{Chain, total_len};

use crate::lm75::Lm75;

/// Bytes of `struct virtio_i2c_out_hdr`: address (16 bits), padding (16), flags (32), little-endian.
pub(crate) const HEADER: u64 = 8;
/// `VIRTIO_I2C_FLAGS_FAIL_NEXT`: if this request fails, so does the next.
pub(crate) const FAIL_NEXT: u32 = 1 << 0;
/// `VIRTIO_I2C_FLAGS_M_RD`: the message is read from the bus.
pub(crate) const READ: u32 = 1 << 1;
/// `VIRTIO_I2C_MSG_OK`.
pub(crate) const OK: u8 = 0;
/// `VIRTIO_I2C_MSG_ERR`.
pub(crate) const ERROR: u8 = 1;
/// Longest message in bytes: what the driver makes us allocate needs a bound.
pub(crate) const MAX_MESSAGE: u64 = 4096;

/// The bus: one sensor, and requests that hang together.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Address of the sensor, seven bits.
    address: u8,
    sensor: Lm75,
    /// The last request failed, and asked for that of the next.
    failing: bool,
}

impl Wire {
    pub(crate) fn new(address: u8, sensor: Lm75) -> Self {
        Self { address, sensor, failing: false }
    }

    /// Back to power-on.
    pub(crate) fn reset(&mut self) {
        self.sensor.reset();
        self.failing = false;
    }

    /// Performs a request; whether the message was taken, and the bytes written to the driver's buffers.
    pub(crate) fn perform(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
    ) -> Result<(bool, u32), MemoryError> {
        let Some(len) = total_len(chain.writable()).checked_sub(1) else {
            // No room for the status.
            return Ok((false, 0));
        };
        let mut header = [0; HEADER as usize];
        let whole = chain.read(memory, 0, &mut header)?;
        let [low, high, _, _, flags @ ..] = header;
        let flags = u32::from_le_bytes(flags);
        let addressed = u16::from_le_bytes([low, high]) == u16::from(self.address) << 1;
        let good = whole && addressed && !self.failing && self.message(memory, chain, flags, len)?;
        self.failing = !good && flags & FAIL_NEXT != 0;
        chain.write(memory, len, &[if good { OK } else { ERROR }])?;
        // A message that failed is not written, and then nothing counts that comes behind it.
        let written = if good { len + 1 } else { u64::from(len == 0) };
        // At most MAX_MESSAGE and the status.
        Ok((good, written as u32))
    }

    /// Moves the message, of which `len` bytes are to be read; whether the sensor took it.
    fn message(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        flags: u32,
        len: u64,
    ) -> Result<bool, MemoryError> {
        let sent = total_len(chain.readable()) - HEADER;
        if flags & READ != 0 {
            if sent > 0 || len > MAX_MESSAGE {
                return Ok(false);
            }
            let mut message = vec![0; len as usize];
            return Ok(self.sensor.read(&mut message) && chain.write(memory, 0, &message)?);
        }
        if len > 0 || sent > MAX_MESSAGE {
            return Ok(false);
        }
        let mut message = vec![0; sent as usize];
        let whole = chain.read(memory, HEADER, &mut message)?;
        self.sensor.write(&message);
        Ok(whole)
    }
}
