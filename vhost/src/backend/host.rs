//! What the back end does for the device that it hosts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::host::Host;
use gvmm_plugin_api::interrupt::Event;
use gvmm_plugin_api::services::{Console, HostServices};

use crate::protocol::{Channel, ChannelError, Deadline, backend_request};

/// Where this process is at home: what the device says and asks for goes there.
pub trait Surroundings: Send + Sync {
    /// A log line of the device: level (1 error to 5 trace), target, text.
    fn log(&self, level: u8, target: &str, text: &str);

    /// The device cannot go on.
    fn device_failed(&self, reason: &str);

    /// Opens a console attachment.
    fn open_console(&self, attachment: &str) -> Result<Console, String>;
}

/// The host, as the device sees it: what concerns the front end goes to the one that is connected.
pub struct BackendHost {
    surroundings: Box<dyn Surroundings>,
    failed: AtomicBool,
    front_end: Mutex<FrontEnd>,
}

/// How a front end that is connected is told of things.
#[derive(Default)]
struct FrontEnd {
    /// Takes requests of the back end.
    requests: Option<Channel>,
    /// Signalled when a ring is broken, by ring.
    errors: Vec<Option<Event>>,
}

impl BackendHost {
    /// A host in these surroundings.
    pub fn new(surroundings: Box<dyn Surroundings>) -> Self {
        Self { surroundings, failed: AtomicBool::new(false), front_end: Mutex::default() }
    }

    /// Whether the device has failed since it was last reset.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The device has been reset.
    pub(super) fn forgive(&self) {
        self.failed.store(false, Ordering::Release);
    }

    /// Takes the channel for requests of the back end.
    pub(super) fn set_requests(&self, channel: Channel) {
        self.lock().requests = Some(channel);
    }

    /// Takes the event for errors of a ring.
    pub(super) fn set_error(&self, ring: usize, event: Option<Event>) {
        let mut front_end = self.lock();
        if front_end.errors.len() <= ring {
            front_end.errors.resize_with(ring + 1, || None);
        }
        front_end.errors[ring] = event;
    }

    /// The front end is gone.
    pub(super) fn disconnect(&self) {
        *self.lock() = FrontEnd::default();
    }

    fn lock(&self) -> MutexGuard<'_, FrontEnd> {
        self.front_end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostServices for BackendHost {
    fn config_changed(&self) {
        let mut front_end = self.lock();
        let Some(channel) = &front_end.requests else { return };
        // Nobody waits for the front end: while it has not read the last notice there is no need for another, since
        // it will read the configuration after that.
        let now = Deadline::after(std::time::Duration::ZERO);
        match channel.send(backend_request::CONFIG_CHANGE, 0, &[], &[], now) {
            Ok(()) | Err(ChannelError::TimedOut) => {}
            Err(error) => {
                tracing::warn!("the front end cannot be told of changes: {error}");
                front_end.requests = None;
            }
        }
    }

    fn device_failed(&self, reason: &str) {
        self.failed.store(true, Ordering::Release);
        self.surroundings.device_failed(reason);
        self.lock().errors.iter().flatten().for_each(Event::signal);
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        self.surroundings.open_console(attachment)
    }
}

impl Host for BackendHost {
    fn log(&self, level: u8, target: &str, text: &str) {
        self.surroundings.log(level, target, text);
    }
}

impl std::fmt::Debug for BackendHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendHost").field("failed", &self.has_failed()).finish_non_exhaustive()
    }
}
