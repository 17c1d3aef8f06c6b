//! The common configuration as a guest reads it from memory.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{COMMON_SIZE, reg};
use crate::memory::RegisterImage;
use crate::virtio::function::{OwnState, status};

/// The common configuration in memory, once somebody asks for it.
///
/// The driver changes it by its writes, one of which is shown after the other; a device's own threads change two of its
/// bytes at any time.
#[derive(Debug, Default)]
pub(super) struct CommonImage {
    image: OnceLock<Option<Arc<RegisterImage>>>,
    /// Taken for each change of what is shown.
    changing: Mutex<()>,
}

impl CommonImage {
    /// The memory, made now if it is not there yet; `None` on machines that cannot map it.
    pub(super) fn make(&self) -> Option<Arc<RegisterImage>> {
        let made = self.image.get_or_init(|| RegisterImage::blank(COMMON_SIZE as usize).map(Arc::new).ok());
        made.clone()
    }

    fn made(&self) -> Option<&Arc<RegisterImage>> {
        self.image.get()?.as_ref()
    }

    /// Shows the structure as it is for the driver, with the device's part as it is at the very moment.
    pub(super) fn show(
        &self,
        structure: impl FnOnce() -> [u8; COMMON_SIZE as usize],
        latest: impl Fn() -> OwnState,
    ) {
        let Some(image) = self.made() else { return };
        let structure = structure();
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, bytes) in (0..).step_by(4).zip(structure.as_chunks::<4>().0) {
            let bytes = if at == STATUS_WORD { with(*bytes, latest()) } else { *bytes };
            image.show(at, u32::from_le_bytes(bytes));
        }
    }

    /// Shows the device's part. Any thread.
    pub(super) fn show_own_state(&self, latest: impl Fn() -> OwnState) {
        let Some(image) = self.made() else { return };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = image.shown(STATUS_WORD).to_le_bytes();
        image.show(STATUS_WORD, u32::from_le_bytes(with(bytes, latest())));
    }
}

/// The word with the status and the generation.
const STATUS_WORD: usize = reg::DEVICE_STATUS as usize;
const _: () = assert!(STATUS_WORD.is_multiple_of(4) && reg::CONFIG_GENERATION == reg::DEVICE_STATUS + 1);

/// That word with what the device says.
fn with(mut bytes: [u8; 4], own: OwnState) -> [u8; 4] {
    if own.needs_reset {
        bytes[0] |= status::NEEDS_RESET as u8;
    }
    // The register has the low byte.
    bytes[1] = own.generation as u8;
    bytes
}
