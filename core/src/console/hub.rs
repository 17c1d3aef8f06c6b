//! Opens attachments for devices.

use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::services::{Console, ConsoleSize};

use super::attachment::{Attachment, Target};
use super::keyboard::Leave;
use super::port::{screen, silence};
use super::pump::Pump;
use super::sink::Sink;
use super::stdio::Stdio;

/// All console attachments of a machine.
///
/// Dropping it writes out what devices have shown so far, ends its threads and puts the terminal back.
pub struct ConsoleHub {
    leave: Leave,
    open: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    stdio: Option<Stdio>,
    pumps: Vec<Pump>,
}

impl ConsoleHub {
    /// A hub that has touched nothing yet. `leave` is called, on a thread of the hub, when the user asks for the end
    /// of the VM by Ctrl-a x; it must not block.
    pub fn new(leave: impl Fn() + Send + Sync + 'static) -> Self {
        Self { leave: Arc::new(leave), open: Mutex::default() }
    }

    /// Opens an attachment, written as in [`Attachment`]. The error is shown to the user.
    pub fn open(&self, attachment: &str) -> Result<Console, String> {
        let attachment: Attachment = attachment.parse().map_err(|error| format!("{error}"))?;
        let log = attachment.log.as_deref();
        match attachment.target {
            Target::Stdio => self.open_stdio(log),
            Target::Null => self.open_null(log),
        }
    }

    fn open_stdio(&self, log: Option<&Path>) -> Result<Console, String> {
        let mut opened = self.opened();
        let stdio = match opened.stdio.take() {
            Some(stdio) => stdio,
            None => Stdio::new(self.leave.clone())
                .map_err(|error| format!("cannot take the terminal on standard input: {error}"))?,
        };
        opened.stdio.insert(stdio).open(log)
    }

    fn open_null(&self, log: Option<&Path>) -> Result<Console, String> {
        let failed = |error: std::io::Error| format!("cannot open console 'null': {error}");
        let output = match log {
            None => OwnedFd::from(OpenOptions::new().write(true).open("/dev/null").map_err(failed)?),
            Some(log) => {
                self.pumped(vec![Sink::file(log).map_err(|error| error.to_string())?]).map_err(failed)?
            }
        };
        Ok(Console {
            input: silence().map_err(failed)?,
            output,
            resized: None,
            size: ConsoleSize::new(|| (0, 0)),
        })
    }

    /// A descriptor that leads to sinks.
    fn pumped(&self, sinks: Vec<Sink>) -> std::io::Result<OwnedFd> {
        let (shown, output) = screen()?;
        self.opened().pumps.push(Pump::start(shown, sinks, || {})?);
        Ok(output)
    }

    /// Does what dropping the hub does, for a hub that others still hold.
    pub fn close(&self) {
        drop(std::mem::take(&mut *self.opened()));
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        for pump in self.pumps.drain(..) {
            pump.finish();
        }
    }
}

impl fmt::Debug for ConsoleHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleHub").finish_non_exhaustive()
    }
}
