//! One queue with its handler, as its thread serves it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::gather::Gather;
use super::look_out::{LookOut, look_for};
use super::{QueueHandler, Watch};
use crate::interrupt::Event;
use crate::queue::{QueueError, VirtQueue};
use crate::virtio::{QueueSetup, QueueState};

/// Token of a queue's kick; its sources have their places in the list.
pub(super) const KICK: u32 = u32::MAX;

/// Batches of a queue that has the thread for itself after which its sources have a turn, however busy the driver is.
const ROUNDS: u32 = 256;
/// The same for one that shares the thread.
const SHARED_ROUNDS: u32 = 1;
/// Most turns for which an interrupt that can wait is held back.
const MOST_HELD: u32 = 8;

/// A queue that has been started.
pub(super) struct Served {
    pub(super) index: u16,
    queue: VirtQueue,
    handler: Box<dyn QueueHandler>,
    kick: Event,
    pub(super) look_out: LookOut,
    pub(super) gather: Gather,
    /// It has the thread for itself.
    pub(super) alone: bool,
    /// It has, or may have, something to do.
    due: bool,
    /// Index of the available ring up to which the handler has seen requests; those of them that it leaves are to wait.
    seen: u16,
    /// Turns for which an interrupt has been held back.
    held: u32,
    /// Sources that are left alone until the driver has made buffers available.
    paused: Vec<u32>,
}

impl Served {
    /// Takes over a queue that the driver has set up.
    pub(super) fn new(index: u16, setup: QueueSetup, handler: Box<dyn QueueHandler>) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("queue {index}: {what}: {error}");
        let kick = setup.kick.try_clone().map_err(|e| failed("cannot copy an eventfd", &e))?;
        let queue = VirtQueue::new(setup).map_err(|e| failed("refused", &e))?;
        let (look_out, gather) = (LookOut::new(), Gather::new());
        let seen = queue.state().next_avail;
        Ok(Self {
            index,
            queue,
            handler,
            kick,
            look_out,
            gather,
            alone: true,
            due: true,
            seen,
            held: 0,
            paused: Vec::new(),
        })
    }

    /// Whether it wants to be served.
    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// Whether an interrupt is held back.
    pub(super) fn holds_back(&self) -> bool {
        self.held > 0
    }

    /// Sends the interrupt that is held back.
    pub(super) fn announce(&mut self) -> Result<(), QueueError> {
        self.held = 0;
        self.queue.signal()
    }

    /// The driver has made buffers available.
    pub(super) fn kicked(&mut self) {
        self.due = true;
    }

    /// Index of the available ring up to which requests were taken or at least seen.
    fn known(&self) -> u16 {
        let taken = self.queue.state().next_avail;
        // Indexes wrap; neither is further ahead than a queue is long.
        if taken.wrapping_sub(self.seen) < 1 << 15 { taken } else { self.seen }
    }

    /// Whether there are requests that the handler has not seen.
    fn has_news(&self) -> Result<bool, QueueError> {
        Ok(self.queue.available()? != self.known())
    }

    /// Where the queue stands.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Has an epoll report kicks and sources.
    pub(super) fn watch(&self, epoll: &Epoll) -> Result<(), QueueError> {
        // Edge-triggered, every kick is reported once and need not be read: a system call less for each.
        let kick = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, self.token(KICK));
        epoll.add(self.kick.as_fd(), kick).map_err(io::Error::from)?;
        (0..self.handler.sources().len() as u32).try_for_each(|source| self.watch_source(epoll, source))
    }

    /// Takes all of that back.
    pub(super) fn unwatch(&self, epoll: &Epoll) {
        // What is not there, because it is left alone or was refused, need not be removed.
        let _ = epoll.delete(self.kick.as_fd());
        for source in self.handler.sources() {
            let _ = epoll.delete(source);
        }
    }

    fn watch_source(&self, epoll: &Epoll, source: u32) -> Result<(), QueueError> {
        if let Some(fd) = self.source(source) {
            epoll
                .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, self.token(source)))
                .map_err(io::Error::from)?;
        }
        Ok(())
    }

    fn source(&self, source: u32) -> Option<BorrowedFd<'_>> {
        self.handler.sources().get(source as usize).copied()
    }

    fn token(&self, what: u32) -> u64 {
        u64::from(self.index) << 32 | u64::from(what)
    }

    /// The thread has woken: while it is awake it looks at the queue by itself, and a kick would be an exit for nothing.
    pub(super) fn wake(&mut self) -> Result<(), QueueError> {
        if self.handler.asks_for_kicks() { Ok(()) } else { self.queue.disable_kicks() }
    }

    /// All queues of the thread have had a turn; it is about to sleep, unless there is something to do.
    pub(super) fn rest(&mut self) -> Result<(), QueueError> {
        if !self.alone
            && self.held < MOST_HELD
            && self.handler.interrupts_can_wait()
            && self.queue.has_unsignalled()
        {
            self.held += 1;
        } else {
            self.announce()?;
        }
        if !self.due && !self.handler.asks_for_kicks() {
            // A source that waits for more buffers needs a kick for each; for requests that wait, more of them are no news.
            let from = if self.paused.is_empty() { self.state().next_avail } else { self.known() };
            self.due = self.queue.enable_kicks_beyond(from)? && self.has_news()?;
        }
        Ok(())
    }

    /// A source has input.
    pub(super) fn source_ready(&mut self, epoll: &Epoll, source: u32) -> Result<(), QueueError> {
        self.seen = self.queue.available()?;
        let watch = self.handler.ready(source as usize, &mut self.queue)?;
        if self.alone {
            self.queue.signal()?;
        }
        // Without its descriptor in the epoll a source that has hung up is not reported either.
        if watch == Watch::UntilKick
            && let Some(fd) = self.source(source)
        {
            epoll.delete(fd).map_err(io::Error::from)?;
            self.paused.push(source);
        }
        self.due |= self.looks_out() && self.more_comes()?;
        Ok(())
    }

    /// Works off the queue if there is anything to do.
    pub(super) fn serve(&mut self, epoll: &Epoll, interrupted: &AtomicBool) -> Result<(), QueueError> {
        if !self.due && (self.handler.asks_for_kicks() || !self.has_news()?) {
            return Ok(());
        }
        self.due = self.drain(interrupted)?;
        for source in std::mem::take(&mut self.paused) {
            self.watch_source(epoll, source)?;
        }
        Ok(())
    }

    /// Works off the queue with kicks off, until nothing more comes or nothing more can be taken; whether there is more
    /// to do once everything else has had its turn.
    pub(super) fn drain(&mut self, interrupted: &AtomicBool) -> Result<bool, QueueError> {
        for _ in 0..if self.alone { ROUNDS } else { SHARED_ROUNDS } {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            self.queue.disable_kicks()?;
            let before = self.queue.state();
            self.seen = self.queue.available()?;
            self.handler.process(&mut self.queue)?;
            self.gather_more(before.next_used)?;
            if self.alone {
                self.queue.signal()?;
            }
            if self.handler.asks_for_kicks() {
                return Ok(false);
            }
            let any_done = self.queue.state() != before;
            if any_done && self.looks_out() && self.more_comes()? {
                continue;
            }
            // Of requests that it has seen the handler takes none as long as they are to wait.
            if !self.queue.has_requests()? || !any_done && !self.has_news()? {
                return Ok(false);
            }
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

    /// Completes or puts back what was taken.
    pub(super) fn stop(&mut self) -> Result<(), QueueError> {
        self.handler.stopping(&mut self.queue)?;
        self.queue.signal()
    }
}
