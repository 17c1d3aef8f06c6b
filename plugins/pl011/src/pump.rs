//! The thread between the UART and the host's console.
//!
//! It reads the host only while the guest can take input, so a paste of any size waits where it comes from. Output it
//! collects for a moment: one write for a line instead of one for each byte.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gvmm_plugin_api::tracing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::burst::Burst;
use crate::port::{Port, State};
use crate::uart::FIFO_DEPTH;

/// A guest that leaves an interrupt cause set for so long is interrupted again: were the line level-triggered, as the
/// UART's own is, the guest could not have missed it.
const REMINDER: Duration = Duration::from_millis(250);
/// When the machine stops, an output that takes nothing for so long does not get the rest.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// The thread's own state.
pub(crate) struct Pump {
    port: Arc<Port>,
    /// Input that was read and not yet taken by the guest.
    held: Vec<u8>,
    input_ended: bool,
    burst: Option<Burst>,
}

/// What to wait for.
struct Interest {
    /// So much input, if not 0: no more than the guest takes, since what is read cannot be given to another device.
    input: usize,
    output: bool,
    timeout: Option<Duration>,
    /// The timeout is the one after which the guest is reminded.
    reminder: bool,
}

/// What has come.
struct Ready {
    wake: bool,
    input: bool,
    output: bool,
}

impl Ready {
    fn nothing(&self) -> bool {
        !(self.wake || self.input || self.output)
    }
}

impl Pump {
    pub(crate) fn new(port: Arc<Port>) -> Self {
        Self { port, held: Vec::with_capacity(FIFO_DEPTH), input_ended: false, burst: None }
    }

    /// Works until [`Port::stopping`], then sends what is left.
    pub(crate) fn run(mut self) {
        loop {
            let interest = self.advance();
            let ready = match self.wait(&interest) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                // Only a lack of kernel memory is left; without the thread the console would be dead for good.
                Err(error) => {
                    tracing::warn!("cannot wait for the console: {}", error.desc());
                    std::thread::sleep(REMINDER);
                    continue;
                }
            };
            if ready.wake {
                self.port.wake.take();
            }
            if self.port.stopping.load(Ordering::Acquire) {
                return self.send_rest();
            }
            if ready.output {
                self.port.send();
            }
            if ready.input {
                self.read_input(interest.input);
            }
            if ready.nothing() && interest.reminder {
                self.port.remind_guest();
            }
        }
    }

    /// Moves what can be moved; what to wait for then.
    fn advance(&mut self) -> Interest {
        let port = self.port.clone();
        let mut state = port.lock();
        if self.output_wait(&mut state).is_some_and(|wait| wait.is_zero()) {
            drop(state);
            port.send();
            self.burst = None;
            state = port.lock();
        }
        let input = self.pass_input(&mut state);
        let output_wait = self.output_wait(&mut state);
        let reminder = output_wait.is_none() && state.uart.pending() != 0;
        let timeout = output_wait.or(reminder.then_some(REMINDER));
        let output = state.blocked;
        port.settle(state);
        Interest { input, output, timeout, reminder }
    }

    /// For how long the output waits for more; `None` if there is none or it waits for the host.
    fn output_wait(&mut self, state: &mut State) -> Option<Duration> {
        let len = state.uart.unsent().len();
        state.output_known = len > 0;
        state.blocked &= len > 0;
        if len == 0 || state.blocked {
            self.burst = None;
            return None;
        }
        let now = Instant::now();
        Some(self.burst.get_or_insert_with(|| Burst::new(now, len)).wait(now, len))
    }

    /// Gives the guest what was read; how much more to read.
    fn pass_input(&mut self, state: &mut State) -> usize {
        let taken = state.uart.receive(&self.held);
        self.held.drain(..taken);
        self.port.counters.received.add(taken as u64);
        let may_read = !self.input_ended && self.held.is_empty();
        let room = if may_read { state.uart.input_room() } else { 0 };
        let all_done = self.input_ended && self.held.is_empty();
        state.input_paused = room == 0 && !all_done;
        room
    }

    fn wait(&self, interest: &Interest) -> Result<Ready, Errno> {
        let wake = self.port.wake.as_fd();
        // A descriptor in the list would report a hang-up even if it is asked for nothing.
        let entry = |wanted, fd, flags| match wanted {
            true => PollFd::new(fd, flags),
            false => PollFd::new(wake, PollFlags::empty()),
        };
        let mut fds = [
            PollFd::new(wake, PollFlags::POLLIN),
            entry(interest.input > 0, self.port.input.as_fd(), PollFlags::POLLIN),
            entry(interest.output, self.port.output.as_fd(), PollFlags::POLLOUT),
        ];
        ppoll(&mut fds, interest.timeout.map(TimeSpec::from_duration), None)?;
        let [wake, input, output] = fds.map(|fd| fd.any().unwrap_or(true));
        Ok(Ready { wake, input, output })
    }

    fn read_input(&mut self, most: usize) {
        let mut buffer = [0; FIFO_DEPTH];
        match nix::unistd::read(&self.port.input, &mut buffer[..most.min(FIFO_DEPTH)]) {
            Ok(0) => self.input_ended = true,
            Ok(count) => self.held.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                tracing::debug!("console input ends: {}", error.desc());
                self.input_ended = true;
            }
        }
    }

    fn send_rest(&self) {
        let mut progress = (usize::MAX, Instant::now());
        loop {
            self.port.send();
            let left = self.port.lock().uart.unsent().len();
            if left < progress.0 {
                progress = (left, Instant::now());
            }
            let patience = LAST_PATIENCE.saturating_sub(progress.1.elapsed());
            if left == 0 {
                return;
            }
            if patience.is_zero() {
                return tracing::warn!("console output is stuck: the last {left} bytes are lost");
            }
            let mut output = [PollFd::new(self.port.output.as_fd(), PollFlags::POLLOUT)];
            // Whatever it answers, the next attempt to send tells.
            let _ = ppoll(&mut output, Some(TimeSpec::from_duration(patience)), None);
        }
    }
}
