//! Registers and bits of the PL011 (Arm DDI 0183, chapter 3).
#![forbid(unsafe_code)]

/// Size of the register window in bytes.
pub(crate) const WINDOW: u64 = 0x1000;

/// UARTPeriphID0-3 and UARTPCellID0-3 of revision r1p5, at [`ID_BASE`], one byte a word (3.3.15, 3.3.16).
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The first four of them as one number: in the device tree it spares the guest the reading of all eight, each an exit.
pub(crate) const PERIPHERAL_ID: u32 = u32::from_le_bytes([IDS[0], IDS[1], IDS[2], IDS[3]]);

const ID_BASE: u64 = 0xfe0;

/// A register, by what an access to its offset means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    /// UARTDR.
    Data,
    /// UARTRSR when read, UARTECR when written.
    ReceiveStatus,
    /// UARTFR.
    Flags,
    /// UARTILPR.
    LowPower,
    /// UARTIBRD.
    IntegerBaud,
    /// UARTFBRD.
    FractionalBaud,
    /// UARTLCR_H.
    LineControl,
    /// UARTCR.
    Control,
    /// UARTIFLS.
    FifoLevels,
    /// UARTIMSC.
    InterruptMask,
    /// UARTRIS.
    RawInterrupts,
    /// UARTMIS.
    MaskedInterrupts,
    /// UARTICR.
    InterruptClear,
    /// UARTDMACR.
    DmaControl,
    /// One of the identification registers, with its value.
    Id(u8),
}

impl Register {
    /// The register at an offset, `None` where there is none.
    pub(crate) fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::Data,
            0x004 => Self::ReceiveStatus,
            0x018 => Self::Flags,
            0x020 => Self::LowPower,
            0x024 => Self::IntegerBaud,
            0x028 => Self::FractionalBaud,
            0x02c => Self::LineControl,
            0x030 => Self::Control,
            0x034 => Self::FifoLevels,
            0x038 => Self::InterruptMask,
            0x03c => Self::RawInterrupts,
            0x040 => Self::MaskedInterrupts,
            0x044 => Self::InterruptClear,
            0x048 => Self::DmaControl,
            ID_BASE..WINDOW if offset.is_multiple_of(4) => {
                // The range holds 8 words, as many as there are ids.
                Self::Id(IDS[((offset - ID_BASE) / 4) as usize])
            }
            _ => return None,
        })
    }
}

/// UARTRSR and the upper bits of UARTDR (3.3.1, 3.3.2).
pub(crate) mod error {
    /// Overrun, in UARTRSR.
    pub(crate) const OVERRUN: u16 = 1 << 3;
    /// Overrun, in UARTDR.
    pub(crate) const DATA_OVERRUN: u16 = 1 << 11;
}

/// UARTFR (3.3.3).
pub(crate) mod flag {
    /// Clear to send.
    pub(crate) const CTS: u16 = 1 << 0;
    /// Data set ready.
    pub(crate) const DSR: u16 = 1 << 1;
    /// Data carrier detect.
    pub(crate) const DCD: u16 = 1 << 2;
    /// Transmitting.
    pub(crate) const BUSY: u16 = 1 << 3;
    /// Receive FIFO empty.
    pub(crate) const RXFE: u16 = 1 << 4;
    /// Transmit FIFO full.
    pub(crate) const TXFF: u16 = 1 << 5;
    /// Receive FIFO full.
    pub(crate) const RXFF: u16 = 1 << 6;
    /// Transmit FIFO empty.
    pub(crate) const TXFE: u16 = 1 << 7;
    /// Ring indicator.
    pub(crate) const RI: u16 = 1 << 8;
}

/// UARTLCR_H (3.3.7).
pub(crate) mod line {
    /// Enable FIFOs.
    pub(crate) const FEN: u16 = 1 << 4;
}

/// UARTCR (3.3.8).
pub(crate) mod control {
    /// Loopback enable.
    pub(crate) const LBE: u16 = 1 << 7;
    /// Transmit enable.
    pub(crate) const TXE: u16 = 1 << 8;
    /// Receive enable.
    pub(crate) const RXE: u16 = 1 << 9;
    /// Data transmit ready.
    pub(crate) const DTR: u16 = 1 << 10;
    /// Request to send.
    pub(crate) const RTS: u16 = 1 << 11;
    /// Out1: ring's counterpart in loopback is Out2, carrier detect's is Out1.
    pub(crate) const OUT1: u16 = 1 << 12;
    /// Out2.
    pub(crate) const OUT2: u16 = 1 << 13;
}

/// Bits of UARTIMSC, UARTRIS, UARTMIS and UARTICR (3.3.10-3.3.13).
pub(crate) mod interrupt {
    /// nUARTRI changed.
    pub(crate) const RI: u16 = 1 << 0;
    /// nUARTCTS changed.
    pub(crate) const CTS: u16 = 1 << 1;
    /// nUARTDCD changed.
    pub(crate) const DCD: u16 = 1 << 2;
    /// nUARTDSR changed.
    pub(crate) const DSR: u16 = 1 << 3;
    /// The receive FIFO has reached its trigger level.
    pub(crate) const RX: u16 = 1 << 4;
    /// The transmit FIFO has fallen to its trigger level.
    pub(crate) const TX: u16 = 1 << 5;
    /// The receive FIFO holds something and nothing more has come.
    pub(crate) const RT: u16 = 1 << 6;
    /// Overrun.
    pub(crate) const OE: u16 = 1 << 10;
}

/// Bits of registers that can be written; the others are reserved and read as zero.
pub(crate) mod mask {
    pub(crate) const LOW_POWER: u16 = 0xff;
    pub(crate) const FRACTIONAL_BAUD: u16 = 0x3f;
    pub(crate) const LINE_CONTROL: u16 = 0xff;
    pub(crate) const CONTROL: u16 = 0xff87;
    pub(crate) const FIFO_LEVELS: u16 = 0x3f;
    pub(crate) const INTERRUPTS: u16 = 0x7ff;
    pub(crate) const DMA_CONTROL: u16 = 0x7;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_primecell_uart_r1p5() {
        let byte = |offset| match Register::at(offset) {
            Some(Register::Id(byte)) => u32::from(byte),
            other => panic!("{offset:#x} is {other:?}"),
        };
        let word = |base: u64| (0..4).map(|i| byte(base + 4 * i) << (8 * i)).sum::<u32>();
        assert_eq!(word(0xfe0), 0x0034_1011);
        assert_eq!(word(0xff0), 0xb105_f00d);
    }

    #[test]
    fn the_device_tree_tells_the_number_of_the_id_registers() {
        assert_eq!(PERIPHERAL_ID, 0x0034_1011);
    }

    #[test]
    fn only_whole_words_are_registers() {
        let found: Vec<u64> = (0..WINDOW).filter(|&offset| Register::at(offset).is_some()).collect();
        assert!(found.iter().all(|offset| offset % 4 == 0));
        assert_eq!(found.len(), 14 + IDS.len());
    }
}
