//! The surroundings of a back end that somebody started by hand or by a management program.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use gvmm_plugin_api::services::{Console, ConsoleSize};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

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
        let input = non_blocking(io::stdin().as_fd()).map_err(failed)?;
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Console { input, output, resized: None, size: ConsoleSize::new(|| (0, 0)) })
    }
}

/// A descriptor to read from that does not block. It is opened anew, so that whoever shares the given one does not find it
/// non-blocking; a socket cannot be opened, and is non-blocking from then on for all who share it.
fn non_blocking(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            fd.try_clone_to_owned()
        }
        opened => Ok(opened?.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write, pipe};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Reads what there is: nothing, and then what is written.
    fn reads_without_blocking(input: OwnedFd, mut far_end: impl Write) {
        let mut input = std::fs::File::from(input);
        let mut byte = [0];
        let error = input.read(&mut byte).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        far_end.write_all(b"a").unwrap();
        assert_eq!((input.read(&mut byte).unwrap(), byte), (1, *b"a"));
    }

    #[test]
    fn input_from_a_socket_does_not_block() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        reads_without_blocking(non_blocking(ours.as_fd()).unwrap(), theirs);
    }

    #[test]
    fn input_from_a_pipe_does_not_block_and_leaves_that_of_others_blocking() {
        let (ours, theirs) = pipe().unwrap();
        reads_without_blocking(non_blocking(ours.as_fd()).unwrap(), theirs);
        let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_console_that_is_not_there_is_refused_by_name() {
        let error = StandAlone::new("a").open_console("pty").unwrap_err();
        assert_eq!(error, "there is no console 'pty'; a back end on its own has only 'stdio'");
    }
}
