//! What the driver has set up, kept so that it can be told to one back end after the other.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::memory::{GuestMemory, MemoryRegion};
use gvmm_plugin_api::virtio::{QueueSetup, QueueState};

use crate::protocol::payload::{MAX_TABLE_REGIONS, Region};

/// Guest memory as a back end can map it.
#[derive(Debug)]
pub(super) struct SharedMemory {
    regions: Vec<(Region, OwnedFd)>,
    view: GuestMemory,
}

impl SharedMemory {
    fn new(regions: &[MemoryRegion]) -> Result<Self, String> {
        if regions.is_empty() || regions.len() > MAX_TABLE_REGIONS {
            return Err(format!(
                "guest memory has {} regions, a back end takes 1 to {MAX_TABLE_REGIONS}",
                regions.len()
            ));
        }
        let view = GuestMemory::new(regions).map_err(|e| e.to_string())?;
        let regions = regions.iter().map(shared).collect::<Result<_, _>>()?;
        Ok(Self { regions, view })
    }

    /// The regions, for a memory table.
    pub(super) fn table(&self) -> Vec<Region> {
        self.regions.iter().map(|(region, _)| *region).collect()
    }

    /// The files behind the regions.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        self.regions.iter().map(|(_, file)| file.as_fd()).collect()
    }

    /// The address in this process of a guest address, by which the protocol names rings.
    pub(super) fn user_address(&self, guest_address: u64) -> Option<u64> {
        let regions = self.regions.iter().map(|(region, _)| region);
        regions
            .filter_map(|region| Some((guest_address.checked_sub(region.guest_address)?, region)))
            .find(|(offset, region)| *offset < region.size)
            .map(|(offset, region)| region.user_address + offset)
    }

    /// The index of a ring (virtio 1.2, 2.7.6 and 2.7.8): behind the flags.
    fn index(&self, ring: u64) -> Option<u16> {
        let mut index = [0; 2];
        self.view.read(ring.checked_add(2)?, &mut index).ok()?;
        Some(u16::from_le_bytes(index))
    }
}

fn shared(region: &MemoryRegion) -> Result<(Region, OwnedFd), String> {
    let at = region.guest_address();
    let (file, mmap_offset) = region
        .file()
        .ok_or_else(|| format!("guest memory at {at:#x} cannot be shared with another process"))?;
    // SAFETY: the machine keeps the file open as long as the region is in use, which it is during this call.
    let file = unsafe { BorrowedFd::borrow_raw(file) }.try_clone_to_owned();
    let file = file.map_err(|e| format!("the file of guest memory at {at:#x}: {e}"))?;
    let user_address = region.host_address() as u64;
    Ok((Region { guest_address: at, size: region.size(), user_address, mmap_offset }, file))
}

/// Where the next back end takes a queue up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resume {
    /// At this entry of the available ring: no back end has had the queue.
    At(u16),
    /// Where the used ring stands; what is in flight behind it, the notes tell, or nothing is.
    AtUsed,
    /// Requests were in flight and nobody knows which: nowhere, until the driver has reset the device.
    Nowhere,
}

/// A queue that the driver has set up.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) size: u16,
    pub(super) descriptor_table: u64,
    pub(super) available_ring: u64,
    pub(super) used_ring: u64,
    pub(super) kick: Event,
    pub(super) call: Event,
    pub(super) resume: Resume,
    /// Whether a back end that is connected has it.
    pub(super) running: bool,
}

/// What is known of the driver.
#[derive(Debug)]
pub(super) struct Driver {
    /// Features that it has accepted.
    pub(super) features: u64,
    pub(super) memory: SharedMemory,
    /// Queues that are started, by index.
    pub(super) queues: BTreeMap<u16, Queue>,
}

impl Driver {
    /// A driver of which a queue's set-up tells.
    pub(super) fn new(setup: &QueueSetup) -> Result<Self, String> {
        Ok(Self {
            features: setup.features,
            memory: SharedMemory::new(&setup.memory)?,
            queues: BTreeMap::new(),
        })
    }

    /// Takes a queue.
    pub(super) fn add(&mut self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let queue = Queue {
            size: setup.size,
            descriptor_table: setup.descriptor_table,
            available_ring: setup.available_ring,
            used_ring: setup.used_ring,
            kick: setup.kick,
            call: setup.call.into_event(),
            resume: Resume::At(setup.state.next_avail),
            running: false,
        };
        for ring in [queue.descriptor_table, queue.available_ring, queue.used_ring] {
            self.memory
                .user_address(ring)
                .ok_or_else(|| format!("its ring at {ring:#x} is not in guest memory"))?;
        }
        match self.queues.insert(index, queue) {
            None => Ok(()),
            Some(_) => Err("it is already started".to_owned()),
        }
    }

    /// Where the used ring of a queue stands.
    pub(super) fn used_index(&self, queue: &Queue) -> u16 {
        self.memory.index(queue.used_ring).unwrap_or(0)
    }

    /// Where a queue stands by the rings alone.
    pub(super) fn state_of(&self, queue: &Queue) -> QueueState {
        let used = self.used_index(queue);
        QueueState { next_avail: used, next_used: used }
    }

    /// The back end is gone: decides where each queue that it had is taken up. `replayed` says that the next one finds out
    /// by itself what was in flight, or that order tells. Returns the queues of which nobody knows.
    pub(super) fn lose(&mut self, replayed: bool) -> Vec<u16> {
        let mut unknown = Vec::new();
        let memory = &self.memory;
        for (&index, queue) in self.queues.iter_mut().filter(|(_, queue)| queue.running) {
            queue.running = false;
            // The used ring first: it stands still now, and requests that come meanwhile only make the queue look busy.
            let used = memory.index(queue.used_ring);
            let quiet = used.is_some() && used == memory.index(queue.available_ring);
            queue.resume = if replayed || quiet { Resume::AtUsed } else { Resume::Nowhere };
            if queue.resume == Resume::Nowhere {
                unknown.push(index);
            }
        }
        unknown
    }

    /// Whether the driver has to reset the device before anything can go on.
    pub(super) fn needs_reset(&self) -> bool {
        self.queues.values().any(|queue| queue.resume == Resume::Nowhere)
    }

    /// No back end is to have the queues any more.
    pub(super) fn give_up(&mut self) {
        for queue in self.queues.values_mut() {
            queue.running = false;
            queue.resume = Resume::Nowhere;
        }
    }
}
