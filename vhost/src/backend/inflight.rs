//! The memory in which requests in flight are noted: made here, kept by the front end while back ends come and go.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gvmm_plugin_api::inflight::region_size;
use gvmm_plugin_api::virtio::InflightRegion;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use vm_memory::{FileOffset, MmapRegion};

use crate::protocol::payload::Inflight;

/// Memory for the queues of a device, on its way to the front end.
#[derive(Debug)]
pub(super) struct Fresh {
    fd: OwnedFd,
    pub(super) description: Inflight,
}

impl Fresh {
    /// Makes memory for `queues` queues of `queue_size` entries.
    pub(super) fn new(queues: u16, queue_size: u16) -> Result<Self, String> {
        let failed = |errno: nix::Error| format!("cannot make memory for requests in flight: {errno}");
        let description =
            Inflight { mmap_size: needed(queues, queue_size), mmap_offset: 0, queues, queue_size };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"gvmm-inflight", flags).map_err(failed)?;
        // 65,535 queues of 65,535 entries take 2^36 bytes.
        ftruncate(&fd, description.mmap_size.cast_signed()).map_err(failed)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
        Ok(Self { fd, description })
    }
}

impl AsFd for Fresh {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Bytes for `queues` queues of `queue_size` entries.
fn needed(queues: u16, queue_size: u16) -> u64 {
    region_size(queue_size) as u64 * u64::from(queues)
}

/// Memory that the front end has given back, mapped.
#[derive(Debug)]
pub(super) struct InflightMap {
    mapping: MmapRegion<()>,
    description: Inflight,
}

impl InflightMap {
    /// Maps it.
    pub(super) fn new(description: Inflight, fd: OwnedFd) -> Result<Self, String> {
        let Inflight { mmap_size, mmap_offset, queues, queue_size } = description;
        let refused = |why: &str| {
            format!("in-flight memory of {mmap_size} bytes for {queues} queues of {queue_size}: {why}")
        };
        if queues == 0 || queue_size == 0 || mmap_size < needed(queues, queue_size) {
            return Err(refused("it is too small"));
        }
        if !mmap_offset.is_multiple_of(8) {
            return Err(refused("its offset is odd"));
        }
        let end = mmap_offset.checked_add(mmap_size).ok_or_else(|| refused("it wraps"))?;
        let file = File::from(fd);
        let len = file.metadata().map_err(|e| refused(&e.to_string()))?.len();
        let whole = usize::try_from(end).ok().filter(|_| end <= len);
        let whole = whole.ok_or_else(|| refused("its file is shorter"))?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let mapping = MmapRegion::build(Some(FileOffset::new(file, 0)), whole, protection, flags);
        Ok(Self { mapping: mapping.map_err(|e| refused(&e.to_string()))?, description })
    }

    /// The part of a queue; `None` when it has none.
    pub(super) fn region(&self, queue: usize) -> Option<InflightRegion> {
        if queue >= usize::from(self.description.queues) {
            return None;
        }
        let size = region_size(self.description.queue_size);
        // Within the mapping, whose size has been checked.
        let offset = self.description.mmap_offset as usize + queue * size;
        let address = self.mapping.as_ptr().expose_provenance() + offset;
        // SAFETY: mapped readable and writable; the session stops every queue before it lets go of the mapping.
        Some(unsafe { InflightRegion::new(address, size) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(description: Inflight) -> Result<InflightMap, String> {
        let fresh = Fresh::new(2, 256).unwrap();
        InflightMap::new(description, fresh.fd)
    }

    #[test]
    fn fresh_memory_can_be_given_back_and_has_a_part_for_each_queue() {
        let fresh = Fresh::new(2, 256).unwrap();
        let map = InflightMap::new(fresh.description, fresh.fd).unwrap();
        let (first, second) = (map.region(0).unwrap(), map.region(1).unwrap());
        assert_eq!(second.host_address() - first.host_address(), first.size());
        assert_eq!(map.region(2), None);
    }

    #[test]
    fn memory_that_is_not_as_described_is_refused() {
        let good = Fresh::new(2, 256).unwrap().description;
        assert!(map(good).is_ok());
        for bad in [
            Inflight { mmap_size: good.mmap_size - 1, ..good },
            Inflight { mmap_size: good.mmap_size + 1, ..good },
            Inflight { mmap_size: u64::MAX, mmap_offset: 8, ..good },
            Inflight { mmap_offset: 4, ..good },
            Inflight { mmap_offset: 8, ..good },
            Inflight { queues: 3, ..good },
            Inflight { queues: 0, ..good },
            Inflight { queue_size: 0, ..good },
        ] {
            assert!(map(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_front_end_cannot_pull_the_memory_away() {
        let fresh = Fresh::new(1, 16).unwrap();
        assert!(ftruncate(&fresh.fd, 0).is_err());
    }
}
