//! A back end with one queue set up, as a VMM sets it up when the guest's driver starts.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::{AVAILABLE, DESCRIPTORS, QUEUE_SIZE, Ring, USED};

/// Bytes of guest memory: the rings, and the buffers of every request in flight.
pub(crate) const MEMORY: usize = 16 << 20;
/// Bytes of a sector (virtio 1.2, 5.2.4), the unit of the capacity.
const SECTOR: u64 = 512;

/// A back end and its queue.
pub(crate) struct Connection {
    // Its end is the back end's sign to let go of the queue.
    _front_end: Frontend,
    pub(crate) ring: Ring,
    /// Bytes of the disk.
    pub(crate) capacity: u64,
}

impl Connection {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let mut front_end =
            Frontend::connect(socket, 1).with_context(|| format!("socket {}", socket.display()))?;
        negotiate(&mut front_end)?;
        let capacity = capacity(&mut front_end)?;
        let ring = start_queue(&mut front_end)?;
        Ok(Self { _front_end: front_end, ring, capacity })
    }
}

fn negotiate(front_end: &mut Frontend) -> Result<()> {
    front_end.set_owner()?;
    let offered = front_end.get_features()?;
    let protocol_features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let wanted = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | protocol_features;
    ensure!(offered & wanted == wanted, "the back end offers {offered:#x} and lacks some of {wanted:#x}");
    let known = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
    let common = front_end.get_protocol_features()? & known;
    front_end.set_protocol_features(common)?;
    // A back end must write through for a driver that cannot flush.
    front_end.set_features(wanted | (offered & 1 << VIRTIO_BLK_F_FLUSH))?;
    Ok(())
}

/// The first field of the configuration space (virtio 1.2, 5.2.4).
fn capacity(front_end: &mut Frontend) -> Result<u64> {
    let (_, sectors) = front_end.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])?;
    let sectors = <[u8; 8]>::try_from(sectors).ok().context("the back end has no capacity")?;
    Ok(u64::from_le_bytes(sectors) * SECTOR)
}

fn start_queue(front_end: &mut Frontend) -> Result<Ring> {
    let file = File::from(memfd_create(c"vhost-load", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(MEMORY as u64)?;
    let file = Some(FileOffset::new(file, 0));
    let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, file)])?;
    let region = memory.find_region(GuestAddress(0)).context("memory has a region")?;
    let region = VhostUserMemoryRegionInfo::from_guest_region(region)?;
    front_end.set_mem_table(&[region])?;
    let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
    let ring_at = |guest: u64| region.userspace_addr + guest;
    front_end.set_vring_num(0, QUEUE_SIZE)?;
    front_end.set_vring_base(0, 0)?;
    front_end.set_vring_addr(
        0,
        &VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: ring_at(DESCRIPTORS),
            used_ring_addr: ring_at(USED),
            avail_ring_addr: ring_at(AVAILABLE),
            log_addr: None,
        },
    )?;
    front_end.set_vring_call(0, &call)?;
    front_end.set_vring_kick(0, &kick)?;
    front_end.set_vring_enable(0, true)?;
    Ring::new(memory, kick, call)
}
