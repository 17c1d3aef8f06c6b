//! A VM to try the rules and the device tree on.

use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::plan::{
    Boot, DoorbellWrite, FIRMWARE_BASE, FIRMWARE_SIZE, FirmwareRange, GicLayout, InterruptLine, VmPlan,
};
use crate::memory::{Backing, MemoryRange, Protection, RAM_BASE, RamBuilder};

pub(crate) const MIB: u64 = 1 << 20;

/// Owner of what a plan borrows. A VM of 16 MiB and two vCPUs with a console and a disk.
pub(crate) struct Fixture {
    pub memory: Vec<MemoryRange>,
    pub lines: Vec<InterruptLine>,
    pub message_spis: Range<u32>,
    pub doorbells: Vec<DoorbellWrite>,
    pub firmware: Option<FirmwareRange>,
}

impl Fixture {
    pub(crate) fn shared() -> Self {
        Self::with(Protection::None, false)
    }

    pub(crate) fn lent() -> Self {
        Self::with(Protection::Lent { window: 4 * MIB }, false)
    }

    pub(crate) fn with_firmware() -> Self {
        Self::with(Protection::Lent { window: 4 * MIB }, true)
    }

    fn with(protection: Protection, firmware: bool) -> Self {
        let mut ram = RamBuilder::new(RAM_BASE, 16 * MIB, Backing::Anonymous, protection).unwrap();
        if firmware {
            ram.add_lent(FIRMWARE_BASE, FIRMWARE_SIZE).unwrap();
        }
        Self {
            memory: ram.ranges(),
            lines: vec![line(1, "console"), line(5, "disk")],
            message_spis: 0..0,
            doorbells: vec![doorbell(0x1050, Some((0, 4)), "disk"), doorbell(0x1050, Some((1, 4)), "disk")],
            firmware: firmware.then_some(FirmwareRange { base: FIRMWARE_BASE, size: FIRMWARE_SIZE }),
        }
    }

    pub(crate) fn plan(&self) -> VmPlan<'_> {
        VmPlan {
            name: "guest",
            vcpus: 2,
            memory: &self.memory,
            boot: Boot { entry: RAM_BASE, dtb_address: RAM_BASE + 4 * MIB, dtb_size: 0x1_0000 },
            firmware: self.firmware,
            gic: GicLayout { distributor: 0x3fff_0000, redistributors: 0x3f00_0000 },
            lines: &self.lines,
            message_spis: self.message_spis.clone(),
            doorbells: &self.doorbells,
        }
    }
}

pub(crate) fn line(spi: u32, device: &str) -> InterruptLine {
    InterruptLine { spi, eventfd: Arc::new(EventFd::new(0).unwrap()), device: device.to_owned() }
}

pub(crate) fn doorbell(address: u64, datamatch: Option<(u64, u32)>, device: &str) -> DoorbellWrite {
    DoorbellWrite {
        address,
        datamatch,
        eventfd: Arc::new(EventFd::new(0).unwrap()),
        device: device.to_owned(),
    }
}
