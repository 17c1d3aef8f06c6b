//! Serves one queue on the queue's own thread: takes requests, does them or has them done, completes them.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gvmm_plugin_api::memory::GuestMemory;
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue};
use gvmm_plugin_api::worker::{QueueHandler, Watch};

use crate::disk::Disk;
use crate::engine::{Done, Engine, Job, Outcome, Pool, Ring};
use crate::image::Pace;
use crate::request::{Operation, Status, parse};

/// Completed requests after which the driver is interrupted while more are waiting.
const BATCH: u32 = 16;

/// Serves the requests of one queue.
#[derive(Debug)]
pub(crate) struct BlockQueue {
    disk: Arc<Disk>,
    pool: Pool,
    ring: Option<Ring>,
    /// Features that the driver accepted.
    features: u64,
    /// Requests completed since the driver was last interrupted.
    unsignalled: u32,
    /// Empty between calls; kept for its memory.
    done: Vec<Done>,
}

/// Who does a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// The queue's thread: it takes no time.
    Here,
    /// The queue's thread if the page cache has the data, else as for `Ring`.
    Cache,
    /// The kernel where there is a ring, else a thread of the pool.
    Ring,
    /// A thread of the pool.
    Pool,
}

impl BlockQueue {
    pub(crate) fn new(disk: Arc<Disk>, pool: Pool, ring: Option<Ring>, features: u64) -> Self {
        Self { disk, pool, ring, features, unsignalled: 0, done: Vec::new() }
    }

    fn in_flight(&self) -> usize {
        self.pool.in_flight() + self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Whether as many requests are in flight as the queue has entries; a hostile driver makes more available.
    fn is_full(&self, queue: &VirtQueue) -> bool {
        self.in_flight() >= usize::from(queue.size())
    }

    fn route(&self, job: &Job) -> Route {
        let Disk { image, engine, .. } = &*self.disk;
        if *engine == Engine::Sync {
            return Route::Here;
        }
        match (&job.request.operation, image.pace()) {
            (Operation::GetId | Operation::Refuse(_), _) | (_, Pace::Memory) => Route::Here,
            (Operation::Read(extent) | Operation::Write(extent), _) if extent.len == 0 => Route::Here,
            (Operation::Read(_), Pace::Cached) => Route::Cache,
            (Operation::Read(_), Pace::Device) => Route::Ring,
            (Operation::Write(_), _) if job.through => Route::Pool,
            // The page cache takes it; a ring or a thread would only have it done elsewhere.
            (Operation::Write(_), Pace::Cached) => Route::Here,
            (Operation::Write(_), Pace::Device) => Route::Ring,
            (Operation::Flush, _) if image.has_lost_writes() => Route::Here,
            (Operation::Flush, _) => Route::Ring,
            (Operation::Discard(_) | Operation::WriteZeroes(_), _) => Route::Pool,
        }
    }

    /// Begins a request, and completes it if it is done at once.
    fn begin(&mut self, queue: &mut VirtQueue, mut chain: Chain) -> Result<(), QueueError> {
        let request = parse(&mut chain, queue.memory(), &self.disk.limits)?;
        let through = self.disk.writes_through(self.features);
        let job = Job { chain, request, through };
        let route = self.route(&job);
        let result = match (route, &job.request.operation) {
            (Route::Here, operation) => self.disk.execute(operation, &job.chain, queue.memory(), through),
            (Route::Cache, Operation::Read(extent)) => {
                let read = self.disk.image.read_now(queue.memory(), job.chain.writable(), extent.offset);
                match read {
                    Ok(true) => Ok(extent.len),
                    Ok(false) => return self.hand_over(job, Route::Ring, queue.memory()),
                    Err(error) => Err(error),
                }
            }
            (route, _) => return self.hand_over(job, route, queue.memory()),
        };
        self.complete(queue, Done { job, result })
    }

    /// Has a request done by the ring or a thread.
    fn hand_over(&mut self, mut job: Job, route: Route, memory: &GuestMemory) -> Result<(), QueueError> {
        if let (Route::Ring, Some(ring)) = (route, &mut self.ring) {
            match ring.prepare(job, memory) {
                Ok(()) => return Ok(()),
                Err(refused) => job = refused,
            }
        }
        Ok(self.pool.submit(job)?)
    }

    /// Tells the driver that a request is done.
    fn complete(&mut self, queue: &mut VirtQueue, done: Done) -> Result<(), QueueError> {
        let Done { job: Job { chain, request, .. }, result } = done;
        let (status, written) = match (&request.operation, result) {
            (Operation::Refuse(status), _) => {
                self.disk.metrics.errors.add(1);
                (*status, 0)
            }
            (operation, Ok(written)) => {
                self.disk.count(operation);
                // The status byte follows the data.
                (Status::Ok, written + 1)
            }
            (operation, Err(error)) => {
                self.disk.count_failure(operation, &error);
                (Status::IoError, 0)
            }
        };
        queue.memory().write(request.status_address, &[status as u8])?;
        // A chain is at most 4 GiB long.
        queue.push(chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        self.unsignalled += 1;
        if self.unsignalled >= BATCH {
            self.unsignalled = 0;
            queue.signal()?;
        }
        Ok(())
    }

    /// Completes what the ring and the threads have done.
    fn collect(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(outcome) = self.ring.as_mut().and_then(Ring::take) {
            match outcome {
                Outcome::Done(job) => {
                    let read = match &job.request.operation {
                        Operation::Read(extent) => extent.len,
                        _ => 0,
                    };
                    self.complete(queue, Done { job, result: Ok(read) })?;
                }
                Outcome::FlushFailed(job, error) => {
                    self.disk.image.note_flush_failure(error);
                    let result = Err(io::Error::from_raw_os_error(error).into());
                    self.complete(queue, Done { job, result })?;
                }
                Outcome::Again(job) => self.pool.submit(job)?,
            }
        }
        if self.pool.in_flight() > 0 {
            let mut done = std::mem::take(&mut self.done);
            self.pool.take_done(&mut done);
            for one in done.drain(..) {
                self.complete(queue, one)?;
            }
            self.done = done;
        }
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }
}

impl QueueHandler for BlockQueue {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        // At most a full queue at a time, so that the worker sees when it is to stop.
        let mut left = queue.size();
        loop {
            while left > 0 && !self.is_full(queue) {
                let Some(chain) = queue.pop()? else {
                    left = 0;
                    break;
                };
                self.begin(queue, chain)?;
                left -= 1;
            }
            self.submit()?;
            self.collect(queue)?;
            if left == 0 || self.is_full(queue) {
                break;
            }
        }
        // The worker signals what is left.
        self.unsignalled = 0;
        Ok(())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.pool.source()).chain(self.ring.as_ref().map(Ring::source)).collect()
    }

    fn ready(&mut self, _source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        let full = self.is_full(queue);
        self.submit()?;
        self.collect(queue)?;
        if full {
            // Requests may have been left in the queue for which there is no kick.
            self.process(queue)?;
        }
        self.unsignalled = 0;
        Ok(Watch::Keep)
    }

    fn stopping(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while self.in_flight() > 0 {
            match &mut self.ring {
                Some(ring) if ring.in_flight() > 0 => ring.wait()?,
                _ => self.pool.wait(),
            }
            self.collect(queue)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
