//! The loads: requests of one kind, so many in flight at a time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::connection::Connection;
use crate::ring::{Descriptor, FREE, QUEUE_SIZE, Ring};

/// A kind of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) writes: bool,
    random: bool,
    /// Bytes of a request.
    size: u32,
    /// Requests in flight.
    depth: u16,
}

/// All loads, in the order in which they run.
pub(crate) const ALL: [Load; 6] = [
    Load { name: "4k_random_reads,_depth_1", writes: false, random: true, size: 4 << 10, depth: 1 },
    Load { name: "4k_random_writes,_depth_1", writes: true, random: true, size: 4 << 10, depth: 1 },
    Load { name: "4k_random_reads,_depth_32", writes: false, random: true, size: 4 << 10, depth: 32 },
    Load { name: "4k_random_writes,_depth_32", writes: true, random: true, size: 4 << 10, depth: 32 },
    Load { name: "128k_sequential_reads", writes: false, random: false, size: 128 << 10, depth: 8 },
    Load { name: "128k_sequential_writes", writes: true, random: false, size: 128 << 10, depth: 8 },
];

/// Descriptors of a request: header, data, status (virtio 1.2, 5.2.6).
const DESCRIPTORS: u16 = 3;
/// Bytes of the header, and where the status byte is behind its start.
const HEADER: u32 = 16;
const STATUS: u64 = 32;
/// Bytes that each request has in memory beside its data.
const FRAME: u64 = 64;
/// Requests between two looks at the clock.
const UNTIMED: u64 = 16;
const SECTOR: u64 = 512;

impl Load {
    /// Has requests done for so much time; how many there were in a second.
    pub(crate) fn run(&self, connection: &mut Connection, time: Duration) -> Result<f64> {
        let Connection { ring, capacity, .. } = connection;
        let mut places = Places::new(self, *capacity)?;
        self.prepare(ring)?;
        let begun = Instant::now();
        for slot in 0..self.depth {
            self.offer(ring, slot, places.next())?;
        }
        ring.publish()?;
        let mut done = 0;
        while done % UNTIMED != 0 || begun.elapsed() < time {
            let slot = self.complete(ring)?;
            done += 1;
            self.offer(ring, slot, places.next())?;
            ring.publish()?;
        }
        let rate = done as f64 / begun.elapsed().as_secs_f64();
        for _ in 0..self.depth {
            self.complete(ring)?;
        }
        Ok(rate)
    }

    /// Lays out the requests that will be in flight.
    fn prepare(&self, ring: &Ring) -> Result<()> {
        const { assert!(32 * DESCRIPTORS <= QUEUE_SIZE) };
        for slot in 0..self.depth {
            let frame = frame(slot);
            let data = self.data(slot);
            ring.memory.write_obj(u32::from(self.writes).to_le(), GuestAddress(frame))?;
            ring.memory.write_obj(0_u32, GuestAddress(frame + 4))?;
            ring.write_chain(
                slot * DESCRIPTORS,
                &[
                    Descriptor { address: frame, len: HEADER, writable: false },
                    Descriptor { address: data, len: self.size, writable: !self.writes },
                    Descriptor { address: frame + STATUS, len: 1, writable: true },
                ],
            )?;
        }
        Ok(())
    }

    fn data(&self, slot: u16) -> u64 {
        let frames = frame(QUEUE_SIZE).next_multiple_of(4096);
        frames + u64::from(slot) * u64::from(self.size)
    }

    fn offer(&self, ring: &mut Ring, slot: u16, offset: u64) -> Result<()> {
        ring.memory.write_obj((offset / SECTOR).to_le(), GuestAddress(frame(slot) + 8))?;
        // No status: a back end that writes none has not done it.
        ring.memory.write_obj(u8::MAX, GuestAddress(frame(slot) + STATUS))?;
        ring.offer(slot * DESCRIPTORS)
    }

    /// Waits for a request to be completed: its slot.
    fn complete(&self, ring: &mut Ring) -> Result<u16> {
        let head = loop {
            if let Some(head) = ring.take()? {
                break head;
            }
            ring.wait()?;
        };
        let slot = head / DESCRIPTORS;
        ensure!(head % DESCRIPTORS == 0 && slot < self.depth, "the back end completed {head}, no request");
        let status: u8 = ring.memory.read_obj(GuestAddress(frame(slot) + STATUS))?;
        ensure!(status == 0, "a request ended with status {status}");
        Ok(slot)
    }
}

fn frame(slot: u16) -> u64 {
    FREE + FRAME * u64::from(slot)
}

/// Where on the disk each request goes.
struct Places {
    /// Requests that the disk has room for, and their size in bytes.
    count: u64,
    size: u64,
    random: bool,
    state: u64,
}

impl Places {
    fn new(load: &Load, capacity: u64) -> Result<Self> {
        let size = u64::from(load.size);
        let count = capacity / size;
        ensure!(count > 0, "a disk of {capacity} bytes has no room for a request");
        // Any odd number will do.
        Ok(Self {
            count,
            size,
            random: load.random,
            state: if load.random { 0x9e37_79b9_7f4a_7c15 } else { 0 },
        })
    }

    fn next(&mut self) -> u64 {
        if self.random {
            // Marsaglia's xorshift: the same places for each back end.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
        } else {
            self.state += 1;
        }
        self.state % self.count * self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lie_on_the_disk_and_cover_it() {
        for load in ALL {
            let capacity = 40 * u64::from(load.size) + 512;
            let mut places = Places::new(&load, capacity).unwrap();
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..2000 {
                let place = places.next();
                assert!(place + u64::from(load.size) <= capacity);
                seen.insert(place);
            }
            assert_eq!(seen.len(), 40, "{}", load.name);
        }
    }

    #[test]
    fn buffers_of_all_requests_fit_memory_and_share_nothing() {
        for load in ALL {
            assert!(frame(load.depth) <= load.data(0));
            assert!(load.data(load.depth) <= crate::connection::MEMORY as u64);
        }
    }
}
