//! The threads that serve a device's queues, one a queue.
//!
//! A worker waits for the driver's kick and for the descriptors that the handler names, keeps kicks off while it has
//! work, and reports a broken queue or a panic as a failed device. A device brings a [`QueueHandler`] a queue and
//! leaves the rest to [`QueueWorkers`].

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::gather::Gather;
use crate::interrupt::Event;
use crate::look_out::{LookOut, look_for};
use crate::queue::{QueueError, VirtQueue};
use crate::services::Services;
use crate::virtio::{QueueSetup, QueueState};

/// What to do with a source after it was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Go on watching it.
    Keep,
    /// Leave it alone until the driver has made buffers available.
    UntilKick,
}

/// Serves one queue on the queue's own thread.
pub trait QueueHandler: Send + 'static {
    /// Takes and completes requests until the queue is empty, the rest must wait, or it was busy for a while: a driver
    /// that never lets the queue run empty must not keep the worker from stopping.
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
    /// in the queue and whose sources can bear such delays.
    fn has_work(&mut self) -> Option<bool> {
        None
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
    running: Mutex<Vec<Option<Running>>>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<Stop>,
    thread: JoinHandle<Option<QueueState>>,
}

impl QueueWorkers {
    /// No worker yet.
    pub fn new(services: Services) -> Self {
        Self { services, running: Mutex::new(Vec::new()) }
    }

    /// Starts a worker for a queue.
    pub fn start(&self, index: u16, setup: QueueSetup, handler: impl QueueHandler) -> Result<(), String> {
        let mut running = self.lock();
        let slot = usize::from(index);
        if running.len() <= slot {
            running.resize_with(slot + 1, || None);
        }
        if running[slot].is_some() {
            return Err(format!("queue {index} is already started"));
        }
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("queue {index}: {what}: {error}");
        let event = Event::new().map_err(|e| failed("cannot make an eventfd", &e))?;
        let stop = Arc::new(Stop { event, asked: AtomicBool::new(false) });
        let kick = setup.kick.try_clone().map_err(|e| failed("cannot copy an eventfd", &e))?;
        let queue = VirtQueue::new(setup).map_err(|e| failed("refused", &e))?;
        let services = self.services.clone();
        let worker = Worker {
            queue,
            handler,
            kick,
            stop: stop.clone(),
            look_out: LookOut::new(),
            gather: Gather::new(),
        };
        let body = move || worker.run(index, &services);
        let thread = self.services.spawn(&format!("queue-{index}"), body);
        running[slot] =
            Some(Running { stop, thread: thread.map_err(|e| failed("cannot start a thread", &e))? });
        Ok(())
    }

    /// Stops a queue's worker; where the queue stands, `None` if it was not started or its worker panicked.
    pub fn stop(&self, index: u16) -> Option<QueueState> {
        let running = self.lock().get_mut(usize::from(index))?.take()?;
        running.end()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn end(self) -> Option<QueueState> {
        self.stop.asked.store(true, Ordering::Relaxed);
        self.stop.event.signal();
        self.thread.join().ok().flatten()
    }
}

impl Drop for QueueWorkers {
    fn drop(&mut self) {
        for running in self.lock().drain(..).flatten() {
            running.end();
        }
    }
}

/// Asks a worker to stop, be it waiting or at work.
#[derive(Debug)]
struct Stop {
    event: Event,
    asked: AtomicBool,
}

struct Worker<H> {
    queue: VirtQueue,
    handler: H,
    kick: Event,
    stop: Arc<Stop>,
    look_out: LookOut,
    gather: Gather,
}

const KICK: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
/// Batches after which the sources have a turn, however busy the driver is.
const ROUNDS: u32 = 256;

impl<H: QueueHandler> Worker<H> {
    fn run(mut self, index: u16, services: &Services) -> QueueState {
        if let Err(error) = self.serve() {
            services.device_failed(&format!("queue {index}: {error}"));
        }
        self.queue.state()
    }

    fn serve(&mut self) -> Result<(), QueueError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(std::io::Error::from)?;
        let add = |fd: BorrowedFd<'_>, flags, token| {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | flags, token)).map_err(std::io::Error::from)
        };
        add(std::os::fd::AsFd::as_fd(&self.stop.event), EpollFlags::empty(), STOP)?;
        // Edge-triggered, every kick is reported once and need not be read: a system call less for each.
        add(std::os::fd::AsFd::as_fd(&self.kick), EpollFlags::EPOLLET, KICK)?;
        for (token, fd) in (0..).zip(self.handler.sources()) {
            add(fd, EpollFlags::empty(), token)?;
        }
        let mut paused = Vec::new();
        let mut unfinished = self.drain()?;
        loop {
            let mut events = [EpollEvent::empty(); 8];
            let timeout = if unfinished { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            let ready = match epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(std::io::Error::from)?,
            };
            let mut more = std::mem::take(&mut unfinished);
            for event in &events[..ready] {
                match event.data() {
                    STOP => {
                        self.handler.stopping(&mut self.queue)?;
                        return self.queue.signal();
                    }
                    KICK => more = true,
                    source => {
                        if self.source_ready(source)? == Watch::UntilKick {
                            self.leave_alone(&epoll, source)?;
                            paused.push(source);
                        }
                        more |= self.more_after_source()?;
                    }
                }
            }
            if more {
                unfinished = self.drain()?;
                self.watch_again(&epoll, &paused)?;
                paused.clear();
            }
        }
    }

    /// Works off the queue with kicks off, until with kicks on nothing has come or nothing more can be taken; whether
    /// there is more to do once the sources have had their turn.
    fn drain(&mut self) -> Result<bool, QueueError> {
        // Whether there are requests that the handler must see. What it sees and does not take is to wait; anything else
        // came just now, without a kick.
        let mut seen = false;
        for _ in 0..ROUNDS {
            if self.stop.asked.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.queue.disable_kicks()?;
            let before = self.queue.state();
            self.handler.process(&mut self.queue)?;
            self.gather_more(before.next_used)?;
            self.queue.signal()?;
            let any_done = self.queue.state() != before;
            let more = any_done && self.looks_out() && self.more_comes()? || self.queue.enable_kicks()?;
            if !more || seen && !any_done {
                return Ok(false);
            }
            seen = self.queue.has_requests()?;
        }
        Ok(true)
    }

    /// Before the driver is interrupted for what has been completed since the used ring was there, waits for requests
    /// that can share the interrupt.
    fn gather_more(&mut self, used: u16) -> Result<(), QueueError> {
        let completed = |queue: &VirtQueue| queue.state().next_used.wrapping_sub(used);
        let mut done = completed(&self.queue);
        if done == 0 || self.handler.has_work().is_none() || !self.look_out.is_possible() {
            return Ok(());
        }
        while let Some(wait) = self.gather.wait(done) {
            if !look_for(wait, || self.queue.has_requests())? {
                self.gather.in_vain(done);
                break;
            }
            self.handler.process(&mut self.queue)?;
            // What takes longer is not waited for.
            if std::mem::replace(&mut done, completed(&self.queue)) == done {
                break;
            }
        }
        self.gather.interrupted(done, Instant::now());
        Ok(())
    }

    /// Whether to look out for something to do before sleeping.
    fn looks_out(&mut self) -> bool {
        self.handler.has_work().is_some() && self.look_out.is_due()
    }

    /// Looks out for something to do, kicks being off.
    fn more_comes(&mut self) -> Result<bool, QueueError> {
        let Self { queue, handler, look_out, .. } = self;
        look_out.run(|| Ok(queue.has_requests()? || handler.has_work() == Some(true)))
    }

    fn source_ready(&mut self, source: u64) -> Result<Watch, QueueError> {
        let watch = self.handler.ready(usize::try_from(source).unwrap_or(usize::MAX), &mut self.queue)?;
        self.queue.signal()?;
        Ok(watch)
    }

    /// Whether there is more to do, without a kick, when a source has been served.
    fn more_after_source(&mut self) -> Result<bool, QueueError> {
        if !self.looks_out() {
            return Ok(false);
        }
        self.queue.disable_kicks()?;
        Ok(self.more_comes()? || self.queue.enable_kicks()?)
    }

    /// Without its descriptor in the epoll a source that has hung up is not reported either.
    fn leave_alone(&self, epoll: &Epoll, source: u64) -> Result<(), QueueError> {
        if let Some(fd) = self.source(source) {
            epoll.delete(fd).map_err(std::io::Error::from)?;
        }
        Ok(())
    }

    fn watch_again(&self, epoll: &Epoll, sources: &[u64]) -> Result<(), QueueError> {
        for &source in sources {
            if let Some(fd) = self.source(source) {
                epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source)).map_err(std::io::Error::from)?;
            }
        }
        Ok(())
    }

    fn source(&self, source: u64) -> Option<BorrowedFd<'_>> {
        usize::try_from(source).ok().and_then(|index| self.handler.sources().get(index).copied())
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
