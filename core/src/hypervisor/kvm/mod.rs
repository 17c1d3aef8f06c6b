//! The `kvm` accelerator: KVM on arm64, with GICv3, PSCI, irqfd and ioeventfd inside the kernel.
//!
//! Sources: Documentation/virt/kvm/api.rst and devices/arm-vgic-v3.rst of Linux.

#[cfg(target_arch = "aarch64")]
mod gic;
#[cfg(target_arch = "aarch64")]
mod probe;
#[cfg(target_arch = "aarch64")]
mod readable;
#[cfg(target_arch = "aarch64")]
mod vcpu;
#[cfg(target_arch = "aarch64")]
mod vm;
#[cfg(target_arch = "aarch64")]
mod wiring;

use std::path::Path;

use vm_fdt::FdtWriter;

use super::plan::VmPlan;
use super::{Accelerator, Error, StartedVm};
use crate::loader::DTB_SLOT_SIZE;
use crate::memory::GuestRam;

/// The device node of KVM.
pub const NODE: &str = "/dev/kvm";

/// KVM on arm64.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kvm;

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn probe(&self) -> Result<(), Error> {
        if !cfg!(target_arch = "aarch64") {
            return Err(Error::Unavailable(
                "gvmm runs aarch64 guests, which KVM does on aarch64 machines alone".to_owned(),
            ));
        }
        check_node(Path::new(NODE))?;
        #[cfg(target_arch = "aarch64")]
        probe::check(&open()?)?;
        Ok(())
    }

    /// The tree has all of its place: nothing grows it.
    fn device_tree_limit(&self) -> usize {
        usize::try_from(DTB_SLOT_SIZE).unwrap_or(usize::MAX)
    }

    fn describe(&self, _plan: &VmPlan<'_>, _fdt: &mut FdtWriter) -> Result<(), Error> {
        Ok(())
    }

    #[cfg(target_arch = "aarch64")]
    fn start(&self, plan: &VmPlan<'_>, ram: &GuestRam) -> Result<StartedVm, Error> {
        check_node(Path::new(NODE))?;
        vm::start(&open()?, plan, ram)
    }

    #[cfg(not(target_arch = "aarch64"))]
    fn start(&self, _plan: &VmPlan<'_>, _ram: &GuestRam) -> Result<StartedVm, Error> {
        self.probe()?;
        Err(Error::Unavailable("this gvmm was built without KVM".to_owned()))
    }
}

#[cfg(target_arch = "aarch64")]
fn open() -> Result<kvm_ioctls::Kvm, Error> {
    kvm_ioctls::Kvm::new().map_err(|error| Error::Unavailable(format!("{NODE}: {error}")))
}

/// Whether the node can be opened; a node that opens may still be one under which no guest runs.
fn check_node(node: &Path) -> Result<(), Error> {
    let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(node) else { return Ok(()) };
    let what_to_do = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "the kernel has no KVM, or the machine did not start it at EL2 (on Gunyah hosts it never does)"
        }
        std::io::ErrorKind::PermissionDenied => "run gvmm as root or as a member of the group kvm",
        _ => "look at the kernel log",
    };
    Err(Error::Unavailable(format!("{}: {error}: {what_to_do}", node.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_node_is_explained() {
        let error = check_node(Path::new("/nonexistent/kvm")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/nonexistent/kvm: No such file or directory (os error 2): the kernel has no KVM, or the machine did not \
             start it at EL2 (on Gunyah hosts it never does)"
        );
    }

    #[cfg(not(target_arch = "aarch64"))]
    #[test]
    fn other_machines_are_told_that_only_aarch64_will_do() {
        let error = Kvm.probe().unwrap_err().to_string();
        assert_eq!(error, "gvmm runs aarch64 guests, which KVM does on aarch64 machines alone");
    }
}
