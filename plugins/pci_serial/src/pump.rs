//! The thread between the UART and the host's console. It reads the host only while the guest can take input, so a paste
//! of any size waits where it comes from.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gvmm_plugin_api::services::Console;
use gvmm_plugin_api::tracing;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::port::Port;

/// Bytes read at once, no more than the UART's receive FIFO takes.
const INPUT: usize = 64;
/// When the machine stops, an output that takes nothing for so long does not get the rest.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// How long to leave a host alone that has no memory for `ppoll`.
const PAUSE: Duration = Duration::from_millis(250);

/// The thread's own state.
pub(crate) struct Pump {
    port: Arc<Port>,
    /// Input that was read and not yet taken by the guest.
    held: Vec<u8>,
    input_ended: bool,
    output_fails: bool,
}

/// What to wait for.
struct Interest {
    /// So much input, if not 0: no more than the guest takes, since what is read cannot be given to another device.
    input: usize,
    output: bool,
}

/// What has come.
struct Ready {
    wake: bool,
    input: bool,
    output: bool,
}

impl Pump {
    pub(crate) fn new(port: Arc<Port>) -> Self {
        Self { port, held: Vec::with_capacity(INPUT), input_ended: false, output_fails: false }
    }

    /// Works until [`Port::stopping`], then sends what is left.
    pub(crate) fn run(mut self) {
        loop {
            let interest = self.advance();
            let ready = match self.wait(&interest, None) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                // Only a lack of kernel memory is left; without the thread the console would be dead for good.
                Err(error) => {
                    tracing::warn!("cannot wait for the console: {}", error.desc());
                    std::thread::sleep(PAUSE);
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
                self.send();
            }
            if ready.input {
                self.read_input(interest.input);
            }
        }
    }

    /// Gives the guest what was read; what to wait for then.
    fn advance(&mut self) -> Interest {
        let mut state = self.port.lock();
        let taken = state.uart.receive(&self.held);
        self.held.drain(..taken);
        let may_read = !self.input_ended && self.held.is_empty();
        let input = if may_read { state.uart.input_room().min(INPUT) } else { 0 };
        let all_done = self.input_ended && self.held.is_empty();
        state.input_paused = input == 0 && !all_done;
        let output = !state.uart.unsent().is_empty();
        state.output_known = output;
        self.port.settle(state);
        self.port.counters.received.add(taken as u64);
        Interest { input, output }
    }

    fn wait(&self, interest: &Interest, limit: Option<Duration>) -> Result<Ready, Errno> {
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
        ppoll(&mut fds, limit.map(TimeSpec::from_duration), None)?;
        let [wake, input, output] = fds.map(|fd| fd.any().unwrap_or(true));
        Ok(Ready { wake, input, output })
    }

    fn read_input(&mut self, most: usize) {
        let mut buffer = [0; INPUT];
        match nix::unistd::read(&self.port.input, &mut buffer[..most.min(INPUT)]) {
            Ok(0) => self.input_ended = true,
            Ok(count) => self.held.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                tracing::debug!("console input ends: {}", error.desc());
                self.input_ended = true;
            }
        }
    }

    /// Sends some of what is unsent to an output that `poll` calls writable. The lock is not held meanwhile; nobody else
    /// takes bytes away.
    fn send(&mut self) {
        let bytes: Vec<u8> =
            self.port.lock().uart.unsent().iter().copied().take(Console::ATOMIC_WRITE).collect();
        if bytes.is_empty() {
            return;
        }
        let done = self.write(&bytes);
        let mut state = self.port.lock();
        state.uart.sent(done);
        self.port.settle(state);
    }

    /// Writes to the host; how many bytes are off the line. An output that fails is one that nobody reads: the bytes are
    /// lost, but the guest goes on.
    fn write(&mut self, bytes: &[u8]) -> usize {
        match nix::unistd::write(&self.port.output, bytes) {
            Ok(count) => {
                self.output_fails = false;
                self.port.counters.sent.add(count as u64);
                count
            }
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => {
                if !std::mem::replace(&mut self.output_fails, true) {
                    tracing::warn!("console output fails, what the guest prints is lost: {}", error.desc());
                }
                self.port.counters.lost.add(bytes.len() as u64);
                bytes.len()
            }
        }
    }

    /// The machine stops: shows what is left, as long as the host takes some now and then.
    fn send_rest(&mut self) {
        let mut last = Instant::now();
        let mut before = usize::MAX;
        loop {
            let left = self.port.lock().uart.unsent().len();
            if left == 0 {
                return;
            }
            if left < before {
                (before, last) = (left, Instant::now());
            }
            let patience = LAST_PATIENCE.saturating_sub(last.elapsed());
            if patience.is_zero() {
                return tracing::warn!("console output is stuck: the last {left} bytes are lost");
            }
            // Whatever a failed wait would have told, the next attempt tells.
            let Ok(ready) = self.wait(&Interest { input: 0, output: true }, Some(patience)) else { continue };
            if ready.wake {
                self.port.wake.take();
            }
            if ready.output {
                self.send();
            }
        }
    }
}
