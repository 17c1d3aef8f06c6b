//! Which driver is behind the device node, and what it can do.
//!
//! Nothing is assumed from kernel versions. The probe makes a VM, which costs the hypervisor nothing as long as it is
//! not started, and asks the node and the VM which calls they know: a call that takes an address fails for the address
//! 0 before it does anything, in one way if the driver knows the call and in another if it does not.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::sys::{Node, VmFd};
use super::uapi::{a, b, c};

/// Where the drivers of every generation put their device.
pub const NODE: &str = "/dev/gunyah";

/// Which of the incompatible kernel interfaces a driver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Generation {
    /// Version 14 of the posted driver: pinned memory, parcels at start.
    A,
    /// Versions 15 to 17 of the posted driver: memory objects of the driver.
    B,
    /// Android 15 and later: memory brought in page by page.
    C,
}

impl Generation {
    /// Where it is found.
    pub fn found_in(self) -> &'static str {
        match self {
            Self::A => {
                "version 14 of the posted driver: Android 14's 6.1 kernels, the open-source build for QEMU"
            }
            Self::B => "versions 15 to 17 of the posted driver, in kernels outside of Android",
            Self::C => "Android 15's 6.6 and Android 16's 6.12 kernels",
        }
    }

    /// Whether a guest can run in memory that the host shares. The later drivers never let a guest execute such
    /// memory.
    pub fn runs_in_shared_memory(self) -> bool {
        self == Self::A
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
        })
    }
}

/// A driver that gvmm can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// Its kernel interface.
    pub generation: Generation,
    /// Memory can be lent, and so protected VMs run.
    pub lend: bool,
    /// A protected VM can start in the firmware that the Resource Manager holds.
    pub firmware: bool,
    /// Memory can be taken back from a running VM.
    pub reclaim: bool,
    /// Memory from a contiguous area can be given.
    pub cma: bool,
    /// The authentication of a VM can be chosen.
    pub auth: bool,
    /// Blocked vCPUs can do without wake-ups by the hypervisor's timers.
    pub timer_wakeup: bool,
}

/// What the probe of a device node found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// There is no such node.
    NoNode,
    /// The node is there and this process may not open it.
    NotPermitted(Failure),
    /// The node is there and cannot be opened.
    CannotOpen(Failure),
    /// The vendor driver from before the posted ones, which runs signed images alone.
    Vendor,
    /// The driver refuses to make a VM.
    CannotCreateVm(Failure),
    /// The calls that the driver knows are those of no generation.
    Unrecognised,
    /// A driver that gvmm can use.
    Usable(Driver),
}

/// An error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub i32);

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        write!(f, "{text} ({:?})", nix::errno::Errno::from_raw(self.0))
    }
}

impl Probe {
    /// What a node that cannot be opened means.
    pub(crate) fn of_open_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoNode,
            io::ErrorKind::PermissionDenied => Self::NotPermitted(Failure::from(error)),
            _ => Self::CannotOpen(Failure::from(error)),
        }
    }
}

/// Probes the driver behind a node. Starts nothing and changes nothing.
pub fn probe(path: &Path) -> Probe {
    match Node::open(path) {
        Ok(node) => probe_node(&node),
        Err(error) => Probe::of_open_error(&error),
    }
}

/// Probes the driver behind an open node.
pub(crate) fn probe_node(node: &Node) -> Probe {
    let vm = match node.create_vm() {
        Ok(vm) => vm,
        // The vendor driver has calls of another type byte and refuses this one.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
            return Probe::Vendor;
        }
        Err(error) => return Probe::CannotCreateVm(Failure::from(&error)),
    };
    match generation(node, &vm) {
        Some(generation) => Probe::Usable(driver(generation, &vm)),
        None => Probe::Unrecognised,
    }
}

fn generation(node: &Node, vm: &VmFd) -> Option<Generation> {
    let user_memory = vm.knows(a::SET_USER_MEM_REGION);
    match (vm.knows(b::SET_BOOT_CONTEXT), node.knows(b::CREATE_GUEST_MEM)) {
        (true, true) => Some(Generation::B),
        (true, false) if user_memory => Some(Generation::C),
        (false, false) if user_memory => Some(Generation::A),
        _ => None,
    }
}

fn driver(generation: Generation, vm: &VmFd) -> Driver {
    Driver {
        generation,
        // Generation B lends by a flag of its ordinary call.
        lend: generation == Generation::B || vm.knows(a::LEND_USER_MEM),
        firmware: vm.knows(a::SET_FW_CONFIG),
        reclaim: vm.knows(c::RECLAIM_REGION),
        cma: vm.knows(c::MAP_CMA_MEM),
        auth: vm.knows(c::SET_AUTH_TYPE),
        timer_wakeup: vm.has_capability(c::CAPABILITY_TIMER_WAKEUP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_no_driver_where_there_is_no_node() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(probe(&folder.path().join("gunyah")), Probe::NoNode);
    }

    #[test]
    fn takes_a_device_that_knows_nothing_for_one_it_cannot_use() {
        // A device node with other calls answers like the vendor driver: not with a VM.
        assert_eq!(probe(Path::new("/dev/null")), Probe::Vendor);
    }

    #[test]
    fn names_errors_by_text_and_symbol() {
        assert_eq!(Failure(libc::EACCES).to_string(), "Permission denied (EACCES)");
    }
}
