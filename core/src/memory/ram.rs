//! Finished guest memory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::mapping::Mapping;

/// Whether the host may touch a region once the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Guest and host both have access.
    Shared,
    /// The guest alone has access: a touch by the host kills the VMM, or worse.
    Lent,
}

/// A range of guest addresses with memory behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First guest address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it is shared or lent.
    pub kind: RegionKind,
}

/// A region as an accelerator hands it to the hypervisor.
#[derive(Debug, Clone)]
pub struct Region {
    /// First guest address.
    pub guest_base: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in this process. For the hypervisor, not to be turned into a pointer.
    pub host_address: u64,
    /// Whether it is shared or lent.
    pub kind: RegionKind,
    /// File behind the region, from its first byte on; `None` for anonymous memory.
    pub memfd: Option<Arc<OwnedFd>>,
}

/// A region that devices may read and write while the guest runs.
#[derive(Debug, Clone)]
pub struct SharedRegion {
    /// First guest address.
    pub guest_base: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in this process.
    pub host_address: u64,
    /// File behind the region, from its first byte on; `None` for memory that no other process can map.
    pub memfd: Option<Arc<OwnedFd>>,
}

/// Guest memory, given away to a guest.
///
/// It can be neither read nor written through this value. The memory is unmapped when this value and every
/// [`SharedMemory`] made from it are gone.
#[derive(Debug)]
pub struct GuestRam {
    regions: Vec<(Region, Arc<Mapping>)>,
}

impl GuestRam {
    pub(super) fn new(regions: Vec<(MemoryRange, Mapping)>) -> Self {
        let regions = regions
            .into_iter()
            .map(|(range, mapping)| {
                let region = Region {
                    guest_base: range.base,
                    size: range.size,
                    host_address: mapping.host_address(),
                    kind: range.kind,
                    memfd: mapping.memfd_handle().cloned(),
                };
                (region, Arc::new(mapping))
            })
            .collect();
        Self { regions }
    }

    /// Every region by ascending guest address.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &Region> {
        self.regions.iter().map(|(region, _)| region)
    }

    /// The regions that devices may touch.
    pub fn shared(&self) -> SharedMemory {
        let lent = self.regions().any(|region| region.kind == RegionKind::Lent);
        let (regions, mappings) = self
            .regions
            .iter()
            .filter(|(region, _)| region.kind == RegionKind::Shared)
            .map(|(region, mapping)| {
                let shared = SharedRegion {
                    guest_base: region.guest_base,
                    size: region.size,
                    host_address: region.host_address,
                    memfd: region.memfd.clone(),
                };
                (shared, Arc::clone(mapping))
            })
            .unzip();
        SharedMemory { regions, restricted: lent, _mappings: mappings }
    }
}

/// The shared regions of a guest's memory; keeps them mapped.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    regions: Vec<SharedRegion>,
    restricted: bool,
    _mappings: Vec<Arc<Mapping>>,
}

impl SharedMemory {
    /// Whether the guest has other memory besides, which no device can reach: its drivers must be told.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// The regions by ascending guest address. Their host addresses stay valid while this value lives.
    pub fn regions(&self) -> &[SharedRegion] {
        &self.regions
    }
}
