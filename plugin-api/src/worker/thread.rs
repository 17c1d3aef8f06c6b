//! A thread that serves queues.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::served::{KICK, Served};
use crate::interrupt::Event;
use crate::queue::QueueError;
use crate::services::Services;
use crate::virtio::QueueState;

/// Token of requests to the thread; those of queues have an index above and a source or the kick below.
const REQUEST: u64 = u64::MAX;

/// What a thread is asked to do.
enum Request {
    Serve(Box<Served>),
    /// To stop serving a queue, and say where it stands.
    Stop(u16, SyncSender<QueueState>),
    End,
}

/// Handle of a thread. A thread that panicked has dropped its end of the channel, and with it all requests.
#[derive(Debug)]
pub(super) struct WorkerThread {
    number: u16,
    queues: Vec<u16>,
    requests: Sender<Request>,
    bell: Arc<Bell>,
    thread: JoinHandle<Option<()>>,
}

/// Tells a thread, be it waiting or at work, of a request.
#[derive(Debug)]
struct Bell {
    event: Event,
    rung: AtomicBool,
}

impl WorkerThread {
    /// Starts a thread without queues.
    pub(super) fn start(number: u16, services: &Services) -> io::Result<Self> {
        let bell = Arc::new(Bell { event: Event::new()?, rung: AtomicBool::new(false) });
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell.event.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, REQUEST))?;
        let (requests, inbox) = mpsc::channel();
        let server = Server {
            services: services.clone(),
            epoll,
            bell: bell.clone(),
            inbox,
            queues: Vec::new(),
            failed: Vec::new(),
        };
        let thread = services.spawn(&format!("queue-{number}"), move || server.run())?;
        Ok(Self { number, queues: Vec::new(), requests, bell, thread })
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    pub(super) fn serves(&self, index: u16) -> bool {
        self.queues.contains(&index)
    }

    /// Whether it has no queues.
    pub(super) fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// Gives it a queue to serve.
    pub(super) fn serve(&mut self, queue: Served) -> Result<(), String> {
        let index = queue.index;
        if !self.ask(Request::Serve(Box::new(queue))) {
            return Err(format!("queue {index}: the thread for it has panicked"));
        }
        self.queues.push(index);
        Ok(())
    }

    /// Takes a queue from it; where that stands.
    pub(super) fn stop(&mut self, index: u16) -> Option<QueueState> {
        self.queues.retain(|queue| *queue != index);
        let (reply, state) = mpsc::sync_channel(1);
        self.ask(Request::Stop(index, reply));
        state.recv().ok()
    }

    /// Ends it; its queues are stopped.
    pub(super) fn end(self) {
        self.ask(Request::End);
        // A panic has been reported by the thread itself.
        let _ = self.thread.join();
    }

    /// Whether the thread is there to be asked.
    fn ask(&self, request: Request) -> bool {
        let there = self.requests.send(request).is_ok();
        self.bell.rung.store(true, Ordering::Relaxed);
        self.bell.event.signal();
        there
    }
}

/// The thread's own side.
struct Server {
    services: Services,
    epoll: Epoll,
    bell: Arc<Bell>,
    inbox: Receiver<Request>,
    queues: Vec<Served>,
    /// Queues that broke, and where they stood.
    failed: Vec<(u16, QueueState)>,
}

impl Server {
    fn run(mut self) {
        loop {
            self.each(|queue, _, _| queue.rest());
            let mut events = [EpollEvent::empty(); 16];
            let due = self.queues.iter().any(Served::is_due);
            let held = self.queues.iter().any(Served::holds_back);
            let timeout = if due || held { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => continue,
                Err(error) => return self.services.device_failed(&format!("epoll_wait: {}", error.desc())),
                Ok(ready) => ready,
            };
            if ready == 0 && !due {
                self.each(|queue, _, _| queue.announce());
                continue;
            }
            self.each(|queue, _, _| queue.wake());
            let mut asked = false;
            for event in &events[..ready] {
                match event.data() {
                    REQUEST => asked = true,
                    token => self.dispatch(token),
                }
            }
            if asked && !self.take_requests() {
                return;
            }
            self.each(|queue, epoll, bell| queue.serve(epoll, &bell.rung));
        }
    }

    /// A queue's kick or one of its sources.
    fn dispatch(&mut self, token: u64) {
        let (index, what) = ((token >> 32) as u16, token as u32);
        let Some(at) = self.queues.iter().position(|queue| queue.index == index) else { return };
        if what == KICK {
            self.queues[at].kicked();
        } else if let Err(error) = self.queues[at].source_ready(&self.epoll, what) {
            self.fail(at, &error);
        }
    }

    /// Does something with each queue; one that breaks is no more served.
    fn each(&mut self, act: impl Fn(&mut Served, &Epoll, &Bell) -> Result<(), QueueError>) {
        // From the end, because one that fails is taken out.
        for at in (0..self.queues.len()).rev() {
            if let Err(error) = act(&mut self.queues[at], &self.epoll, &self.bell) {
                self.fail(at, &error);
            }
        }
    }

    fn fail(&mut self, at: usize, error: &QueueError) {
        let queue = self.queues.remove(at);
        queue.unwatch(&self.epoll);
        self.failed.push((queue.index, queue.state()));
        self.services.device_failed(&format!("queue {}: {error}", queue.index));
    }

    /// Does what was asked; whether the thread goes on.
    fn take_requests(&mut self) -> bool {
        self.bell.event.take();
        self.bell.rung.store(false, Ordering::Relaxed);
        while let Ok(request) = self.inbox.try_recv() {
            match request {
                Request::Serve(queue) => {
                    let watched = queue.watch(&self.epoll);
                    self.queues.push(*queue);
                    if let Err(error) = watched {
                        self.fail(self.queues.len() - 1, &error);
                    }
                }
                Request::Stop(index, reply) => {
                    if let Some(state) = self.stop(index) {
                        // Who asked waits for it, or is gone.
                        let _ = reply.send(state);
                    }
                }
                Request::End => {
                    while let Some(queue) = self.queues.last() {
                        self.stop(queue.index);
                    }
                    return false;
                }
            }
        }
        let alone = self.queues.len() == 1;
        self.queues.iter_mut().for_each(|queue| queue.alone = alone);
        true
    }

    fn stop(&mut self, index: u16) -> Option<QueueState> {
        if let Some(at) = self.queues.iter().position(|queue| queue.index == index) {
            let mut queue = self.queues.remove(at);
            queue.unwatch(&self.epoll);
            if let Err(error) = queue.stop() {
                self.services.device_failed(&format!("queue {index}: {error}"));
            }
            return Some(queue.state());
        }
        let at = self.failed.iter().position(|(failed, _)| *failed == index)?;
        Some(self.failed.swap_remove(at).1)
    }
}
