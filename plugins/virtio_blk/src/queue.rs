//! Serves one queue on the queue's own thread: takes requests, does them or has them done, completes them.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue};
use gvmm_plugin_api::worker::{QueueHandler, Watch};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::disk::Disk;
use crate::engine::{Choice, Done, Engines, Job};
use crate::image::Pace;
use crate::request::{Operation, Status, parse};
use crate::resize::ResizeWatch;

/// Completed requests after which the driver is interrupted while more are waiting.
const BATCH: u32 = 16;

/// Serves the requests of one queue.
#[derive(Debug)]
pub(crate) struct BlockQueue {
    disk: Arc<Disk>,
    engines: Engines,
    /// Rings when requests that were left in the queue for their rate may be taken; there if there is a limit.
    throttle_timer: Option<TimerFd>,
    /// On one queue of the disk.
    resize: Option<ResizeWatch>,
    /// Features that the driver accepted.
    features: u64,
    /// Requests completed since the driver was last interrupted.
    unsignalled: u32,
}

/// What the queue's thread waits for beside the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Throttle,
    Resize,
    Engines,
}

/// Who does a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// The queue's thread: it takes no time.
    Here,
    /// The queue's thread if the page cache has the data, else as for `Ring`.
    Cache,
    /// The kernel where there is a ring, else a thread.
    Ring,
    /// A thread.
    Pool,
}

impl BlockQueue {
    pub(crate) fn new(
        disk: Arc<Disk>,
        engines: Engines,
        resize: Option<ResizeWatch>,
        features: u64,
    ) -> io::Result<Self> {
        let throttle_timer = disk.throttle.as_ref().map(|_| timer()).transpose()?;
        Ok(Self { disk, engines, throttle_timer, resize, features, unsignalled: 0 })
    }

    /// Whether as many requests are in flight as the queue has entries; a hostile driver makes more available.
    fn is_full(&self, queue: &VirtQueue) -> bool {
        self.engines.in_flight() >= usize::from(queue.size())
    }

    fn route(&self, job: &Job) -> Route {
        let Disk { image, engine, .. } = &*self.disk;
        if *engine == Choice::Sync {
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
        let request = parse(&mut chain, queue.memory(), &self.disk.limits())?;
        if let Some(throttle) = &self.disk.throttle {
            throttle.charge(Instant::now(), request.operation.bytes());
        }
        let through = self.disk.writes_through(self.features);
        let job = Job { chain, request, through };
        let memory = queue.memory();
        let result = match (self.route(&job), &job.request.operation) {
            (Route::Here, operation) => self.disk.execute(operation, &job.chain, memory, through),
            (Route::Cache, Operation::Read(extent)) => {
                match self.disk.image.read_now(memory, job.chain.writable(), extent.offset) {
                    Ok(true) => Ok(extent.len),
                    Ok(false) => return Ok(self.engines.hand_to_ring(job, memory)?),
                    Err(error) => Err(error),
                }
            }
            (Route::Pool, _) => return Ok(self.engines.hand_to_pool(job)?),
            (Route::Ring | Route::Cache, _) => return Ok(self.engines.hand_to_ring(job, memory)?),
        };
        match &result {
            // A thread can wait until it works.
            Err(error) if self.disk.waits_for_recovery(&job.request.operation, error) => {
                Ok(self.engines.hand_to_pool(job)?)
            }
            _ => self.complete(queue, Done { job, result }),
        }
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

    fn watched(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let throttle = self.throttle_timer.iter().map(|timer| (Source::Throttle, timer.as_fd()));
        let resize = self.resize.iter().map(|watch| (Source::Resize, watch.as_fd()));
        let engines = self.engines.sources().map(|fd| (Source::Engines, fd));
        throttle.chain(resize).chain(engines)
    }

    /// Completes what the engines have done.
    fn collect(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(done) = self.engines.next_done()? {
            self.complete(queue, done)?;
        }
        Ok(())
    }

    /// Whether the next request has to wait for its rate; the timer then rings when it may be taken.
    fn is_throttled(&self) -> Result<bool, QueueError> {
        let (Some(throttle), Some(timer)) = (&self.disk.throttle, &self.throttle_timer) else {
            return Ok(false);
        };
        let Some(delay) = throttle.delay(Instant::now()) else { return Ok(false) };
        // A timer set to zero would never ring.
        let delay = Expiration::OneShot(TimeSpec::from_duration(delay.max(Duration::from_nanos(1))));
        timer.set(delay, TimerSetTimeFlags::empty()).map_err(io::Error::from)?;
        Ok(true)
    }
}

fn timer() -> io::Result<TimerFd> {
    Ok(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?)
}

impl QueueHandler for BlockQueue {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        // At most a full queue at a time, so that the worker sees when it is to stop.
        let mut left = queue.size();
        loop {
            while left > 0 && !self.is_full(queue) {
                let next = if self.is_throttled()? { None } else { queue.pop()? };
                let Some(chain) = next else {
                    left = 0;
                    break;
                };
                self.begin(queue, chain)?;
                left -= 1;
            }
            self.engines.submit()?;
            self.collect(queue)?;
            if left == 0 || self.is_full(queue) {
                break;
            }
        }
        // The worker signals what is left.
        self.unsignalled = 0;
        Ok(())
    }

    fn has_work(&mut self) -> Option<bool> {
        // With a limit requests wait in the queue; threads are slower than what the worker waits for.
        (self.throttle_timer.is_none() && self.engines.by_threads() == 0).then(|| self.engines.any_back())
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        self.watched().map(|(_, fd)| fd).collect()
    }

    fn ready(&mut self, source: usize, queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        // Requests may have been left in the queue for which there will be no kick.
        let mut left = self.is_full(queue);
        let source = self.watched().nth(source).map(|(source, _)| source);
        match source {
            Some(Source::Throttle) => {
                if let Some(timer) = &self.throttle_timer {
                    timer.unset().map_err(io::Error::from)?;
                }
                left = true;
            }
            Some(Source::Resize) => {
                if let Some(watch) = &self.resize {
                    watch.look(&self.disk);
                }
            }
            Some(Source::Engines) | None => {
                self.engines.submit()?;
                self.collect(queue)?;
            }
        }
        if left {
            self.process(queue)?;
        }
        self.unsignalled = 0;
        Ok(Watch::Keep)
    }

    fn stopping(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while self.engines.in_flight() > 0 {
            self.engines.wait()?;
            self.collect(queue)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
