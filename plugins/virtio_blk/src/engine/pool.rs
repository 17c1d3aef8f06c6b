//! Threads that do requests one at a time each, started as the need shows.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::memory::{GuestMemory, MemoryError};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::tracing::{error, info};

use super::{Done, Job};
use crate::disk::Disk;

/// Most threads of a queue: what a solid-state disk needs to be busy.
const MAX_THREADS: usize = 16;
/// Time between two attempts at a request that waits for the host to recover.
const RETRY: Duration = Duration::from_secs(1);

/// The threads of one queue. Dropping it waits for what they are at; what they have not begun is dropped.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    services: Services,
    threads: Vec<JoinHandle<Option<()>>>,
    /// Requests handed in and not taken out.
    in_flight: usize,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<Disk>,
    memory: GuestMemory,
    state: Mutex<State>,
    /// There is work, or there is no more patience.
    work: Condvar,
    /// Something was done: for whoever polls, and for whoever waits for nothing else.
    done: Event,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Job>,
    done: Vec<Done>,
    /// Threads that wait for work.
    idle: usize,
    /// Whether requests that fail have failed, whatever the user wants done about it.
    impatient: bool,
    closed: bool,
}

impl Pool {
    pub(super) fn new(disk: Arc<Disk>, memory: GuestMemory, services: Services) -> io::Result<Self> {
        let (state, done) = (Mutex::default(), Event::new()?);
        let (work, finished) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { disk, memory, state, work, done, finished });
        Ok(Self { shared, services, threads: Vec::new(), in_flight: 0 })
    }

    /// Hands a request in.
    pub(super) fn submit(&mut self, job: Job) -> io::Result<()> {
        let mut state = self.shared.lock();
        state.waiting.push_back(job);
        self.in_flight += 1;
        let short = state.waiting.len() > state.idle;
        drop(state);
        self.shared.work.notify_one();
        if short && self.threads.len() < MAX_THREADS {
            let shared = self.shared.clone();
            let name = format!("disk-{}", self.threads.len());
            match self.services.spawn(&name, move || shared.run()) {
                Ok(thread) => self.threads.push(thread),
                // Fewer threads are slower; none at all would never do it.
                Err(error) if self.threads.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Requests handed in and not taken out.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Readable when something was done.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    /// Waits until something was done; what waits for the host to recover fails now.
    pub(super) fn wait(&self) {
        let mut state = self.shared.lock();
        state.impatient = true;
        self.shared.work.notify_all();
        while state.done.is_empty() && self.in_flight > 0 {
            state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes out what was done, in exchange for an empty list.
    pub(super) fn take_done(&mut self, done: &mut Vec<Done>) {
        self.shared.done.take();
        std::mem::swap(done, &mut self.shared.lock().done);
        self.in_flight -= done.len();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.impatient = true;
        state.waiting.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // Its panics were caught and reported.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(job) = self.next() {
            let result = self.insist(&job);
            let mut state = self.lock();
            state.done.push(Done { job, result });
            let first = state.done.len() == 1;
            drop(state);
            if first {
                self.done.signal();
                self.finished.notify_one();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Does a request, again and again if the user wants the guest to wait for the host to recover.
    fn insist(&self, job: &Job) -> Result<u64, MemoryError> {
        let operation = &job.request.operation;
        let mut told = false;
        loop {
            let result = self.execute(job);
            match &result {
                Err(failure) if self.disk.waits_for_recovery(operation, failure) => {
                    if !std::mem::replace(&mut told, true) {
                        error!(
                            "{operation} failed: {failure}; the guest waits, it is tried again every second"
                        );
                    }
                    if self.pause() {
                        return result;
                    }
                }
                Ok(_) if told => {
                    info!("{operation} succeeded at last");
                    return result;
                }
                _ => return result,
            }
        }
    }

    fn execute(&self, job: &Job) -> Result<u64, MemoryError> {
        let done = catch_unwind(AssertUnwindSafe(|| {
            self.disk.execute(&job.request.operation, &job.chain, &self.memory, job.through)
        }));
        done.unwrap_or_else(|_| Err(io::Error::other("the disk's code panicked").into()))
    }

    /// Waits before the next attempt; whether there is to be none.
    fn pause(&self) -> bool {
        let waited = self.work.wait_timeout_while(self.lock(), RETRY, |state| !state.impatient);
        waited.unwrap_or_else(PoisonError::into_inner).0.impatient
    }
}
