//! The whole of a VM, declared before it starts.

use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::{MemoryRange, RegisterImage};

/// Everything an accelerator needs to build a VM. It stays the same over a reset, guest memory excepted.
#[derive(Clone)]
pub struct VmPlan<'a> {
    /// Name of the VM, as shown by the hypervisor; fewer than 80 bytes.
    pub name: &'a str,
    /// Number of vCPUs, at least 1. MPIDR affinity is [`mpidr`].
    pub vcpus: u32,
    /// The ranges of guest memory by ascending address, as [`crate::memory::RamBuilder::ranges`] tells them. The
    /// memory itself comes with [`super::Accelerator::start`]: the device tree is described before it is complete.
    pub memory: &'a [MemoryRange],
    /// Where the guest starts.
    pub boot: Boot,
    /// Lent memory for the firmware in which a protected guest starts, one range of `memory`; `None` for a guest that
    /// starts at `boot`. The hypervisor has the firmware's image.
    pub firmware: Option<FirmwareRange>,
    /// Where the interrupt controller's registers are.
    pub gic: GicLayout,
    /// Every interrupt line of every device, no SPI twice.
    pub lines: &'a [InterruptLine],
    /// SPIs that messages of devices raise, none of them a line's. The guest decides which message raises which, so
    /// they are connected while it runs.
    pub message_spis: Range<u32>,
    /// Every register write that is turned into an eventfd signal without an exit to user space.
    pub doorbells: &'a [DoorbellWrite],
}

impl VmPlan<'_> {
    /// Every SPI of the machine.
    pub fn spis(&self) -> impl Iterator<Item = u32> {
        self.lines.iter().map(|line| line.spi).chain(self.message_spis.clone())
    }
}

/// Where the boot vCPU starts: PC = `entry`, x0 = `dtb_address` (Linux arm64 boot protocol), EL1, MMU off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// First instruction; always the base of guest memory.
    pub entry: u64,
    /// Page-aligned guest address of the device tree.
    pub dtb_address: u64,
    /// Bytes reserved for the tree at `dtb_address`, page-aligned, larger than the tree itself: the Gunyah Resource
    /// Manager grows the tree in place.
    pub dtb_size: u64,
}

/// Guest memory of a protected guest's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirmwareRange {
    /// First guest address, [`FIRMWARE_BASE`].
    pub base: u64,
    /// Bytes, [`FIRMWARE_SIZE`].
    pub size: u64,
}

/// Guest address of a firmware: the last 4 MiB before RAM, where the firmware of Android's protected guests expects
/// itself.
pub const FIRMWARE_BASE: u64 = crate::memory::RAM_BASE - FIRMWARE_SIZE;
/// Bytes for a firmware.
pub const FIRMWARE_SIZE: u64 = 0x40_0000;

/// GICv3 register windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GicLayout {
    /// Distributor, 64 KiB.
    pub distributor: u64,
    /// Redistributors, one run of 128 KiB a vCPU.
    pub redistributors: u64,
}

/// Path of the interrupt controller's node in the device tree.
pub const GIC_PATH: &str = "/intc";
/// Size of the GICv3 distributor window (Arm IHI 0069, 12.10).
pub const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Size of one GICv3 redistributor: an RD frame and an SGI frame of 64 KiB each (Arm IHI 0069, 12.10).
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// An interrupt line: an eventfd that raises one edge-triggered SPI of the guest.
///
/// Every line of the machine is edge-triggered and belongs to one device: Gunyah has no de-assertion, and so a device
/// signals each new cause instead of holding a level.
#[derive(Debug, Clone)]
pub struct InterruptLine {
    /// SPI number (INTID minus 32); under Gunyah the label of the doorbell too.
    pub spi: u32,
    /// Signalled by the device.
    pub eventfd: Arc<EventFd>,
    /// Id of the device, for messages.
    pub device: String,
}

/// Registers that the guest may read as memory of the VMM's; its writes are exits.
#[derive(Debug, Clone)]
pub struct ReadableRegisters {
    /// Guest address of the first.
    pub base: u64,
    /// What they read as.
    pub image: Arc<RegisterImage>,
}

/// A guest write that signals an eventfd inside the host kernel.
#[derive(Debug, Clone)]
pub struct DoorbellWrite {
    /// Guest address, exact.
    pub address: u64,
    /// Value and width in bytes that must match; `None` matches every write to the address.
    pub datamatch: Option<(u64, u32)>,
    /// Signalled by the kernel.
    pub eventfd: Arc<EventFd>,
    /// Id of the device, for messages.
    pub device: String,
}

/// MPIDR affinity of a vCPU: linear in Aff0 up to 16, as both accelerators assign it.
pub fn mpidr(vcpu: u32) -> u64 {
    u64::from(vcpu & 0xf) | (u64::from((vcpu >> 4) & 0xff) << 8)
}
