//! Requests that are done while the queue goes on: by io_uring where the kernel has it, by threads for the rest.
#![deny(unsafe_code)]

mod pool;
mod ring;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gvmm_plugin_api::memory::{GuestMemory, MemoryError};
use gvmm_plugin_api::queue::Chain;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing::info;

use self::pool::Pool;
use self::ring::{Outcome, Ring};
use crate::disk::Disk;
use crate::image::{Image, Pace};
use crate::request::{Operation, Request};

/// A request under way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) chain: Chain,
    pub(crate) request: Request,
    /// Whether a write must be durable when it is completed.
    pub(crate) through: bool,
}

/// A request that has been done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) job: Job,
    /// Bytes written to the data buffers.
    pub(crate) result: Result<u64, MemoryError>,
}

/// The user's choice of who waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The kernel where it has io_uring, else threads.
    Auto,
    /// The kernel.
    Uring,
    /// Threads.
    Threads,
    /// The queue's thread itself.
    Sync,
}

impl Choice {
    /// The choice for a word of the option, which the schema has checked.
    pub(crate) fn from_word(word: &str) -> Self {
        match word {
            "io_uring" => Self::Uring,
            "threads" => Self::Threads,
            "sync" => Self::Sync,
            _ => Self::Auto,
        }
    }

    /// Logs who will wait for the disk; an error when it is not who was chosen.
    pub(crate) fn check(self, image: &dyn Image) -> io::Result<()> {
        let probed = match self {
            Self::Sync => {
                info!("each queue does one request at a time");
                return Ok(());
            }
            _ if image.pace() == Pace::Memory => {
                info!("the disk is in memory: nothing waits for it");
                return Ok(());
            }
            Self::Threads => Ok(None),
            Self::Auto | Self::Uring => image.file().map(|file| Ring::new(file, 1)).transpose(),
        };
        match probed {
            Ok(Some(_)) => info!("io_uring waits for the disk"),
            Ok(None) if self == Self::Uring => return Err(io::Error::from(io::ErrorKind::Unsupported)),
            Err(error) if self == Self::Uring => return Err(error),
            Ok(None) => info!("threads wait for the disk"),
            Err(error) => info!("threads wait for the disk: no io_uring here ({error})"),
        }
        Ok(())
    }
}

/// What does the requests of one queue.
#[derive(Debug)]
pub(crate) struct Engines {
    disk: Arc<Disk>,
    pool: Pool,
    ring: Option<Ring>,
    /// Taken from the pool and not yet from here.
    done: Vec<Done>,
}

impl Engines {
    /// The engines for a queue of so many entries.
    pub(crate) fn new(
        disk: Arc<Disk>,
        memory: GuestMemory,
        services: Services,
        queue_size: u16,
    ) -> io::Result<Self> {
        let ring = match (disk.engine, disk.image.pace(), disk.image.file()) {
            (Choice::Sync | Choice::Threads, _, _) | (_, Pace::Memory, _) | (_, _, None) => None,
            (Choice::Uring, _, Some(file)) => Some(Ring::new(file, queue_size)?),
            (Choice::Auto, _, Some(file)) => Ring::new(file, queue_size).ok(),
        };
        let pool = Pool::new(disk.clone(), memory, services)?;
        Ok(Self { disk, pool, ring, done: Vec::new() })
    }

    /// Requests handed in and not taken out.
    pub(crate) fn in_flight(&self) -> usize {
        self.pool.in_flight() + self.done.len() + self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Has a request done by the kernel, or by a thread where there is no ring.
    pub(crate) fn hand_to_ring(&mut self, job: Job, memory: &GuestMemory) -> io::Result<()> {
        let refused = match &mut self.ring {
            Some(ring) => match ring.prepare(job, memory) {
                Ok(()) => return ring.submit_batch(),
                Err(job) => job,
            },
            None => job,
        };
        self.hand_to_pool(refused)
    }

    /// Has a request done by a thread.
    pub(crate) fn hand_to_pool(&mut self, job: Job) -> io::Result<()> {
        self.pool.submit(job)
    }

    /// Makes the kernel begin what was handed in.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    /// Takes out a request that was done.
    pub(crate) fn next_done(&mut self) -> io::Result<Option<Done>> {
        while let Some(outcome) = self.ring.as_mut().and_then(Ring::take) {
            match outcome {
                Outcome::Done(job) => {
                    let read = match &job.request.operation {
                        Operation::Read(extent) => extent.len,
                        _ => 0,
                    };
                    return Ok(Some(Done { job, result: Ok(read) }));
                }
                Outcome::FlushFailed(job, error) => {
                    self.disk.image.note_flush_failure(error);
                    let result = Err(io::Error::from_raw_os_error(error).into());
                    return Ok(Some(Done { job, result }));
                }
                Outcome::Again(job) => self.pool.submit(job)?,
            }
        }
        if self.done.is_empty() && self.pool.in_flight() > 0 {
            self.pool.take_done(&mut self.done);
        }
        Ok(self.done.pop())
    }

    /// Requests that threads have.
    pub(crate) fn by_threads(&self) -> usize {
        self.pool.in_flight()
    }

    /// Whether something has come back from the kernel.
    pub(crate) fn any_back(&mut self) -> bool {
        self.ring.as_mut().is_some_and(Ring::any_back)
    }

    /// Readable when something was done.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.pool.source()).chain(self.ring.as_ref().map(Ring::source))
    }

    /// Waits until something in flight is done. Requests that wait for the host to recover fail instead.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        match &mut self.ring {
            Some(ring) if ring.in_flight() > 0 => ring.wait(),
            _ => {
                self.pool.wait();
                Ok(())
            }
        }
    }
}
