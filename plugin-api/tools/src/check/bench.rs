//! Where a device under test is plugged in.

use std::fs::File;
use std::io::{PipeWriter, pipe};
use std::sync::{Mutex, PoisonError};

use gvmm_plugin_api::host::Host;
use gvmm_plugin_api::services::{Console, ConsoleSize, HostServices};

/// Lines and failures that are kept.
const MAX_KEPT: usize = 1000;

/// A host that keeps what a device says. Its consoles swallow what is shown, and nobody types.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    failures: Mutex<Vec<String>>,
    log: Mutex<Vec<String>>,
    keyboards: Mutex<Vec<PipeWriter>>,
}

fn keep(list: &Mutex<Vec<String>>, text: &str) {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    if list.len() < MAX_KEPT {
        list.push(text.to_owned());
    }
}

fn kept(list: &Mutex<Vec<String>>) -> Vec<String> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Recorder {
    /// Why the device has failed, so far.
    pub(super) fn failures(&self) -> Vec<String> {
        kept(&self.failures)
    }

    /// Log lines so far.
    pub(super) fn log_lines(&self) -> Vec<String> {
        kept(&self.log)
    }

    /// An error if the device has panicked, with what the panic said.
    pub(super) fn no_panic(&self) -> Result<(), String> {
        let Some(failure) = self.failures().into_iter().find(|failure| failure.contains("panicked")) else {
            return Ok(());
        };
        let said = self.log_lines().into_iter().find(|line| line.contains("panicked at"));
        let words = failure.strip_prefix("panicked: ").unwrap_or(&failure);
        if let Some(said) = said.as_ref().filter(|said| said.ends_with(words)) {
            return Err(format!("the device {said}"));
        }
        Err(said
            .map_or_else(|| format!("the device {failure}"), |said| format!("the device {failure}: {said}")))
    }
}

impl HostServices for Recorder {
    fn config_changed(&self) {}

    fn device_failed(&self, reason: &str) {
        keep(&self.failures, reason);
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        let failed = |e: std::io::Error| format!("console '{attachment}': {e}");
        let (input, keyboard) = pipe().map_err(failed)?;
        let output = File::options().write(true).open("/dev/null").map_err(failed)?;
        nix::fcntl::fcntl(&input, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(|e| failed(e.into()))?;
        self.keyboards.lock().unwrap_or_else(PoisonError::into_inner).push(keyboard);
        let size = ConsoleSize::new(|| (80, 25));
        Ok(Console { input: input.into(), output: output.into(), resized: None, size })
    }
}

impl Host for Recorder {
    fn log(&self, _level: u8, _target: &str, text: &str) {
        keep(&self.log, text);
    }
}
