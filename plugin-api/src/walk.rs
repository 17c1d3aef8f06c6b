//! Follows a descriptor chain (virtio 1.2, 2.7.5): the buffers of a request from its first descriptor on.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{GuestMemory, GuestRange};

/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: u64 = size_of::<Descriptor>() as u64;

/// A chain that loops, ends outside its table or guest memory, or has a buffer to read behind one to write.
#[derive(Debug)]
pub(crate) struct Malformed;

/// A table of descriptors: that of the queue, or an indirect one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Guest address.
    pub(crate) address: u64,
    /// Number of entries.
    pub(crate) size: u16,
}

impl Table {
    fn read(self, memory: &GuestMemory, index: u16) -> Result<Descriptor, Malformed> {
        if index >= self.size {
            return Err(Malformed);
        }
        let address = self.address.checked_add(DESCRIPTOR_SIZE * u64::from(index)).ok_or(Malformed)?;
        memory.inner().read_obj(GuestAddress(address)).map_err(|_| Malformed)
    }

    /// The indirect table that a descriptor refers to (virtio 1.2, 2.7.5.3).
    fn indirect(descriptor: &Descriptor) -> Result<Self, Malformed> {
        let len = u64::from(descriptor.len());
        if descriptor.has_next() || len == 0 || !len.is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(Malformed);
        }
        // A chain is no longer than 65,535 descriptors, whatever the table's size.
        let size = u16::try_from(len / DESCRIPTOR_SIZE).unwrap_or(u16::MAX);
        Ok(Self { address: descriptor.addr().0, size })
    }
}

/// Appends the buffers of the chain that starts at `head`.
pub(crate) fn walk(
    memory: &GuestMemory,
    table: Table,
    head: u16,
    readable: &mut Vec<GuestRange>,
    writable: &mut Vec<GuestRange>,
) -> Result<(), Malformed> {
    let mut current = table;
    let mut is_indirect = false;
    let mut index = head;
    let mut left = table.size;
    loop {
        // As many steps as there are entries, or the chain loops.
        left = left.checked_sub(1).ok_or(Malformed)?;
        let descriptor = current.read(memory, index)?;
        if descriptor.refers_to_indirect_table() {
            if is_indirect {
                return Err(Malformed);
            }
            current = Table::indirect(&descriptor)?;
            is_indirect = true;
            index = 0;
            left = current.size;
            continue;
        }
        let range = GuestRange { address: descriptor.addr().0, len: descriptor.len() };
        if descriptor.is_write_only() {
            writable.push(range);
        } else if writable.is_empty() {
            readable.push(range);
        } else {
            return Err(Malformed);
        }
        if !descriptor.has_next() {
            return Ok(());
        }
        index = descriptor.next();
    }
}
