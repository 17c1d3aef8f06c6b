//! A VM's memory as the guest sees it: guest addresses, and where the bytes are in this process.

use std::os::fd::AsRawFd;

use crate::driver::memory::{Backing, Entry};
use crate::errno::Errno;

use super::guest_mem::Taken;
use super::lend::Lent;
use super::{real, user};

/// What keeps a mapping's bytes where they are.
#[derive(Debug)]
enum Hold {
    /// The program's own mapping, shared.
    Program,
    Lent(#[expect(dead_code, reason = "gives the memory back when it is dropped")] Lent),
    /// Our own mapping of a guest-memfd, and the range taken from the program if it is lent.
    Object(#[expect(dead_code, reason = "shows the pages again when it is dropped")] Option<Taken>),
}

/// One region, placed.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) guest: u64,
    pub(crate) size: u64,
    /// Address in this process.
    pub(crate) host: u64,
    pub(crate) writable: bool,
    hold: Hold,
}

/// All regions of a running VM.
#[derive(Debug, Default)]
pub(crate) struct GuestMemory {
    pub(crate) mappings: Vec<Mapping>,
}

/// Copies bytes out of a region that no VM has taken yet.
pub(crate) fn read_region(entry: &Entry, offset: u64, length: usize) -> Option<Vec<u8>> {
    match &entry.backing {
        Backing::User { host, .. } => user::read(host.checked_add(offset)?, length).ok(),
        Backing::GuestMem { file, offset: base, .. } => {
            let mut bytes = vec![0; length];
            let at = base.checked_add(offset)?.cast_signed();
            let copied = nix::sys::uio::pread(file.as_ref(), &mut bytes, at).ok()?;
            (copied == length).then_some(bytes)
        }
    }
}

/// Copies bytes into a region that no VM has taken yet.
pub(crate) fn write_region(entry: &Entry, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    match &entry.backing {
        Backing::User { host, .. } => user::write(host.saturating_add(offset), bytes),
        Backing::GuestMem { file, offset: base, .. } => {
            let at = base.saturating_add(offset).cast_signed();
            match nix::sys::uio::pwrite(file.as_ref(), bytes, at) {
                Ok(copied) if copied == bytes.len() => Ok(()),
                _ => Err(Errno::EFAULT),
            }
        }
    }
}

impl GuestMemory {
    /// Places a region at `guest`; lent memory leaves the program's reach here.
    pub(crate) fn place(&mut self, entry: &Entry, guest: u64, sanitise: bool) -> Result<(), Errno> {
        let size = entry.region.size;
        let (host, hold) = match &entry.backing {
            Backing::User { host, .. } if entry.region.lent => {
                let lent = Lent::take(*host, size, sanitise)?;
                (lent.moved(), Hold::Lent(lent))
            }
            Backing::User { host, .. } => (*host, Hold::Program),
            Backing::GuestMem { file, inode, offset } => {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: a new mapping at an address of the kernel's choice.
                let at = unsafe {
                    real::mmap(
                        std::ptr::null_mut(),
                        size as usize,
                        protection,
                        libc::MAP_SHARED,
                        file.as_raw_fd(),
                        offset.cast_signed(),
                    )
                };
                if at == libc::MAP_FAILED {
                    return Err(Errno::last());
                }
                let taken = entry.region.lent.then(|| Taken::take(file.clone(), *inode, *offset, size));
                (at.expose_provenance() as u64, Hold::Object(taken.transpose()?))
            }
        };
        self.mappings.push(Mapping { guest, size, host, writable: entry.region.writable, hold });
        Ok(())
    }

    /// The address in this process of `length` bytes at `guest`, if one region holds them all.
    fn address(&self, guest: u64, length: usize) -> Option<u64> {
        let end = guest.checked_add(length as u64)?;
        let holds = |mapping: &&Mapping| guest >= mapping.guest && end <= mapping.guest + mapping.size;
        self.mappings.iter().find(holds).map(|mapping| mapping.host + (guest - mapping.guest))
    }

    /// Whether the guest has memory at `guest` that it may not write.
    pub(crate) fn is_read_only(&self, guest: u64) -> bool {
        let holds = |mapping: &&Mapping| guest >= mapping.guest && guest - mapping.guest < mapping.size;
        self.mappings.iter().find(holds).is_some_and(|mapping| !mapping.writable)
    }

    /// Reads as the guest would; `None` where it has no memory.
    pub(crate) fn read(&self, guest: u64, length: usize) -> Option<Vec<u8>> {
        user::read(self.address(guest, length)?, length).ok()
    }

    /// Writes as the guest would; `None` where it has no memory.
    pub(crate) fn write(&self, guest: u64, bytes: &[u8]) -> Option<()> {
        user::write(self.address(guest, bytes.len())?, bytes).ok()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if matches!(self.hold, Hold::Object(_)) {
            let at = std::ptr::with_exposed_provenance_mut(self.host as usize);
            // SAFETY: the mapping is the one `place` made; nothing runs on it any more.
            unsafe { real::munmap(at, self.size as usize) };
        }
    }
}
