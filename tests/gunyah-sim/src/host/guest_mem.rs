//! Guest-memfd objects of generation B (rule 2.4): a memfd whose mappings by the program are watched, so that
//! lent pages can be taken from them.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::PAGE;
use crate::abi::args::{CreateMem, create_flags};
use crate::driver::memory::GuestMem;
use crate::errno::Errno;

use super::{lend, real};

/// A mapping of an object at the program's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    length: u64,
    inode: u64,
    offset: u64,
    protection: i32,
}

/// A range of an object that belongs to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inode: u64,
    offset: u64,
    length: u64,
}

#[derive(Default)]
struct State {
    /// By inode: size and whether it was made with ALLOW_HUGEPAGE.
    objects: HashMap<u64, (u64, bool)>,
    mappings: Vec<Mapping>,
    lent: Vec<Range>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

fn with<T>(act: impl FnOnce(&mut State) -> T) -> T {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    act(state.get_or_insert_default())
}

fn inode(fd: RawFd) -> Option<u64> {
    if fd < 0 {
        return None;
    }
    // SAFETY: the descriptor is only borrowed for the call below; a bad number is an error there.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_ino)
}

/// `CREATE_GUEST_MEM`: the new object's descriptor.
pub(crate) fn create(arg: &CreateMem) -> Result<RawFd, Errno> {
    if !arg.size.is_multiple_of(PAGE)
        || arg.flags & !(create_flags::CLOEXEC | create_flags::ALLOW_HUGEPAGE) != 0
    {
        return Err(Errno::EINVAL);
    }
    let flags = if arg.flags & create_flags::CLOEXEC != 0 { libc::MFD_CLOEXEC } else { 0 };
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"gunyah-guest-mem".as_ptr(), flags) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the call just returned this descriptor, so nothing else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    nix::unistd::ftruncate(&file, arg.size.cast_signed()).map_err(|error| Errno(error as i32))?;
    let inode = inode(file.as_raw_fd()).ok_or(Errno::EBADF)?;
    with(|state| state.objects.insert(inode, (arg.size, arg.flags & create_flags::ALLOW_HUGEPAGE != 0)));
    Ok(file.into_raw_fd())
}

/// The object behind a descriptor; EINVAL for any other file, as `MAP_MEM` has it.
pub(crate) fn lookup(fd: RawFd) -> Result<GuestMem, Errno> {
    let inode = inode(fd).ok_or(Errno::EINVAL)?;
    let (size, huge) = with(|state| state.objects.get(&inode).copied()).ok_or(Errno::EINVAL)?;
    // SAFETY: fcntl with F_DUPFD_CLOEXEC takes no pointers.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the call just returned this descriptor, so nothing else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(copy) };
    Ok(GuestMem { file: Arc::new(file), inode, size, huge })
}

/// Notes a mapping the program just made; pages lent meanwhile are taken from it.
pub(crate) fn mapped(fd: RawFd, start: u64, length: u64, offset: u64, protection: i32) {
    if with(|state| state.objects.is_empty()) {
        return;
    }
    let Some(inode) = inode(fd).filter(|inode| with(|state| state.objects.contains_key(inode))) else {
        return;
    };
    let mapping = Mapping { start, length, inode, offset, protection };
    let covers = with(|state| {
        state.mappings.push(mapping);
        state.lent.iter().filter_map(|range| common(&mapping, range)).collect::<Vec<_>>()
    });
    for (start, length) in covers {
        let _ = lend::forbid(start, length);
    }
}

/// Notes that the program unmapped a range or mapped something over it.
pub(crate) fn forget(start: u64, length: u64) {
    let end = start.saturating_add(length);
    with(|state| state.mappings.retain(|known| known.start >= end || start >= known.start + known.length));
}

/// The program's addresses at which a mapping shows a range.
fn common(mapping: &Mapping, range: &Range) -> Option<(u64, u64)> {
    let first = mapping.offset.max(range.offset);
    let last = (mapping.offset + mapping.length).min(range.offset + range.length);
    (mapping.inode == range.inode && first < last)
        .then(|| (mapping.start + (first - mapping.offset), last - first))
}

/// A range of an object while a VM has it for itself.
#[derive(Debug)]
pub(crate) struct Taken {
    range: Range,
    file: Arc<OwnedFd>,
}

impl Taken {
    /// Takes the range from every mapping of the program, present and to come.
    pub(crate) fn take(file: Arc<OwnedFd>, inode: u64, offset: u64, length: u64) -> Result<Taken, Errno> {
        let range = Range { inode, offset, length };
        let covers: Vec<(u64, u64)> = with(|state| {
            state.lent.push(range);
            state.mappings.iter().filter_map(|mapping| common(mapping, &range)).collect()
        });
        let taken = Taken { range, file };
        for (start, length) in covers {
            lend::forbid(start, length)?;
        }
        Ok(taken)
    }
}

impl Drop for Taken {
    /// Shows the pages again where the program still has them mapped.
    fn drop(&mut self) {
        let shown = with(|state| {
            if let Some(at) = state.lent.iter().position(|range| *range == self.range) {
                state.lent.swap_remove(at);
            }
            state.mappings.clone()
        });
        for mapping in shown {
            let Some((start, length)) = common(&mapping, &self.range) else { continue };
            let offset = mapping.offset + (start - mapping.start);
            // SAFETY: the range is the program's mapping of this very file, which the cover replaced.
            unsafe {
                real::mmap(
                    std::ptr::with_exposed_provenance_mut(start as usize),
                    length as usize,
                    mapping.protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    self.file.as_raw_fd(),
                    offset.cast_signed(),
                )
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::user;

    #[test]
    fn a_lent_range_is_taken_from_old_and_new_mappings() {
        let fd = create(&CreateMem { flags: create_flags::CLOEXEC, size: 4 * PAGE }).unwrap();
        let map = || {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(std::ptr::null_mut(), 4 * PAGE as usize, protection, libc::MAP_SHARED, fd, 0)
            };
            let start = at.expose_provenance() as u64;
            mapped(fd, start, 4 * PAGE, 0, protection);
            start
        };
        let first = map();
        user::write(first + PAGE, b"guest").unwrap();
        let object = lookup(fd).unwrap();
        let taken = Taken::take(object.file, object.inode, PAGE, PAGE).unwrap();
        let second = map();
        for start in [first, second] {
            assert!(user::read(start, 1).is_ok());
            assert_eq!(user::read(start + PAGE, 1).err(), Some(Errno::EFAULT));
            assert!(user::read(start + 2 * PAGE, 1).is_ok());
        }
        drop(taken);
        assert_eq!(user::read(second + PAGE, 5).unwrap(), b"guest");
        forget(first, 4 * PAGE);
        forget(second, 4 * PAGE);
    }

    #[test]
    fn malformed_objects_are_invalid() {
        assert_eq!(create(&CreateMem { flags: 0, size: 100 }).err(), Some(Errno::EINVAL));
        assert_eq!(create(&CreateMem { flags: 4, size: PAGE }).err(), Some(Errno::EINVAL));
        assert_eq!(lookup(0).err(), Some(Errno::EINVAL));
    }
}
