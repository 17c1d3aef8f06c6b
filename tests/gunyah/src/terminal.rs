//! A terminal for gvmm to run on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

/// A pseudo-terminal and what was written to it.
pub(crate) struct Terminal {
    keyboard: File,
    pub(crate) screen: OwnedFd,
    /// Settings when it was made.
    before: Termios,
    shown: Arc<Shown>,
}

#[derive(Default)]
struct Shown {
    text: Mutex<Vec<u8>>,
    more: Condvar,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let mut settings = tcgetattr(&pty.slave).expect("settings");
        // No translation of line ends, so that what the guest wrote is what is seen.
        settings.output_flags.remove(nix::sys::termios::OutputFlags::OPOST);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings).expect("settings");
        let before = tcgetattr(&pty.slave).expect("settings");
        let keyboard = File::from(pty.master);
        let shown = Arc::<Shown>::default();
        let (mut reader, reading) = (keyboard.try_clone().expect("a descriptor"), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends when the terminal is closed on the other side.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                reading.text.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..length]);
                reading.more.notify_all();
            }
        });
        Self { keyboard, screen: pty.slave, before, shown }
    }

    pub(crate) fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal takes keys");
    }

    /// Waits until the text has been shown so many times.
    pub(crate) fn wait_for(&self, text: &str, times: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut shown = self.shown.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if String::from_utf8_lossy(&shown).matches(text).count() >= times {
                return true;
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            shown = self.shown.more.wait_timeout(shown, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything shown so far.
    pub(crate) fn text(&self) -> String {
        // What the kernel holds back reaches the reader before the end-of-file of the last close.
        std::thread::sleep(Duration::from_millis(20));
        let shown = self.shown.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Whether the settings are those from before.
    pub(crate) fn is_restored(&self) -> bool {
        let now = tcgetattr(&self.screen).expect("settings");
        let flags = |settings: &Termios| {
            (settings.input_flags, settings.output_flags, settings.control_flags, settings.local_flags)
        };
        flags(&now) == flags(&self.before) && now.control_chars == self.before.control_chars
    }
}
