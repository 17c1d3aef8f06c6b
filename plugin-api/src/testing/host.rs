//! A host that records what a device asks of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::abi::host::Host;
use crate::interrupt::Event;
use crate::services::{Clock, Console, ConsoleSize, HostServices, Services};

/// Records what a device asks of its host.
#[derive(Debug, Default)]
pub struct FakeHost {
    config_changes: AtomicU64,
    failures: Mutex<Vec<String>>,
    log: Mutex<Vec<(u8, String)>>,
    console: Mutex<Option<Console>>,
}

/// The test's end of a console.
#[derive(Debug)]
pub struct FakeConsole {
    keyboard: Option<UnixStream>,
    screen: UnixStream,
    resized: Event,
    size: Arc<Mutex<(u16, u16)>>,
}

impl FakeHost {
    /// Services of this host.
    pub fn services(self: &Arc<Self>) -> Services {
        Services::new(self.clone())
    }

    /// How often configuration space changed.
    pub fn config_changes(&self) -> u64 {
        self.config_changes.load(Ordering::Relaxed)
    }

    /// Reasons of failures so far.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Log lines so far, with levels.
    pub fn log_lines(&self) -> Vec<(u8, String)> {
        self.log.lock().unwrap().clone()
    }

    /// Puts a console where the device's next `open_console` finds it.
    pub fn plug_console(&self) -> FakeConsole {
        let (keyboard, input) = UnixStream::pair().unwrap();
        let (screen, output) = UnixStream::pair().unwrap();
        input.set_nonblocking(true).unwrap();
        let resized = Event::new().unwrap();
        let size = Arc::new(Mutex::new((80, 25)));
        let shown = size.clone();
        *self.console.lock().unwrap() = Some(Console {
            input: input.into(),
            output: output.into(),
            resized: Some(resized.try_clone().unwrap()),
            size: ConsoleSize::new(move || *shown.lock().unwrap()),
        });
        FakeConsole { keyboard: Some(keyboard), screen, resized, size }
    }
}

impl HostServices for FakeHost {
    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::Relaxed);
    }

    fn device_failed(&self, reason: &str) {
        self.failures.lock().unwrap().push(reason.to_owned());
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        self.console.lock().unwrap().take().ok_or_else(|| format!("no console '{attachment}'"))
    }
}

impl Host for FakeHost {
    fn log(&self, level: u8, target: &str, text: &str) {
        self.log.lock().unwrap().push((level, format!("{target}: {text}")));
    }
}

impl FakeConsole {
    /// Types; blocks while the device takes no more.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.keyboard.as_mut().expect("hung up").write_all(bytes).unwrap();
    }

    /// A second handle for typing from another thread.
    pub fn keyboard(&self) -> UnixStream {
        self.keyboard.as_ref().expect("hung up").try_clone().unwrap()
    }

    /// Ends the input.
    pub fn hang_up(&mut self) {
        if let Some(keyboard) = self.keyboard.take() {
            keyboard.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    /// Reads exactly so many bytes of what is shown.
    pub fn shown(&mut self, len: usize) -> Vec<u8> {
        self.screen.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let mut data = vec![0; len];
        self.screen.read_exact(&mut data).unwrap();
        data
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        *self.size.lock().unwrap() = (columns, rows);
        self.resized.signal();
    }
}

/// A clock that shows what the test sets.
#[derive(Debug, Default)]
pub struct FakeClock(AtomicU64);

impl FakeClock {
    /// A clock at so many seconds since 1970.
    pub fn new(seconds: u64) -> Self {
        Self(AtomicU64::new(seconds))
    }

    /// Sets the time.
    pub fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn unix_seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
