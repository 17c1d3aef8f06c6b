//! The threads that serve a device's queues: one a queue, or one for several that belong together.
//!
//! A thread waits for the driver's kicks and for the descriptors that the handlers name, keeps kicks off while it has
//! work, and reports a broken queue or a panic as a failed device. A device brings a [`QueueHandler`] a queue and
//! leaves the rest to [`QueueWorkers`].

mod gather;
mod look_out;
mod served;
mod thread;

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::queue::{QueueError, VirtQueue};
use crate::services::Services;
use crate::virtio::{QueueSetup, QueueState};
use served::Served;
use thread::WorkerThread;

/// What to do with a source after it was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Go on watching it.
    Keep,
    /// Leave it alone until the driver has made buffers available.
    UntilKick,
}

/// Serves one queue.
pub trait QueueHandler: Send + 'static {
    /// Takes and completes requests until the queue is empty, the rest must wait, or it was busy for a while: a driver
    /// that never lets the queue run empty must not keep the worker from stopping or from other queues.
    ///
    /// Called once when the queue starts, then whenever the driver has made buffers available, and again if it left
    /// some of them or has other work. The worker signals what is left to signal after it returns.
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError>;

    /// Whether the handler has work, new requests aside, that [`QueueHandler::process`] would do now; `None` where it
    /// does not want to be asked.
    ///
    /// The worker asks a handler for some microseconds before it sleeps and looks at the queue meanwhile, so that
    /// neither the driver has to kick nor the worker to be woken. Where it finds that quicker, it also waits for further
    /// requests before it interrupts the driver for those that are completed. It is for handlers that leave no requests
    /// in the queue, have a thread of their own, and whose sources can bear such delays.
    fn has_work(&mut self) -> Option<bool> {
        None
    }

    /// Whether kicks stay off until the handler itself turns them on, by [`VirtQueue::enable_kicks`], when it lacks
    /// buffers.
    ///
    /// It is for handlers of receive queues, which leave buffers in the queue until something arrives: new ones beside
    /// them are no news.
    fn asks_for_kicks(&self) -> bool {
        false
    }

    /// Whether the driver hardly waits for its requests to be given back, as for short frames that it has sent.
    ///
    /// On a shared thread the interrupt for them then waits while the thread has anything else to do. Where the driver
    /// makes new requests meanwhile, it sees those that are done by itself.
    fn interrupts_can_wait(&self) -> bool {
        false
    }

    /// Further descriptors to watch for input; asked for once. One that changes at run time hides behind an epoll
    /// descriptor of the handler's own.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// A source, by its place in [`QueueHandler::sources`], has input.
    fn ready(&mut self, _source: usize, _queue: &mut VirtQueue) -> Result<Watch, QueueError> {
        Ok(Watch::UntilKick)
    }

    /// The queue is about to stop: requests that were taken are to be completed or put back.
    fn stopping(&mut self, _queue: &mut VirtQueue) -> Result<(), QueueError> {
        Ok(())
    }
}

/// The workers of a device. Dropping it stops them.
#[derive(Debug)]
pub struct QueueWorkers {
    services: Services,
    threads: Mutex<Vec<WorkerThread>>,
}

impl QueueWorkers {
    /// No worker yet.
    pub fn new(services: Services) -> Self {
        Self { services, threads: Mutex::new(Vec::new()) }
    }

    /// Starts to serve a queue on a thread of its own.
    pub fn start(&self, index: u16, setup: QueueSetup, handler: impl QueueHandler) -> Result<(), String> {
        self.start_on(index, index, setup, handler)
    }

    /// Starts to serve a queue on the thread that all queues share which are started with the same number, such as the
    /// index of the first of them.
    ///
    /// Each has a turn after the other. While one is served the others gather requests, which then take fewer wake-ups
    /// and interrupts: that suits queues of which one causes what the other does, such as both of a network card.
    pub fn start_on(
        &self,
        thread: u16,
        index: u16,
        setup: QueueSetup,
        handler: impl QueueHandler,
    ) -> Result<(), String> {
        let mut threads = self.lock();
        if threads.iter().any(|thread| thread.serves(index)) {
            return Err(format!("queue {index} is already started"));
        }
        let served = Served::new(index, setup, Box::new(handler))?;
        if let Some(thread) = threads.iter_mut().find(|running| running.number() == thread) {
            return thread.serve(served);
        }
        let mut started = WorkerThread::start(thread, &self.services)
            .map_err(|error| format!("queue {index}: cannot start a thread: {error}"))?;
        started.serve(served)?;
        threads.push(started);
        Ok(())
    }

    /// Stops serving a queue; where it stands, `None` if it was not started or its thread panicked.
    pub fn stop(&self, index: u16) -> Option<QueueState> {
        let mut threads = self.lock();
        let at = threads.iter().position(|thread| thread.serves(index))?;
        let state = threads[at].stop(index);
        if threads[at].is_idle() {
            threads.swap_remove(at).end();
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, Vec<WorkerThread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QueueWorkers {
    fn drop(&mut self) {
        self.lock().drain(..).for_each(WorkerThread::end);
    }
}

#[cfg(test)]
mod tests;
