//! MMIO devices: registers in the trap window.

use crate::fdt::{ExtraNode, FdtNode};
use crate::interrupt::Interrupt;
use crate::metrics::Metric;

/// What an MMIO device needs of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MmioLayout {
    /// Size in bytes of each register window; the machine rounds each up to whole pages of 4 KiB.
    pub windows: Vec<u64>,
    /// Number of interrupt lines.
    pub lines: u32,
}

/// Width of a register access in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Half = 2,
    /// 32 bits.
    Word = 4,
    /// 64 bits.
    Double = 8,
}

impl Width {
    /// All widths that a guest access can have.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// The width for a number of bytes.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Half),
            4 => Some(Self::Word),
            8 => Some(Self::Double),
            _ => None,
        }
    }

    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }
}

/// Why a register access had no effect. The guest reads zero; the machine logs it, within limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no register at the offset.
    #[error("no such register")]
    NoRegister,
    /// The register does not take this width or alignment.
    #[error("wrong width or alignment")]
    Width,
    /// The register cannot be accessed in this direction.
    #[error("wrong direction")]
    Direction,
    /// The device has failed and no longer answers.
    #[error("device failed")]
    Failed,
}

/// A device with registers.
///
/// Thread contract: `layout`, `node`, `nodes_below`, `nodes_beside` and `start` are called once each, in this order, by
/// the thread that assembles the machine. `read` and `write` come from the vCPU threads, any number at once; they must not block. `reset` comes
/// while no vCPU runs. `metrics` may come at any time.
pub trait MmioDevice: Send + Sync {
    /// Windows and lines that the device needs.
    fn layout(&self) -> MmioLayout;

    /// The device-tree node, without `reg` and `interrupts`, which the machine adds.
    fn node(&self) -> FdtNode;

    /// Nodes below the device's own, for what is on the device's own bus: `reg` in them is an address there, and the
    /// device's node has `#address-cells` and `#size-cells` to say of how many cells.
    ///
    /// A gvmm older than this method asks for none; the device does without.
    fn nodes_below(&self) -> Vec<ExtraNode> {
        Vec::new()
    }

    /// Nodes under the root, for what uses the device, such as `gpio-keys` at a GPIO controller. The machine appends the
    /// device's address to their names, so that two of these devices do not meet.
    ///
    /// A gvmm older than this method asks for none; the device does without.
    fn nodes_beside(&self) -> Vec<ExtraNode> {
        Vec::new()
    }

    /// Hands over the interrupt lines, as many as the layout asked for. Called once, before the guest starts.
    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String>;

    /// Reads a register; `offset + width` lies within the window.
    fn read(&self, window: u32, offset: u64, width: Width) -> Result<u64, AccessError>;

    /// Writes a register; `offset + width` lies within the window.
    fn write(&self, window: u32, offset: u64, width: Width, value: u64) -> Result<(), AccessError>;

    /// Back to the state after power-on. Calling it twice is the same as once.
    fn reset(&self);

    /// Counters for statistics.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }
}
