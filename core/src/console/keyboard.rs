//! Reads standard input for the live device.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::read;

use super::escape::{self, Action, Escape};
use super::line::{Delivery, Line};
use super::terminal;
use crate::thread;

/// Called when the user wants to leave.
pub(super) type Leave = Arc<dyn Fn() + Send + Sync>;

/// Starts the thread. With `leave` standard input is a terminal and the escape key counts.
pub(super) fn start(line: Arc<Line>, leave: Option<Leave>) -> io::Result<()> {
    let escape = leave.map(|leave| (Escape::default(), leave));
    let reader = Reader { line, escape, in_background: false, ended: false };
    // The thread is not joined: if another process shares the terminal and takes what was typed, it stays in `read`.
    thread::spawn("console-input", move || reader.run())?;
    Ok(())
}

struct Reader {
    line: Arc<Line>,
    escape: Option<(Escape, Leave)>,
    /// The terminal is the shell's at the moment.
    in_background: bool,
    ended: bool,
}

impl Reader {
    fn run(mut self) {
        // Then reading in the background fails instead of stopping the VM.
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTTIN);
        // Without the mask gvmm is stopped in the background, as most programs are.
        let _ = signals.thread_block();
        while !self.line.closed() {
            if self.wait() {
                self.read();
            }
        }
    }

    /// Waits until something has changed; whether there is something to read.
    ///
    /// Nothing is read while the device has no room: the rest of a paste waits in the terminal.
    fn wait(&mut self) -> bool {
        let delivery = self.line.deliver(&[]);
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(self.line.changed.as_fd(), PollFlags::POLLIN)];
        let mut reads = false;
        match &delivery {
            Delivery::Full(room) => fds.push(PollFd::new(room.as_fd(), PollFlags::POLLOUT)),
            Delivery::Done if !self.ended && !self.in_background => {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
                reads = true;
            }
            Delivery::Done | Delivery::NoDevice => {}
        }
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return false;
        }
        let ready = reads && fds[1].any() == Some(true);
        if fds[0].any() == Some(true) {
            self.line.changed.take();
            // It may be that gvmm has come to the foreground; if not, the next read says so.
            self.in_background = false;
        }
        ready
    }

    fn read(&mut self) {
        let mut chunk = [0; 4096];
        let typed = match read(io::stdin(), &mut chunk) {
            Ok(0) => return self.end(),
            Ok(len) => &chunk[..len],
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            Err(Errno::EIO) if self.escape.is_some() => {
                self.in_background = true;
                return;
            }
            Err(error) => {
                tracing::warn!("standard input: {}; nothing more is read", error.desc());
                return self.end();
            }
        };
        let Some((escape, leave)) = &mut self.escape else {
            self.line.deliver(typed);
            return;
        };
        let mut guest = Vec::with_capacity(typed.len());
        let actions = escape.filter(typed, &mut guest);
        self.line.deliver(&guest);
        for action in actions {
            match action {
                Action::Leave => leave(),
                Action::Next => self.line.switch_to_next(),
                Action::Help => terminal::say(escape::HELP),
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.line.end_input();
    }
}
