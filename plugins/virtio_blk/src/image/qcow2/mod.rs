//! Qcow2 images, by the `imago` library.
//!
//! The image is hostile input: its header is checked before the library sees it, its backing files are those that the
//! user names, and a panic in the library ends this disk and nothing else.
#![forbid(unsafe_code)]

mod backing;
mod header;
mod tables;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard};

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use gvmm_plugin_api::tracing::debug;
use imago::file::File as FileStorage;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};

use self::backing::Gate;
use super::open::OpenOptions;
use super::raw::ZEROES;
use super::{Geometry, Image, ImageError, Pace, bounce};

pub(super) use self::header::MAGIC;

/// A qcow2 disk.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    /// Exclusive only for what changes mappings that readers may have looked up.
    access: RwLock<FormatAccess<FileStorage>>,
    geometry: Geometry,
    readonly: bool,
    discard: bool,
    /// Whether the library has panicked, after which its tables may be half-done.
    broken: AtomicBool,
    /// Error number of a flush that failed; see the raw image.
    lost: OnceLock<i32>,
    /// Kept for their locks: the image, then its backing files.
    _locks: Vec<File>,
}

impl Qcow2Image {
    /// Opens an image; `file` is the same one, opened and locked.
    pub(super) fn open(file: File, options: &OpenOptions, block_size: u32) -> Result<Self, ImageError> {
        let path = &options.path;
        let refused = |reason: String| ImageError::Refused { path: path.clone(), reason };
        // Through a descriptor of its own, which takes reads of any alignment.
        let plain = File::open(path).map_err(|source| ImageError::Io {
            path: path.clone(),
            what: "open it",
            source,
        })?;
        let header = header::read(&plain).map_err(|error| refused(error.to_string()))?;
        if !options.readonly {
            tables::check(&plain, &header).map_err(|error| refused(error.to_string()))?;
        }
        if !header.size.is_multiple_of(block_size.into()) {
            return Err(ImageError::Unaligned { path: path.clone(), size: header.size, block_size });
        }
        let failed = |error: io::Error| refused(format!("cannot be opened: {error}"));
        let gate = Gate::new(options.backing.as_deref(), options.lock).map_err(|source| ImageError::Io {
            path: options.backing.clone().unwrap_or_default(),
            what: "find it",
            source,
        })?;
        let storage_options = StorageOpenOptions::new().direct(options.direct);
        let storage = storage_options.clone().filename(path).write(!options.readonly);
        let storage = FileStorage::open(storage).map_err(failed)?;
        let builder = Qcow2::<FileStorage>::builder(storage).write(!options.readonly);
        let image = builder.storage_open_options(storage_options).open(gate.clone()).map_err(failed)?;
        debug!("qcow2 image of {} bytes in clusters of {}", header.size, header.cluster_size);
        let geometry = Geometry {
            capacity: header.size,
            block_size,
            physical_block_size: header.cluster_size.clamp(block_size, 4096),
            optimal_io_size: header.cluster_size,
        };
        let mut locks = vec![file];
        locks.extend(gate.into_opened());
        Ok(Self {
            access: RwLock::new(FormatAccess::new(image)),
            geometry,
            readonly: options.readonly,
            discard: options.discard,
            broken: AtomicBool::new(false),
            lost: OnceLock::new(),
            _locks: locks,
        })
    }

    /// Access for operations that leave mappings as they are, or add to them.
    fn shared(&self) -> io::Result<(RwLockReadGuard<'_, FormatAccess<FileStorage>>, Watch<'_>)> {
        let watch = self.watch()?;
        Ok((self.access.read().unwrap_or_else(PoisonError::into_inner), watch))
    }

    /// Runs an operation that takes mappings away.
    fn exclusive(
        &self,
        operation: impl FnOnce(&mut FormatAccess<FileStorage>) -> io::Result<()>,
    ) -> io::Result<()> {
        let _watch = self.watch()?;
        operation(&mut self.access.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let (access, _watch) = self.shared()?;
        let end = offset + len;
        (offset..end).step_by(ZEROES.len()).try_for_each(|at| {
            // At most as many as there are.
            let piece = (end - at).min(ZEROES.len() as u64) as usize;
            access.write(&ZEROES[..piece], at)
        })
    }

    fn watch(&self) -> io::Result<Watch<'_>> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other(
                "the image could not be handled before; check it with: qemu-img check",
            ));
        }
        Ok(Watch(&self.broken))
    }
}

/// Notes when an operation ends in a panic.
struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Image for Qcow2Image {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn look_at_size(&self) -> io::Result<u64> {
        // Nobody else may change an image in use.
        Ok(self.geometry.capacity)
    }

    fn read(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64) -> Result<(), MemoryError> {
        let (access, _watch) = self.shared()?;
        bounce::read(memory, ranges, offset, |bytes, at| {
            let len = bytes.len();
            access.read(bytes, at).map(|()| len)
        })?;
        Ok(())
    }

    fn read_now(&self, _: &GuestMemory, _: &[GuestRange], _: u64) -> Result<bool, MemoryError> {
        Ok(false)
    }

    fn write(&self, memory: &GuestMemory, ranges: &[GuestRange], offset: u64) -> Result<(), MemoryError> {
        let (access, _watch) = self.shared()?;
        bounce::write(memory, ranges, offset, |bytes, at| access.write(bytes, at))
    }

    fn flush(&self) -> io::Result<()> {
        if let Some(&error) = self.lost.get() {
            return Err(io::Error::from_raw_os_error(error));
        }
        if self.readonly {
            return Ok(());
        }
        let (access, _watch) = self.shared()?;
        access
            .flush()
            .and_then(|()| access.sync())
            .inspect_err(|error| self.note_flush_failure(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn write_back(&self) -> io::Result<()> {
        let (access, _watch) = self.shared()?;
        if self.readonly { Ok(()) } else { access.flush() }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn durable_writes(&self) -> bool {
        false
    }

    fn note_flush_failure(&self, error: i32) {
        self.lost.get_or_init(|| error);
    }

    fn has_lost_writes(&self) -> bool {
        self.lost.get().is_some()
    }

    fn pace(&self) -> Pace {
        // Even in memory: a panic of the library is caught where threads do the work.
        Pace::Device
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.discard {
            return Ok(());
        }
        match self.exclusive(|access| access.discard_to_any(offset, len)) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let zeroed = if unmap && self.discard {
            self.exclusive(|access| access.discard_to_zero(offset, len))
        } else {
            let (access, _watch) = self.shared()?;
            access.write_zeroes(offset, len)
        };
        match zeroed {
            // Version 2 has no clusters that read as zero.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_zero_bytes(offset, len),
            other => other,
        }
    }
}
