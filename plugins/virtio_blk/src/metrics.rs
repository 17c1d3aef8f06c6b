//! What a disk counts.
#![forbid(unsafe_code)]

use gvmm_plugin_api::metrics::{Counter, Metric};

/// Counters of a disk, added to by the threads of all its queues.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) read_requests: Counter,
    pub(crate) write_requests: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) write_bytes: Counter,
    pub(crate) flushes: Counter,
    pub(crate) discards: Counter,
    pub(crate) write_zeroes: Counter,
    /// Requests that were answered with an error status.
    pub(crate) errors: Counter,
}

impl Metrics {
    /// All counters by name.
    pub(crate) fn list(&self) -> Vec<Metric> {
        vec![
            Metric::new("read_requests", self.read_requests.get()),
            Metric::new("write_requests", self.write_requests.get()),
            Metric::new("read_bytes", self.read_bytes.get()),
            Metric::new("write_bytes", self.write_bytes.get()),
            Metric::new("flushes", self.flushes.get()),
            Metric::new("discards", self.discards.get()),
            Metric::new("write_zeroes", self.write_zeroes.get()),
            Metric::new("errors", self.errors.get()),
        ]
    }
}
