//! Tells a back end what the driver has set up.

use std::os::fd::{AsFd, OwnedFd};

use super::driver::{Driver, Queue, Resume};
use super::peer::{Peer, PeerError};
use super::shape::Shape;
use crate::protocol::features::{INFLIGHT_SHMFD, PROTOCOL_FEATURES, STATUS, status};
use crate::protocol::payload::{Inflight, MemoryTable, VringAddress, VringEvent, VringState};
use crate::protocol::{ChannelError, request};

/// Memory in which back ends note what is in flight; it outlives each of them.
#[derive(Debug)]
pub(super) struct Notes {
    pub(super) file: OwnedFd,
    pub(super) description: Inflight,
}

/// Tells features and memory, and gives the back end the notes of the one before, or has it make some.
pub(super) fn device(
    peer: &Peer,
    shape: &Shape,
    driver: &Driver,
    notes: &mut Option<Notes>,
) -> Result<(), PeerError> {
    if peer.has(STATUS) {
        set_status(peer, status::ACKNOWLEDGE | status::DRIVER)?;
    }
    let features = (driver.features & shape.passed) | (peer.offered & PROTOCOL_FEATURES);
    peer.tell(request::SET_FEATURES, &features, &[])?;
    if peer.has(STATUS) {
        set_status(peer, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK)?;
    }
    peer.tell(request::SET_MEM_TABLE, &MemoryTable(driver.memory.table()), &driver.memory.files())?;
    if peer.has(INFLIGHT_SHMFD) {
        let notes = match notes {
            Some(notes) => notes,
            None => notes.insert(new_notes(peer, shape)?),
        };
        peer.tell(request::SET_INFLIGHT_FD, &notes.description, &[notes.file.as_fd()])?;
    }
    Ok(())
}

fn new_notes(peer: &Peer, shape: &Shape) -> Result<Notes, PeerError> {
    let sizes = &shape.traits.queue_sizes;
    let asked = Inflight {
        mmap_size: 0,
        mmap_offset: 0,
        // At most 256.
        queues: sizes.len() as u16,
        queue_size: sizes.iter().copied().max().unwrap_or(0),
    };
    let (description, file) = peer.ask_fd(request::GET_INFLIGHT_FD, &asked).map_err(|error| match error {
        // There is no other way to refuse this request.
        PeerError::Channel { error: ChannelError::Closed, .. } => PeerError::Unfit(format!(
            "it closed the connection when it was asked for notes on {} queues of {} entries (GET_INFLIGHT_FD): if it has \
             fewer or smaller ones, say so by queues= and queue-size=",
            asked.queues, asked.queue_size
        )),
        other => other,
    })?;
    Ok(Notes { file, description })
}

/// Hands over a queue, from where it is to be taken up.
pub(super) fn queue(
    peer: &Peer,
    driver: &mut Driver,
    index: u16,
    errors: &impl AsFd,
) -> Result<(), PeerError> {
    let Some(queue) = driver.queues.get(&index) else { return Ok(()) };
    let base = match queue.resume {
        Resume::At(base) => base,
        Resume::AtUsed => driver.used_index(queue),
        Resume::Nowhere => return Ok(()),
    };
    // The protocol has 8 bits for the index of a ring with an event, and the options allow no more queues.
    let event = VringEvent { index: index as u8, has_fd: true };
    let ring = u32::from(index);
    let size = VringState { index: ring, num: queue.size.into() };
    peer.tell(request::SET_VRING_NUM, &size, &[]).map_err(|error| match error {
        PeerError::Refused(_) => PeerError::QueueSize(queue.size),
        other => other,
    })?;
    peer.tell(request::SET_VRING_BASE, &VringState { index: ring, num: base.into() }, &[])?;
    peer.tell(request::SET_VRING_ADDR, &address(driver, queue, ring)?, &[])?;
    peer.tell(request::SET_VRING_CALL, &event, &[queue.call.as_fd()])?;
    peer.tell(request::SET_VRING_ERR, &event, &[errors.as_fd()])?;
    // From here on the back end may take requests, whatever becomes of the connection.
    if let Some(queue) = driver.queues.get_mut(&index) {
        queue.running = true;
    }
    let Some(queue) = driver.queues.get(&index) else { return Ok(()) };
    peer.tell(request::SET_VRING_KICK, &event, &[queue.kick.as_fd()])?;
    if peer.offered & PROTOCOL_FEATURES != 0 {
        peer.tell(request::SET_VRING_ENABLE, &VringState { index: ring, num: 1 }, &[])?;
    }
    if peer.has(STATUS) {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        set_status(peer, all)?;
    }
    // Some back ends forget a kick that comes before the queue is enabled.
    peer.settle()?;
    // What was made or completed while nobody was there was told to nobody.
    queue.kick.signal();
    queue.call.signal();
    Ok(())
}

/// Takes a queue back; the entry of the available ring at which it stands.
pub(super) fn take_back(peer: &Peer, index: u16) -> Result<u16, PeerError> {
    let ring = u32::from(index);
    if peer.offered & PROTOCOL_FEATURES != 0 {
        peer.tell(request::SET_VRING_ENABLE, &VringState { index: ring, num: 0 }, &[])?;
    }
    let state: VringState = peer.ask(request::GET_VRING_BASE, &VringState { index: ring, num: 0 })?;
    u16::try_from(state.num).map_err(|_| PeerError::Refused("GET_VRING_BASE of a split ring"))
}

/// Sets the device status (virtio 1.2, 2.1).
pub(super) fn set_status(peer: &Peer, value: u8) -> Result<(), PeerError> {
    peer.tell(request::SET_STATUS, &u64::from(value), &[])
}

fn address(driver: &Driver, queue: &Queue, index: u32) -> Result<VringAddress, PeerError> {
    let user = |guest: u64| {
        let address = driver.memory.user_address(guest);
        address.ok_or_else(|| PeerError::Unfit(format!("the ring at {guest:#x} is not in guest memory")))
    };
    Ok(VringAddress {
        index,
        flags: 0,
        descriptor: user(queue.descriptor_table)?,
        used: user(queue.used_ring)?,
        available: user(queue.available_ring)?,
        log: 0,
    })
}
