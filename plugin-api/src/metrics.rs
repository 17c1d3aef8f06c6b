//! Counters that devices show in statistics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A named count, such as `read_bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Lower case with underscores; the unit last where it is not a plain number.
    pub name: String,
    /// The count since the device was made.
    pub value: u64,
}

impl Metric {
    /// A metric.
    pub fn new(name: &str, value: u64) -> Self {
        Self { name: name.to_owned(), value }
    }
}

/// A counter that several threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
