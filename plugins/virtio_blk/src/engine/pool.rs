//! Threads that do requests one at a time each, started as the need shows.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::memory::GuestMemory;
use gvmm_plugin_api::services::Services;

use super::{Done, Job};
use crate::disk::Disk;

/// Most threads of a queue: what a solid-state disk needs to be busy.
const MAX_THREADS: usize = 16;

/// The threads of one queue. Dropping it waits for what they are at; what they have not begun is dropped.
#[derive(Debug)]
pub(crate) struct Pool {
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
    /// There is work, or the pool is closed.
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
    closed: bool,
}

impl Pool {
    pub(crate) fn new(disk: Arc<Disk>, memory: GuestMemory, services: Services) -> io::Result<Self> {
        let (state, done) = (Mutex::default(), Event::new()?);
        let (work, finished) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { disk, memory, state, work, done, finished });
        Ok(Self { shared, services, threads: Vec::new(), in_flight: 0 })
    }

    /// Hands a request in.
    pub(crate) fn submit(&mut self, job: Job) -> io::Result<()> {
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
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Readable when something was done.
    pub(crate) fn source(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    /// Waits until something was done.
    pub(crate) fn wait(&self) {
        let mut state = self.shared.lock();
        while state.done.is_empty() && self.in_flight > 0 {
            state = self.shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes out what was done: swaps it with an empty list.
    pub(crate) fn take_done(&mut self, done: &mut Vec<Done>) {
        self.shared.done.take();
        std::mem::swap(done, &mut self.shared.lock().done);
        self.in_flight -= done.len();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
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
            let operation = &job.request.operation;
            let done = catch_unwind(AssertUnwindSafe(|| {
                self.disk.execute(operation, &job.chain, &self.memory, job.through)
            }));
            let result = done.unwrap_or_else(|_| Err(io::Error::other("the disk's code panicked").into()));
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
}
