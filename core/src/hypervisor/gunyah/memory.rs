//! Giving guest memory to a VM, in the way of each generation.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::explain::{Call, Refusal};
use super::layout::{PlacedRange, Purpose};
use super::probe::Generation;
use super::sys::{Node, VmFd};
use super::uapi::{a, b};
use crate::hypervisor::Error;
use crate::memory::{GuestRam, MemorySource, Region};

/// Gives guest memory to the VM, range by range.
pub(crate) fn give(
    vm: &VmFd,
    generation: Generation,
    ranges: &[PlacedRange],
    ram: &GuestRam,
) -> Result<(), Error> {
    let mut version = MapVersion::default();
    for range in ranges {
        let region = find(ram, range)?;
        let (call, result) = match generation {
            Generation::A | Generation::C => user_memory(vm, range, region),
            Generation::B => (Call::MapMem, version.map(vm, range, region)),
        };
        result.map_err(|error| Error::from(Refusal::new(call, generation, &range.describe(), &error)))?;
    }
    Ok(())
}

/// The memory behind a range.
fn find<'a>(ram: &'a GuestRam, range: &PlacedRange) -> Result<&'a Region, Error> {
    let wanted = range.range;
    ram.regions()
        .find(|region| {
            (region.guest_base, region.size, region.kind) == (wanted.base, wanted.size, wanted.kind)
        })
        .ok_or_else(|| Error::Plan(format!("guest memory has not the planned {}", range.describe())))
}

/// Generations A and C take memory of this process.
fn user_memory(vm: &VmFd, range: &PlacedRange, region: &Region) -> (Call, io::Result<()>) {
    let argument = a::UserMemoryRegion {
        label: range.label(),
        flags: rights(range.purpose),
        guest_address: region.guest_base,
        size: region.size,
        host_address: region.host_address,
    };
    if range.is_lent() {
        (Call::LendUserMem, vm.lend_user_memory(&argument))
    } else {
        (Call::SetUserMemRegion, vm.set_user_memory(&argument))
    }
}

/// What the guest may do with a range. Executable shared memory beside lent RAM keeps a VM from starting.
fn rights(purpose: Purpose) -> u32 {
    let data = a::ALLOW_READ | a::ALLOW_WRITE;
    match purpose {
        Purpose::Ram | Purpose::Firmware => data | a::ALLOW_EXECUTE,
        Purpose::Window | Purpose::Other => data,
    }
}

/// The encoding of access that a driver of generation B takes, found by the first region.
#[derive(Debug, Default)]
struct MapVersion(Option<b::MapFlags>);

impl MapVersion {
    /// Gives a memory object, mapped in this process as the region.
    fn map(&mut self, vm: &VmFd, range: &PlacedRange, region: &Region) -> io::Result<()> {
        // Only a file of `GuestMemory` is an object of the driver's; it refuses all other files.
        let file = region.memfd.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        let fd = u32::try_from(file.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        let with = |flags: b::MapFlags| b::MemoryMapping {
            guest_address: region.guest_base,
            flags: if range.is_lent() { flags.lent() } else { flags.shared() },
            fd,
            offset: 0,
            size: region.size,
        };
        if let Some(flags) = self.0 {
            return vm.map_memory(&with(flags));
        }
        let (result, flags) = match vm.map_memory(&with(b::MapFlags::V15)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (vm.map_memory(&with(b::MapFlags::LATER)), b::MapFlags::LATER)
            }
            result => (result, b::MapFlags::V15),
        };
        if result.is_ok() {
            self.0 = Some(flags);
        }
        result
    }
}

/// Makes the memory objects of generation B, which knows no other guest memory.
#[derive(Debug)]
pub(crate) struct GuestMemory(Arc<Node>);

impl GuestMemory {
    /// Memory objects of this node.
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self(node)
    }
}

impl MemorySource for GuestMemory {
    fn file(&self, size: u64) -> Result<OwnedFd, String> {
        let flags = b::MEMORY_CLOEXEC | b::MEMORY_ALLOW_HUGE_PAGE;
        self.0.create_guest_memory(&b::GuestMemory { flags, size, reserved: [0; 6] }).map_err(|error| {
            let subject = format!("{} MiB", size >> 20);
            Refusal::new(Call::CreateGuestMem, Generation::B, &subject, &error).to_string()
        })
    }
}
