//! The configuration space of a function: a type 0 header and capabilities (PCI Local Bus Specification 3.0, 6).

use gvmm_plugin_api::mmio::Width;
pub use gvmm_plugin_api::pci::{BARS, Identity, LEAST_BAR};

/// Bytes of configuration space; there is no extended part.
pub const SIZE: usize = 256;

/// Register offsets (PCI 3.0, 6.1).
pub mod reg {
    /// Command.
    pub const COMMAND: usize = 0x04;
    /// Status.
    pub const STATUS: usize = 0x06;
    pub(super) const REVISION: usize = 0x08;
    pub(super) const BAR0: usize = 0x10;
    pub(super) const SUBSYSTEM: usize = 0x2c;
    pub(super) const CAPABILITIES: usize = 0x34;
    pub(super) const INTERRUPT_LINE: usize = 0x3c;
    pub(super) const INTERRUPT_PIN: usize = 0x3d;
}

/// Bits of the command register (PCI 3.0, 6.2.2).
pub mod command {
    /// The function answers at its memory BARs.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may write memory, messages included.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The function must not use its interrupt line.
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
    pub(super) const WRITABLE: u16 = MEMORY | BUS_MASTER | INTERRUPT_DISABLE;
}

/// Status: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Interrupt pin: INTA.
const PIN_A: u8 = 1;
/// First byte behind the header.
const HEADER_END: usize = 0x40;

/// Why a capability or BAR has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The capabilities fill the space.
    #[error("its capabilities do not fit into the {SIZE} bytes of configuration space")]
    CapabilitySpace,
    /// A BAR's size is no power of two, too small, or its number is none.
    #[error(
        "BAR {index} of {size:#x} bytes: sizes are powers of two from {LEAST_BAR} on, and there are {BARS} BARs"
    )]
    Bar {
        /// Which.
        index: usize,
        /// Bytes.
        size: u32,
    },
    /// The device has registers in every BAR.
    #[error("all {BARS} BARs are in use, and MSI-X needs one")]
    NoBarLeft,
}

/// The bytes of a configuration space and which of their bits the guest may change.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Where the next capability goes, and the byte that points to it.
    free: usize,
    link: usize,
}

impl ConfigSpace {
    /// The header of a function with no BARs and no capabilities, and with an interrupt pin if it has a line.
    pub fn new(identity: &Identity, line: bool) -> Self {
        let mut this =
            Self { bytes: [0; SIZE], writable: [0; SIZE], free: HEADER_END, link: reg::CAPABILITIES };
        this.put(0, &identity.vendor.to_le_bytes());
        this.put(2, &identity.device.to_le_bytes());
        this.put(reg::REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        this.put(reg::SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        this.put(reg::SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        this.allow(reg::COMMAND, &command::WRITABLE.to_le_bytes());
        if line {
            this.put(reg::INTERRUPT_PIN, &[PIN_A]);
            this.allow(reg::INTERRUPT_LINE, &[0xff]);
        }
        this
    }

    /// Adds a 32-bit memory BAR at an address.
    pub fn add_bar(&mut self, index: usize, size: u32, address: u32) -> Result<(), ConfigError> {
        if index >= BARS || size < LEAST_BAR || !size.is_power_of_two() {
            return Err(ConfigError::Bar { index, size });
        }
        let mask = !(size - 1);
        self.put(reg::BAR0 + 4 * index, &(address & mask).to_le_bytes());
        self.allow(reg::BAR0 + 4 * index, &mask.to_le_bytes());
        Ok(())
    }

    /// Adds a capability, whose first two bytes (id and link) are given by the id alone; returns its offset.
    /// `writable` has the bits of `body` that the guest may change.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize, ConfigError> {
        let at = self.free;
        let end = at + 2 + body.len();
        if end > SIZE {
            return Err(ConfigError::CapabilitySpace);
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, &writable[..writable.len().min(body.len())]);
        // Capabilities end within 256 bytes.
        self.put(self.link, &[at as u8]);
        self.put(reg::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        Ok(at)
    }

    /// Reads 1, 2 or 4 aligned bytes; all ones for any other access, as from a bus that nobody answers on.
    pub fn read(&self, offset: usize, width: Width) -> u64 {
        let Some(range) = range(offset, width) else { return u64::MAX };
        let mut value = [0; 8];
        value[..width.bytes()].copy_from_slice(&self.bytes[range]);
        u64::from_le_bytes(value)
    }

    /// Writes 1, 2 or 4 aligned bytes; any other access has no effect.
    pub fn write(&mut self, offset: usize, width: Width, value: u64) {
        let Some(range) = range(offset, width) else { return };
        for (at, new) in range.zip(value.to_le_bytes()) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (new & mask);
        }
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.half(reg::COMMAND)
    }

    /// Two bytes at an offset below the end, or zero.
    pub fn half(&self, offset: usize) -> u16 {
        self.bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |half| u16::from_le_bytes(*half))
    }

    /// Four bytes at an offset below the end, or zero.
    pub fn word(&self, offset: usize) -> u32 {
        self.bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// The address in a BAR, whether or not the function answers there.
    pub fn bar(&self, index: usize) -> u64 {
        u64::from(self.word(reg::BAR0 + 4 * index) & !(LEAST_BAR - 1))
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, bits: &[u8]) {
        self.writable[offset..offset + bits.len()].copy_from_slice(bits);
    }
}

/// The bytes of an access that configuration space answers.
fn range(offset: usize, width: Width) -> Option<std::ops::Range<usize>> {
    let bytes = width.bytes();
    let fits = bytes <= 4 && offset.is_multiple_of(bytes) && offset < SIZE;
    fits.then(|| offset..offset + bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        subsystem_vendor: 0x1af4,
        subsystem: 0x40,
        class: 0x01_0000,
        revision: 1,
    };

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(&IDENTITY, true);
        space.add_bar(0, 0x8000, 0x1000_0000).unwrap();
        space
    }

    #[test]
    fn the_header_says_what_the_function_is() {
        let space = space();
        assert_eq!(space.read(0, Width::Word), 0x1042_1af4);
        assert_eq!(space.read(8, Width::Word), 0x0100_0001);
        assert_eq!(space.read(0x2c, Width::Word), 0x0040_1af4);
        assert_eq!((space.read(0x3d, Width::Byte), space.read(0x0e, Width::Byte)), (1, 0));
    }

    #[test]
    fn a_function_without_a_line_has_no_interrupt_pin() {
        let mut space = ConfigSpace::new(&IDENTITY, false);
        space.write(0x3c, Width::Word, 0xffff_ffff);
        assert_eq!(space.read(0x3c, Width::Word), 0);
    }

    #[test]
    fn identity_does_not_change() {
        let mut space = space();
        for offset in (0..SIZE).step_by(4).filter(|offset| ![0x04, 0x10, 0x3c].contains(offset)) {
            let before = space.read(offset, Width::Word);
            space.write(offset, Width::Word, 0xffff_ffff);
            assert_eq!(space.read(offset, Width::Word), before, "{offset:#x}");
        }
    }

    #[test]
    fn a_bar_tells_its_size_and_takes_an_address() {
        let mut space = space();
        assert_eq!(space.bar(0), 0x1000_0000);
        space.write(0x10, Width::Word, 0xffff_ffff);
        assert_eq!(space.read(0x10, Width::Word), 0xffff_8000);
        space.write(0x12, Width::Half, 0x1234);
        assert_eq!(space.bar(0), 0x1234_8000);
        space.write(0x14, Width::Word, 0xffff_ffff);
        assert_eq!(space.read(0x14, Width::Word), 0, "there is no BAR 1");
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        assert_eq!(space.read(reg::STATUS, Width::Half), 0);
        let first = space.add_capability(0x11, &[1, 2, 3], &[0, 0xf0]).unwrap();
        let second = space.add_capability(9, &[4; 6], &[]).unwrap();
        assert_eq!((space.read(0x34, Width::Byte), first, second), (0x40, 0x40, 0x48));
        assert_eq!(space.read(0x40, Width::Word), 0x0201_4811);
        assert_eq!(space.read(0x48, Width::Half), 9);
        assert_eq!(space.read(reg::STATUS, Width::Half), 0x10);
        space.write(0x40, Width::Word, 0xffff_ffff);
        assert_eq!(space.read(0x40, Width::Word), 0xf201_4811);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut space = space();
        assert_eq!(space.add_capability(9, &[0; 190], &[]), Ok(0x40));
        assert_eq!(space.add_capability(9, &[0; 0], &[]), Err(ConfigError::CapabilitySpace));
        assert_eq!(space.add_bar(6, 16, 0), Err(ConfigError::Bar { index: 6, size: 16 }));
        assert!(space.add_bar(1, 24, 0).is_err() && space.add_bar(1, 8, 0).is_err());
    }

    #[test]
    fn odd_accesses_read_as_ones_and_write_nothing() {
        let mut space = space();
        for (offset, width) in
            [(1, Width::Half), (2, Width::Word), (0, Width::Double), (SIZE, Width::Byte), (SIZE, Width::Word)]
        {
            space.write(offset, width, 0);
            assert_eq!(space.read(offset, width), u64::MAX);
        }
    }
}
