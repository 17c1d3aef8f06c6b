//! The host kernel's driver as a state machine: what each request checks and keeps, in the order the kernel checks it.
//!
//! Pure but for the event descriptors it holds: the caller copies arguments in and tells it facts of the host.

pub(crate) mod boot;
pub(crate) mod functions;
pub(crate) mod memory;
pub(crate) mod start;

use crate::abi::args::GuestRange;
use crate::abi::run_page::ExitStatus;
use crate::abi::{Flavour, Generation};
use crate::errno::Errno;

use boot::BootContext;
use functions::Functions;
use memory::Memory;

/// Where a VM is in its life. It goes through it once (rule 1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Fresh,
    Running,
    /// A failed START: nothing cures it.
    Failed,
    Ended(ExitStatus),
}

/// One VM.
pub(crate) struct Driver {
    flavour: Flavour,
    pub(crate) phase: Phase,
    pub(crate) memory: Memory,
    pub(crate) functions: Functions,
    pub(crate) boot: BootContext,
    tree: GuestRange,
    firmware: Option<GuestRange>,
}

/// `auth_desc.type`: a VM with protected firmware.
const AUTH_ANDROID_PVM: u32 = 0;

impl Driver {
    pub(crate) fn new(flavour: Flavour) -> Driver {
        Driver {
            flavour,
            phase: Phase::Fresh,
            memory: Memory::new(flavour.generation()),
            functions: Functions::new(flavour.generation()),
            boot: BootContext::default(),
            tree: GuestRange { guest: 0, size: 0 },
            firmware: None,
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.flavour.generation()
    }

    /// `SET_DTB_CONFIG`: only an overflow is looked at before START.
    pub(crate) fn set_tree(&mut self, range: GuestRange) -> Result<(), Errno> {
        range.guest.checked_add(range.size).ok_or(Errno::EOVERFLOW)?;
        self.tree = range;
        Ok(())
    }

    /// `SET_FW_CONFIG`; makes the VM one with protected firmware. A does not look for an overflow.
    pub(crate) fn set_firmware(&mut self, range: GuestRange) -> Result<(), Errno> {
        if self.generation() != Generation::A {
            range.guest.checked_add(range.size).ok_or(Errno::EOVERFLOW)?;
        }
        self.firmware = Some(range);
        Ok(())
    }

    /// `SET_AUTH_TYPE`: no module for trusted VMs is loaded here (rule 1.4).
    pub(crate) fn set_auth_type(&self, kind: u32) -> Result<(), Errno> {
        if kind == AUTH_ANDROID_PVM { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// `SET_BOOT_CONTEXT` (B and C).
    pub(crate) fn set_boot_context(&mut self, register: u32, value: u64) -> Result<(), Errno> {
        boot::check_register(register)?;
        if self.phase != Phase::Fresh {
            return Err(Errno::EINVAL);
        }
        self.boot.set(register, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_wrap_overflow() {
        let wrapping = GuestRange { guest: u64::MAX - 0xfff, size: 0x2000 };
        let mut driver = Driver::new(Flavour::C);
        assert_eq!(driver.set_tree(wrapping), Err(Errno::EOVERFLOW));
        assert_eq!(driver.set_firmware(wrapping), Err(Errno::EOVERFLOW));
        assert_eq!(Driver::new(Flavour::APlus).set_firmware(wrapping), Ok(()));
    }

    #[test]
    fn boot_context_is_too_late_after_the_start() {
        let mut driver = Driver::new(Flavour::C);
        assert_eq!(driver.set_boot_context(0x100, 0x8000_0000), Ok(()));
        driver.phase = Phase::Running;
        assert_eq!(driver.set_boot_context(0x100, 0x8000_0000), Err(Errno::EINVAL));
    }

    #[test]
    fn only_the_android_auth_type_has_a_manager() {
        assert_eq!(Driver::new(Flavour::C).set_auth_type(0), Ok(()));
        assert_eq!(Driver::new(Flavour::C).set_auth_type(1), Err(Errno::ENOENT));
    }
}
