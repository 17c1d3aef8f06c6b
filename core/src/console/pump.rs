//! Carries what a device shows to places that cannot be handed to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use gvmm_plugin_api::interrupt::Event;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use super::sink::Sink;
use crate::thread;

/// A thread between a device's pipe and sinks.
#[derive(Debug)]
pub(super) struct Pump {
    stop: Event,
    done: mpsc::Receiver<()>,
}

impl Pump {
    /// Starts the thread; `on_shown` is told of all that is shown, before it is.
    pub(super) fn start(
        screen: OwnedFd,
        sinks: Vec<Sink>,
        on_shown: impl Fn(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Event::new()?;
        let (ended, done) = mpsc::channel();
        let worker = Worker { screen, sinks, stop: stop.try_clone()? };
        thread::spawn("console-output", move || {
            worker.run(on_shown);
            // Nobody waits when the hub is gone already.
            let _ = ended.send(());
        })?;
        Ok(Self { stop, done })
    }

    /// Ends the thread once everything that was shown until now has been written. A terminal that is held (Ctrl-s)
    /// cannot keep gvmm from ending: the rest is given up after a while.
    pub(super) fn finish(self) {
        self.stop.signal();
        if self.done.recv_timeout(super::PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("the end of the console output is lost: it is not read");
        }
    }
}

struct Worker {
    screen: OwnedFd,
    sinks: Vec<Sink>,
    stop: Event,
}

impl Worker {
    fn run(mut self, on_shown: impl Fn(&[u8])) {
        // As much as a pipe holds by default.
        let mut buffer = vec![0; 65536];
        while self.wait() {
            match read(&self.screen, &mut buffer) {
                Ok(0) => return,
                Ok(len) => {
                    on_shown(&buffer[..len]);
                    for sink in &mut self.sinks {
                        sink.write(&buffer[..len]);
                    }
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => {
                    tracing::warn!("console output ends: {error}");
                    return;
                }
            }
        }
    }

    /// Waits for output; false when there is none and the end was asked for.
    fn wait(&self) -> bool {
        loop {
            let mut fds = [
                PollFd::new(self.screen.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            if fds[0].any() == Some(true) {
                return true;
            }
            if fds[1].any() == Some(true) {
                return false;
            }
        }
    }
}
