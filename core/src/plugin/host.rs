//! What gvmm offers a device: log, consoles, and an ear for configuration changes and failures.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use gvmm_plugin_api::host::Host;
use gvmm_plugin_api::services::{Console, HostServices};

use crate::console::ConsoleHub;
use crate::virtio::VirtioFunction;

/// Log lines of one device within [`LOG_WINDOW_SECONDS`]; more are counted and dropped.
const LOG_LINES: u64 = 200;
const LOG_WINDOW_SECONDS: u64 = 10;

/// The host, as one device sees it.
pub struct DeviceHost {
    id: String,
    consoles: Arc<ConsoleHub>,
    function: OnceLock<Weak<VirtioFunction>>,
    failed: AtomicBool,
    limit: LogLimit,
}

impl DeviceHost {
    /// The host for the device with this id.
    pub fn new(id: &str, consoles: Arc<ConsoleHub>) -> Self {
        Self {
            id: id.to_owned(),
            consoles,
            function: OnceLock::new(),
            failed: AtomicBool::new(false),
            limit: LogLimit::default(),
        }
    }

    /// Tells where configuration changes of a virtio device go.
    pub fn connect(&self, function: &Arc<VirtioFunction>) {
        // Set once, by the thread that assembles the machine.
        let _ = self.function.set(Arc::downgrade(function));
    }

    /// Whether the device has failed at any time.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn function(&self) -> Option<Arc<VirtioFunction>> {
        self.function.get().and_then(Weak::upgrade)
    }
}

impl HostServices for DeviceHost {
    fn config_changed(&self) {
        if let Some(function) = self.function() {
            function.config_changed();
        }
    }

    fn device_failed(&self, reason: &str) {
        self.failed.store(true, Ordering::Relaxed);
        tracing::error!("device {}: failed: {reason}; the VM goes on without it", self.id);
        if let Some(function) = self.function() {
            function.device_failed();
        }
    }

    fn open_console(&self, attachment: &str) -> Result<Console, String> {
        self.consoles.open(attachment)
    }
}

impl Host for DeviceHost {
    fn log(&self, level: u8, target: &str, text: &str) {
        let Some(dropped) = self.limit.admit() else { return };
        let device = self.id.as_str();
        if dropped > 0 {
            tracing::warn!(device, "{dropped} log lines dropped: the device logs too much");
        }
        match level {
            1 => tracing::error!(device, source = target, "{text}"),
            2 => tracing::warn!(device, source = target, "{text}"),
            3 => tracing::info!(device, source = target, "{text}"),
            4 => tracing::debug!(device, source = target, "{text}"),
            _ => tracing::trace!(device, source = target, "{text}"),
        }
    }
}

/// Bounds how much one device logs.
#[derive(Default)]
struct LogLimit {
    start: OnceLock<Instant>,
    window: AtomicU64,
    lines: AtomicU64,
    dropped: AtomicU64,
}

impl LogLimit {
    /// Whether a line may be logged, and how many were dropped before it.
    fn admit(&self) -> Option<u64> {
        let window = self.start.get_or_init(Instant::now).elapsed().as_secs() / LOG_WINDOW_SECONDS;
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LOG_LINES {
            return Some(self.dropped.swap(0, Ordering::Relaxed));
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_log_lines_is_cut_and_counted() {
        let limit = LogLimit::default();
        let admitted = (0..LOG_LINES * 3).filter(|_| limit.admit().is_some()).count() as u64;
        assert!((LOG_LINES..=2 * LOG_LINES).contains(&admitted), "{admitted}");
    }
}
