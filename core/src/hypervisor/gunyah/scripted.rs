//! A vCPU with the caller in the driver's place, to measure what an exit costs inside gvmm without a hypervisor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::probe::Generation;
use super::sys::{RunPageView, VcpuFd};
use super::uapi::common::run_page;
use super::vcpu::GunyahVcpu;
use crate::hypervisor::kick::RunPage;
use crate::hypervisor::{Error, Exit};

/// The vCPU, and the driver's view of its run page.
#[derive(Debug)]
pub struct ScriptedVcpu {
    vcpu: GunyahVcpu,
    driver: RunPageView,
}

impl ScriptedVcpu {
    /// A vCPU of generation A, the run page of which holds no exit.
    pub fn new() -> io::Result<Self> {
        const PAGE: usize = 4096;
        let file = File::from(memfd_create("run page", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(PAGE as u64)?;
        let page = RunPage::map(&file, PAGE, run_page::IMMEDIATE_EXIT)?;
        let view = || RunPageView::new(page.clone()).ok_or(io::ErrorKind::UnexpectedEof);
        let (driver, own) = (view()?, view()?);
        let fd = VcpuFd::from(OwnedFd::from(file));
        Ok(Self { vcpu: GunyahVcpu::new(0, Generation::A, fd, own), driver })
    }

    /// A run call ends since the guest reads so many bytes at an address.
    pub fn guest_reads(&mut self, address: u64, length: u32) -> Result<Exit<'_>, Error> {
        self.driver.put_guest_read(address, length);
        self.vcpu.exit()
    }

    /// The next run call begins: what the guest gets, unless the vCPU has been kicked.
    pub fn answer(&mut self) -> Option<[u8; 8]> {
        self.vcpu.prepare_run().then(|| self.driver.answer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_gets_what_the_exit_was_answered_with() {
        let mut vcpu = ScriptedVcpu::new().unwrap();
        match vcpu.guest_reads(0x1000, 4).unwrap() {
            Exit::MmioRead { address: 0x1000, data } => data.copy_from_slice(&[1, 2, 3, 4]),
            other => panic!("{other:?}"),
        }
        assert_eq!(vcpu.answer(), Some([1, 2, 3, 4, 0, 0, 0, 0]));
    }
}
