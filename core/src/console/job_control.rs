//! Signals about the terminal: stopped and continued by a shell, another window size.

use std::io;
use std::sync::Arc;

use signal_hook::consts::{SIGCONT, SIGTSTP, SIGWINCH};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

use super::line::Line;
use super::terminal::{self, Unread};
use crate::thread;

/// Follows the signals until it is dropped.
#[derive(Debug)]
pub(super) struct JobControl(Handle);

impl JobControl {
    /// Starts a thread.
    pub(super) fn start(line: Arc<Line>) -> io::Result<Self> {
        let mut signals = Signals::new([SIGCONT, SIGTSTP, SIGWINCH])?;
        let handle = signals.handle();
        thread::spawn("console-signals", move || {
            for signal in signals.forever() {
                match signal {
                    SIGTSTP => stop(),
                    SIGCONT => go_on(&line),
                    _ => line.resized(),
                }
            }
        })?;
        Ok(Self(handle))
    }
}

impl Drop for JobControl {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Leaves the terminal to the shell and stops the process, as SIGTSTP does by default.
fn stop() {
    terminal::restore(Unread::Keep);
    if let Err(error) = emulate_default_handler(SIGTSTP) {
        tracing::warn!("cannot stop: {error}");
    }
}

fn go_on(line: &Line) {
    if let Err(error) = terminal::resume() {
        tracing::warn!("the terminal cannot be made raw again: {error}");
    }
    // The window may have changed meanwhile, and what is typed may be ours again.
    line.resized();
    line.changed.signal();
}
