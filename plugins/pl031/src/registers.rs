//! Registers of the PL031 (Arm DDI 0224, chapter 3).
#![forbid(unsafe_code)]

/// Size of the register window in bytes.
pub(crate) const WINDOW: u64 = 0x1000;

/// RTCPeriphID0-3 and RTCPCellID0-3, at [`ID_BASE`], one byte a word.
const IDS: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The first four of them as one number: in the device tree it spares the guest the reading of all eight, each an exit.
pub(crate) const PERIPHERAL_ID: u32 = u32::from_le_bytes([IDS[0], IDS[1], IDS[2], IDS[3]]);

const ID_BASE: u64 = 0xfe0;

/// The only bit of RTCCR, RTCIMSC, RTCRIS, RTCMIS and RTCICR.
pub(crate) const BIT: u32 = 1;

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    /// RTCDR.
    Data,
    /// RTCMR.
    Match,
    /// RTCLR.
    Load,
    /// RTCCR.
    Control,
    /// RTCIMSC.
    InterruptMask,
    /// RTCRIS.
    RawInterrupt,
    /// RTCMIS.
    MaskedInterrupt,
    /// RTCICR.
    InterruptClear,
    /// One of the identification registers, with its value.
    Id(u8),
}

impl Register {
    /// The register at an offset, `None` where there is none.
    pub(crate) fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x00 => Self::Data,
            0x04 => Self::Match,
            0x08 => Self::Load,
            0x0c => Self::Control,
            0x10 => Self::InterruptMask,
            0x14 => Self::RawInterrupt,
            0x18 => Self::MaskedInterrupt,
            0x1c => Self::InterruptClear,
            ID_BASE..WINDOW if offset.is_multiple_of(4) => {
                // The range holds 8 words, as many as there are ids.
                Self::Id(IDS[((offset - ID_BASE) / 4) as usize])
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_primecell_rtc() {
        let byte = |offset| match Register::at(offset) {
            Some(Register::Id(byte)) => u32::from(byte),
            other => panic!("{offset:#x} is {other:?}"),
        };
        let word = |base: u64| (0..4).map(|i| byte(base + 4 * i) << (8 * i)).sum::<u32>();
        assert_eq!(word(0xfe0), 0x0004_1031);
        assert_eq!(word(0xff0), 0xb105_f00d);
    }

    #[test]
    fn the_device_tree_tells_the_number_of_the_id_registers() {
        assert_eq!(PERIPHERAL_ID, 0x0004_1031);
    }

    #[test]
    fn only_whole_words_are_registers() {
        let found: Vec<u64> = (0..WINDOW).filter(|&offset| Register::at(offset).is_some()).collect();
        assert!(found.iter().all(|offset| offset % 4 == 0));
        assert_eq!(found.len(), 8 + IDS.len());
    }
}
