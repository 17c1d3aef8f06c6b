//! What the queues of a card share.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gvmm_plugin_api::metrics::{Counter, Metric};
use gvmm_plugin_api::services::Services;

use crate::filter::Filter;
use crate::mac::Mac;

/// Bytes of the header before each frame, with `num_buffers` (virtio 1.2, 5.1.6).
pub(crate) const HEADER: usize = 12;
/// Place of `num_buffers` in the header.
pub(crate) const NUM_BUFFERS_AT: u64 = 10;
/// Longest frame in bytes: an IP packet of 64 KiB behind an Ethernet header with two VLAN tags.
pub(crate) const MAX_FRAME: usize = 65535 + 14 + 8;
/// Shortest frame in bytes: an Ethernet header.
pub(crate) const MIN_FRAME: usize = 14;

/// Frames that one queue of a pair takes before the other has its turn, and bytes after which it takes no more: as many as
/// vhost-net's (Linux, `drivers/vhost/net.c`), some hundred microseconds of copying.
pub(crate) const BATCH: usize = 64;
pub(crate) const BATCH_BYTES: usize = 512 << 10;

/// State and counters of a card.
#[derive(Debug)]
pub(crate) struct Card {
    services: Services,
    link_up: AtomicBool,
    filter: Mutex<Filter>,
    pub(crate) counters: Counters,
}

/// Counts for statistics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) rx_frames: Counter,
    pub(crate) rx_bytes: Counter,
    /// Not wanted by the driver.
    pub(crate) rx_filtered: Counter,
    /// Too long for the driver's buffers, or malformed.
    pub(crate) rx_dropped: Counter,
    pub(crate) tx_frames: Counter,
    pub(crate) tx_bytes: Counter,
    /// Refused by the back end, malformed, or sent without a link.
    pub(crate) tx_dropped: Counter,
}

impl Card {
    pub(crate) fn new(services: Services, mac: Mac) -> Self {
        let filter = Mutex::new(Filter::open(mac));
        Self { services, link_up: AtomicBool::new(true), filter, counters: Counters::default() }
    }

    /// Whether there is a link.
    pub(crate) fn link_up(&self) -> bool {
        self.link_up.load(Ordering::Acquire)
    }

    /// Sets the link and tells the driver of a change.
    pub(crate) fn set_link(&self, up: bool) {
        if self.link_up.swap(up, Ordering::AcqRel) != up {
            self.services.config_changed();
        }
    }

    /// The receive filter.
    pub(crate) fn filter(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the driver wants a frame that starts with these bytes; counts one that it does not.
    pub(crate) fn wants(&self, destination: [u8; 6]) -> bool {
        let wanted = self.filter().passes(Mac(destination));
        if !wanted {
            self.counters.rx_filtered.add(1);
        }
        wanted
    }

    /// Counts a frame that was sent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.counters.tx_frames.add(1);
        self.counters.tx_bytes.add(bytes as u64);
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let counters = &self.counters;
        vec![
            Metric::new("rx_frames", counters.rx_frames.get()),
            Metric::new("rx_bytes", counters.rx_bytes.get()),
            Metric::new("rx_filtered", counters.rx_filtered.get()),
            Metric::new("rx_dropped", counters.rx_dropped.get()),
            Metric::new("tx_frames", counters.tx_frames.get()),
            Metric::new("tx_bytes", counters.tx_bytes.get()),
            Metric::new("tx_dropped", counters.tx_dropped.get()),
        ]
    }
}
