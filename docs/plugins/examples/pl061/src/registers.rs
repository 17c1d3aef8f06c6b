//! Registers of the PL061 (Arm DDI 0190B, chapter 3).

/// Size of the register window in bytes.
pub(crate) const WINDOW: u64 = 0x1000;

/// GPIOPeriphID0-3 and GPIOPCellID0-3, at [`ID_BASE`], one byte a word.
const IDS: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The first four of them as one number, for the device tree: it spares the guest the reading of all eight.
pub(crate) const PERIPHERAL_ID: u32 = u32::from_le_bytes([IDS[0], IDS[1], IDS[2], IDS[3]]);

const ID_BASE: u64 = 0xfe0;

/// A register; all are eight bits wide, one for each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    /// GPIODATA, of which bits 9 to 2 of the address select lines.
    Data {
        /// The lines that the access is about.
        lines: u8,
    },
    /// GPIODIR: a bit is set for an output.
    Direction,
    /// GPIOIS: a bit is set for a level, clear for edges.
    Sense,
    /// GPIOIBE: both edges.
    BothEdges,
    /// GPIOIEV: the rising edge or the high level.
    Event,
    /// GPIOIE: interrupts that reach the line of the controller.
    Enable,
    /// GPIORIS: interrupts, whether enabled or not.
    RawStatus,
    /// GPIOMIS: enabled interrupts.
    MaskedStatus,
    /// GPIOIC: clears edges.
    Clear,
    /// GPIOAFSEL: lines that another block drives; there is none, so that it is only kept.
    Alternate,
    /// One of the identification registers, with its value.
    Id(u8),
}

impl Register {
    /// The register at an offset, `None` where there is none.
    pub(crate) fn at(offset: u64) -> Option<Self> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        Some(match offset {
            // Eight address bits.
            0x000..0x400 => Self::Data { lines: (offset >> 2) as u8 },
            0x400 => Self::Direction,
            0x404 => Self::Sense,
            0x408 => Self::BothEdges,
            0x40c => Self::Event,
            0x410 => Self::Enable,
            0x414 => Self::RawStatus,
            0x418 => Self::MaskedStatus,
            0x41c => Self::Clear,
            0x420 => Self::Alternate,
            // The range holds eight words, as many as there are ids.
            ID_BASE..WINDOW => Self::Id(IDS[((offset - ID_BASE) / 4) as usize]),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use super::*;

    #[test]
    fn the_address_selects_lines() {
        assert_eq!(Register::at(0), Some(Register::Data { lines: 0 }));
        assert_eq!(Register::at(1 << (3 + 2)), Some(Register::Data { lines: 1 << 3 }));
        assert_eq!(Register::at(0x3fc), Some(Register::Data { lines: 0xff }));
        assert_eq!(Register::at(0x3fd), None);
    }

    #[test]
    fn ids_are_those_of_the_primecell_gpio() {
        let byte = |offset| match Register::at(offset) {
            Some(Register::Id(byte)) => u32::from(byte),
            other => panic!("{offset:#x} is {other:?}"),
        };
        let word = |base: u64| (0..4).map(|i| byte(base + 4 * i) << (8 * i)).sum::<u32>();
        assert_eq!((word(0xfe0), word(0xff0)), (0x0004_1061, 0xb105_f00d));
        assert_eq!(PERIPHERAL_ID, 0x0004_1061);
    }
}
