//! The interrupts of a virtio-pci device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use gvmm_plugin_api::interrupt::Event;
use vmm_sys_util::eventfd::EventFd;

use super::image::CommonImage;
use crate::eventfd;
use crate::pci::msix::MAX_VECTORS;
use crate::virtio::function::{InterruptRoute, OwnState};

/// No vector: the interrupt is not wanted (virtio 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// The interrupts of a virtio-pci device: its messages, and its line for a guest without MSI.
///
/// A queue gets its eventfd when it starts, from the vector that the driver gave it before.
pub struct Interrupts {
    line: Arc<EventFd>,
    vectors: Vec<Arc<EventFd>>,
    messages: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    /// What the driver sees when it has been interrupted for a change.
    pub(super) common: CommonImage,
}

impl Interrupts {
    /// A vector for each queue and one for the configuration, as far as there may be so many.
    pub fn new(line: Arc<EventFd>, queues: usize) -> std::io::Result<Self> {
        let count = (queues + 1).min(MAX_VECTORS);
        let vectors = (0..count).map(|_| eventfd::new().map(Arc::new)).collect::<Result<_, _>>()?;
        let queue_vectors = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        let (messages, config_vector) = (AtomicBool::new(false), AtomicU16::new(NO_VECTOR));
        let common = CommonImage::default();
        Ok(Self { line, vectors, messages, config_vector, queue_vectors, common })
    }

    /// The eventfds of the vectors.
    pub fn vectors(&self) -> &[Arc<EventFd>] {
        &self.vectors
    }

    pub(super) fn use_messages(&self, on: bool) {
        self.messages.store(on, Ordering::Release);
    }

    pub(super) fn uses_messages(&self) -> bool {
        self.messages.load(Ordering::Acquire)
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.known(vector), Ordering::Release);
    }

    /// The vector that the guest asks for, or none if the device has no such one.
    fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    fn event(&self, vector: u16) -> Option<&Arc<EventFd>> {
        self.vectors.get(usize::from(vector))
    }

    /// The vector of a queue.
    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.known(vector), Ordering::Release);
        }
    }

    /// Takes the vector of a queue away.
    pub(super) fn take_queue_vector(&self, index: u16) {
        self.set_queue_vector(index, NO_VECTOR);
    }

    /// Takes all vectors away.
    pub(super) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
    }
}

impl InterruptRoute for Arc<Interrupts> {
    fn queue(&self, index: u16) -> std::io::Result<Event> {
        if !self.uses_messages() {
            return eventfd::share(&self.line);
        }
        match self.event(self.queue_vector(index)) {
            Some(event) => eventfd::share(event),
            // The driver wants no interrupt: the device signals an event that nobody waits for.
            None => Event::new(),
        }
    }

    fn configuration(&self, latest: &dyn Fn() -> OwnState) {
        self.common.show_own_state(latest);
        if !self.uses_messages() {
            return eventfd::signal(&self.line);
        }
        if let Some(event) = self.event(self.config_vector()) {
            eventfd::signal(event);
        }
    }
}
