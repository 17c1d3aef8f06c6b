//! Requests by io_uring: a batch costs one system call, and nothing waits for anything else.
#![allow(unsafe_code, reason = "the kernel is given addresses, which no type can watch")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use gvmm_plugin_api::memory::GuestMemory;
use io_uring::{IoUring, opcode, squeue, types};

use super::Job;
use crate::request::{Extent, Operation};

/// Most entries of a ring: more requests in flight keep no disk busier, and each costs the kernel memory.
const MAX_ENTRIES: u16 = 1024;
/// Prepared requests that are worth a system call, so that the disk is busy while more are prepared.
const BATCH: usize = 8;
/// Most vectors of one entry: `UIO_MAXIOV` of Linux.
const MAX_VECTORS: usize = 1024;

/// The ring of one queue. Dropping it waits for what is in flight.
pub(super) struct Ring {
    ring: IoUring,
    // Not registered with the ring: a ring lets go of registered files, and so of the image's lock, only some time
    // after it was closed.
    image: OwnedFd,
    slots: Vec<Slot>,
    free: Vec<u16>,
}

/// A place for a request in flight.
#[derive(Default)]
struct Slot {
    job: Option<Job>,
    /// What the kernel reads or writes; unused while the slot is free.
    vectors: Vec<libc::iovec>,
}

/// A request that came back from the ring.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All of it was done.
    Done(Job),
    /// The flush failed with this error number.
    FlushFailed(Job, i32),
    /// It failed or was done in part. Reads and writes may be done again as a whole, by a thread that can say why it
    /// fails.
    Again(Job),
}

// SAFETY: a ring is not shared, only handed to the queue's thread; the addresses in its slots are those of guest memory,
// which is mapped for all threads.
unsafe impl Send for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for an image and a queue of so many entries.
    pub(super) fn new(image: BorrowedFd<'_>, queue_size: u16) -> io::Result<Self> {
        let entries = queue_size.min(MAX_ENTRIES);
        // Since Linux 5.19 completions can wait for the queue's next system call instead of interrupting it.
        let ring = IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries.into());
        let ring = ring.or_else(|_| IoUring::new(entries.into()))?;
        let slots = std::iter::repeat_with(Slot::default).take(entries.into()).collect();
        Ok(Self { ring, image: image.try_clone_to_owned()?, slots, free: (0..entries).rev().collect() })
    }

    /// Readable when something has come back.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and is borrowed as long as this is.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Requests handed in that have not come back.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether something has come back, or would with [`Ring::submit`].
    pub(super) fn any_back(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
    }

    /// Prepares a read, a write or a flush for [`Ring::submit`]. A request that the ring cannot take comes back.
    ///
    /// The memory must stay mapped until the request has come back or the ring is gone, which is what a queue is
    /// promised from its start to its stop.
    pub(super) fn prepare(&mut self, job: Job, memory: &GuestMemory) -> Result<(), Job> {
        let Some(&free) = self.free.last() else { return Err(job) };
        let slot = &mut self.slots[usize::from(free)];
        let Some(entry) = slot.entry(types::Fd(self.image.as_raw_fd()), &job, memory) else {
            return Err(job);
        };
        let entry = entry.user_data(free.into());
        // SAFETY: the vectors live in the slot, which stays as it is until the request comes back; they name guest
        // memory, which outlives the ring's requests (see above, and `drop`).
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return Err(job);
        }
        slot.job = Some(job);
        self.free.pop();
        Ok(())
    }

    /// [`Ring::submit`], once there are so many that it should not wait for more.
    pub(super) fn submit_batch(&mut self) -> io::Result<()> {
        if self.ring.submission().len() >= BATCH { self.submit() } else { Ok(()) }
    }

    /// Hands everything that is prepared to the kernel, what it cannot take now, when called again; and has it hand
    /// back what it has not yet.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let mut prepared = self.ring.submission().len();
        if prepared == 0 && self.ring.submission().taskrun() {
            // Otherwise done with the next system call, which may be one that waits.
            self.wait_for(0)?;
        }
        while prepared > 0 {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Something will come back and make room.
                Err(error) if busy(&error) && self.in_flight() > prepared => return Ok(()),
                other => _ = other?,
            }
            prepared = self.ring.submission().len();
        }
        Ok(())
    }

    /// Waits until something has come back.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.wait_for(1)
    }

    fn wait_for(&mut self, count: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(count) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted || busy(&error) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Takes a request that has come back.
    pub(super) fn take(&mut self) -> Option<Outcome> {
        let entry = self.ring.completion().next()?;
        // User data are the numbers of slots, and those are 16 bits wide.
        let number = entry.user_data() as u16;
        let job = self.slots.get_mut(usize::from(number))?.job.take()?;
        self.free.push(number);
        let outcome = match (&job.request.operation, entry.result()) {
            (Operation::Flush, 0) => Outcome::Done(job),
            (Operation::Flush, error) => Outcome::FlushFailed(job, -error),
            (Operation::Read(extent) | Operation::Write(extent), moved)
                if u64::try_from(moved).is_ok_and(|moved| moved == extent.len) =>
            {
                Outcome::Done(job)
            }
            _ => Outcome::Again(job),
        };
        Some(outcome)
    }
}

/// Whether the kernel cannot take more until some of what it has is done.
fn busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

impl Slot {
    fn entry(&mut self, image: types::Fd, job: &Job, memory: &GuestMemory) -> Option<squeue::Entry> {
        let (ranges, Extent { offset, .. }) = match &job.request.operation {
            Operation::Read(extent) => (job.chain.writable(), extent),
            Operation::Write(extent) => (job.chain.readable(), extent),
            Operation::Flush => {
                return Some(opcode::Fsync::new(image).flags(types::FsyncFlags::DATASYNC).build());
            }
            _ => return None,
        };
        memory.collect_io_vectors(ranges, &mut self.vectors).ok()?;
        if self.vectors.len() > MAX_VECTORS {
            return None;
        }
        // At most MAX_VECTORS.
        let (vectors, count) = (self.vectors.as_ptr(), self.vectors.len() as u32);
        Some(match job.request.operation {
            Operation::Read(_) => opcode::Readv::new(image, vectors, count).offset(*offset).build(),
            _ => opcode::Writev::new(image, vectors, count).offset(*offset).build(),
        })
    }
}

impl Drop for Ring {
    /// The kernel must be done with guest memory before the queue counts as stopped.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.wait().is_err() {
                // Without a working ring nothing tells when the kernel is done; the slots must then stay for ever.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            while self.take().is_some() {}
        }
    }
}
