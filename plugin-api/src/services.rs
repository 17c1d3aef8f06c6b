//! What the host does for a device.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::interrupt::Event;

/// Stack of a device's thread. Rust's 2 MiB fill one huge page where those are given without asking, which then
/// counts as a whole for the few KiB that a thread uses.
const THREAD_STACK: usize = 512 << 10;

/// The host's side of [`Services`]; implemented by whatever hosts the device. Any thread may call any method.
pub trait HostServices: Send + Sync {
    /// The device's configuration space has changed by itself: the driver is to be told.
    fn config_changed(&self);

    /// The device cannot go on; the text says why. The driver is told by `DEVICE_NEEDS_RESET` where there is one.
    fn device_failed(&self, reason: &str);

    /// Opens a console attachment such as `stdio`. May be called once for each attachment.
    fn open_console(&self, attachment: &str) -> Result<Console, String>;
}

/// The far end of a serial line or console.
#[derive(Debug)]
pub struct Console {
    /// What is typed; non-blocking, at its end when nobody can type any more.
    pub input: OwnedFd,
    /// What is shown. It may be shared with other processes, so it may block: write what `poll` says it takes, at
    /// most [`Console::ATOMIC_WRITE`] bytes at a time.
    pub output: OwnedFd,
    /// Signalled when the size changes.
    pub resized: Option<Event>,
    /// The current columns and rows; written by the host, 16 bits each.
    pub size: ConsoleSize,
}

impl Console {
    /// Bytes that an output which `poll` reports writable takes without blocking (`PIPE_BUF` of POSIX, the least that
    /// pipes, terminals and sockets have in common).
    pub const ATOMIC_WRITE: usize = 512;
}

/// Columns and rows of a console, asked for anew at each call.
#[derive(Clone)]
pub struct ConsoleSize(Arc<dyn Fn() -> (u16, u16) + Send + Sync>);

impl ConsoleSize {
    /// A size that the function tells.
    pub fn new(size: impl Fn() -> (u16, u16) + Send + Sync + 'static) -> Self {
        Self(Arc::new(size))
    }

    /// Columns and rows; zero when there is no window.
    pub fn get(&self) -> (u16, u16) {
        (self.0)()
    }
}

impl std::fmt::Debug for ConsoleSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ConsoleSize").field(&self.get()).finish()
    }
}

/// Tells the time; replaced by a fake in tests.
pub trait Clock: Send + Sync {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    fn unix_seconds(&self) -> u64;
}

/// The clock of the host.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

/// Handle of a device to its host. Clones are cheap and mean the same device.
#[derive(Clone)]
pub struct Services {
    host: Arc<dyn HostServices>,
    clock: Arc<dyn Clock>,
    scope: crate::log::Scope,
}

impl Services {
    /// Services by a host, with the host's clock.
    pub fn new(host: Arc<dyn HostServices>) -> Self {
        Self { host, clock: Arc::new(SystemClock), scope: crate::log::Scope::NONE }
    }

    /// The same services with another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The same services, their log lines going to a scope.
    #[must_use]
    pub(crate) fn with_scope(mut self, scope: crate::log::Scope) -> Self {
        self.scope = scope;
        self
    }

    /// The clock.
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// See [`HostServices::config_changed`].
    pub fn config_changed(&self) {
        self.host.config_changed();
    }

    /// See [`HostServices::device_failed`].
    pub fn device_failed(&self, reason: &str) {
        self.host.device_failed(reason);
    }

    /// See [`HostServices::open_console`].
    pub fn open_console(&self, attachment: &str) -> Result<Console, String> {
        self.host.open_console(attachment)
    }

    /// Starts a thread of the device.
    ///
    /// Its log lines carry the device's id, and a panic in it marks the device as failed instead of passing unseen.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<Option<T>>> {
        let services = self.clone();
        std::thread::Builder::new().name(name.to_owned()).stack_size(THREAD_STACK).spawn(move || {
            let _scope = services.scope.enter();
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
                Ok(value) => Some(value),
                Err(panic) => {
                    services.device_failed(&format!("panicked: {}", crate::panic_text(&*panic)));
                    None
                }
            }
        })
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").field("scope", &self.scope).finish_non_exhaustive()
    }
}
