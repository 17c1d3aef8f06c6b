//! The surroundings of a back end that somebody started by hand or by a management program.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use gvmm_plugin_api::services::{Console, ConsoleSize};

use super::host::Surroundings;

/// Logs to standard error; its only console is standard input and output.
#[derive(Debug)]
pub(super) struct StandAlone {
    id: String,
    stdio_taken: AtomicBool,
}

impl StandAlone {
    /// For the device with this id.
    pub(super) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), stdio_taken: AtomicBool::new(false) }
    }
}

impl Surroundings for StandAlone {
    fn log(&self, level: u8, target: &str, text: &str) {
        let device = self.id.as_str();
        match level {
            1 => tracing::error!(device, source = target, "{text}"),
            2 => tracing::warn!(device, source = target, "{text}"),
            3 => tracing::info!(device, source = target, "{text}"),
            4 => tracing::debug!(device, source = target, "{text}"),
            _ => tracing::trace!(device, source = target, "{text}"),
        }
    }

    fn device_failed(&self, reason: &str) {
        tracing::error!(
            device = self.id.as_str(),
            "failed: {reason}; it goes on after a reset by the driver"
        );
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        if attachment != "stdio" {
            return Err(format!(
                "there is no console '{attachment}'; a back end on its own has only 'stdio'"
            ));
        }
        if self.stdio_taken.swap(true, Ordering::Relaxed) {
            return Err("console 'stdio' is in use".to_owned());
        }
        let failed = |e: io::Error| format!("console 'stdio': {e}");
        // Opened anew, so that whoever shares our standard input does not find it non-blocking.
        let input = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
            .open("/proc/self/fd/0")
            .map_err(failed)?;
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Console { input: input.into(), output, resized: None, size: ConsoleSize::new(|| (0, 0)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_is_not_there_is_refused_by_name() {
        let error = StandAlone::new("a").open_console("pty").unwrap_err();
        assert_eq!(error, "there is no console 'pty'; a back end on its own has only 'stdio'");
    }
}
