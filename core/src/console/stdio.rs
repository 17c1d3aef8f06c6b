//! Standard input and output, shared by any number of devices.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gvmm_plugin_api::services::{Console, ConsoleSize};

use super::escape;
use super::job_control::JobControl;
use super::keyboard::{self, Leave};
use super::line::{Line, Port};
use super::port::{Keyboard, event_pair, screen};
use super::pump::Pump;
use super::sink::Sink;
use super::terminal::{self, RawTerminal};

/// The devices on standard input and output.
pub(super) struct Stdio {
    line: Arc<Line>,
    pumps: Vec<Pump>,
    job_control: Option<JobControl>,
    _terminal: Option<RawTerminal>,
}

impl Stdio {
    /// Takes standard input and output. Nothing is read before the first device is there.
    pub(super) fn new(leave: Leave) -> io::Result<Self> {
        let line = Arc::new(Line::new()?);
        let terminal = RawTerminal::take()?;
        let job_control = terminal.is_some().then(|| JobControl::start(line.clone())).transpose()?;
        if terminal.is_some() {
            terminal::say(escape::GREETING);
        }
        keyboard::start(line.clone(), terminal.is_some().then_some(leave))?;
        Ok(Self { line, pumps: Vec::new(), job_control, _terminal: terminal })
    }

    /// Adds a device.
    pub(super) fn open(&mut self, log: Option<&Path>) -> Result<Console, String> {
        let failed = |error: io::Error| format!("cannot attach a console to standard output: {error}");
        let (keyboard, input) = Keyboard::new().map_err(failed)?;
        let (resized, told) = event_pair().map_err(failed)?;
        let log = log.map(Sink::file).transpose().map_err(|error| error.to_string())?;
        let place = self.line.add(Port::new(keyboard, resized));
        let (shown, output) = screen().map_err(failed)?;
        let mut sinks = vec![Sink::stdout().map_err(failed)?];
        sinks.extend(log);
        let line = self.line.clone();
        let pump = Pump::start(shown, sinks, move |bytes| line.shown(place, bytes)).map_err(failed)?;
        self.pumps.push(pump);
        Ok(Console { input, output, resized: Some(told), size: ConsoleSize::new(terminal::size) })
    }

    /// Whether no device on it has shown anything.
    pub(super) fn is_silent(&self) -> bool {
        self.line.is_silent()
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        for pump in self.pumps.drain(..) {
            pump.finish();
        }
        drop(self.job_control.take());
        self.line.close();
    }
}
