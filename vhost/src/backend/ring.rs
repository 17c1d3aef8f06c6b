//! A ring as the front end sets it up, message by message.

use gvmm_plugin_api::interrupt::Event;

use crate::protocol::payload::VringAddress;

/// What is known of a ring so far.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Entries; 0 until told.
    pub(super) size: u16,
    /// Where its parts are, in addresses of the front end.
    pub(super) address: Option<VringAddress>,
    /// The next entry of the available ring to take.
    pub(super) base: u16,
    /// Signalled by the driver; the ring is started while there is one.
    pub(super) kick: Option<Event>,
    /// Interrupts the driver; without one the driver polls.
    pub(super) call: Option<Event>,
    /// Whether the front end has enabled it.
    pub(super) enabled: bool,
    /// Whether the device serves it.
    pub(super) running: bool,
}
