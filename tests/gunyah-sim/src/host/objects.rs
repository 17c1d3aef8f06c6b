//! Descriptors of the simulated driver. Each is the reading end of a pipe whose other end is kept here: its number,
//! close-on-exec, duplicates and inheritance are the kernel's, and when the last copy is gone, our end says so.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::abi::PAGE;
use crate::device::Object;
use crate::device::vcpu::Vcpu;
use crate::errno::Errno;
use crate::inject::MMAP;
use crate::trace::{self, Call};

use super::{guest_mem, lend};

struct Entry {
    object: Object,
    ours: OwnedFd,
}

/// A run page in the program's addresses; it keeps the vCPU as its descriptor does.
struct RunPageMapping {
    start: u64,
    vcpu: Arc<Vcpu>,
}

#[derive(Default)]
struct Registry {
    /// By inode of the pipe, which no other file shares while it is open.
    entries: HashMap<u64, Entry>,
    run_pages: Vec<RunPageMapping>,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);
/// Entries and mappings: nothing has to be looked up while it is 0.
static LIVE: AtomicUsize = AtomicUsize::new(0);

fn registry() -> MutexGuard<'static, Option<Registry>> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<T>(act: impl FnOnce(&mut Registry) -> T) -> T {
    let mut guard = registry();
    let registry = guard.get_or_insert_default();
    let result = act(registry);
    LIVE.store(registry.entries.len() + registry.run_pages.len(), Ordering::Release);
    result
}

/// Whether any descriptor or mapping exists.
pub(crate) fn any() -> bool {
    LIVE.load(Ordering::Acquire) > 0
}

fn inode(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = nix::sys::stat::fstat(fd).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFIFO).then_some(stat.st_ino)
}

/// Gives the program a descriptor for an object.
pub(crate) fn publish(object: Object, close_on_exec: bool) -> Result<RawFd, Errno> {
    let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| Errno(error as i32))?;
    if !close_on_exec {
        nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .map_err(|error| Errno(error as i32))?;
    }
    let inode = inode(theirs.as_fd()).ok_or(Errno::EBADF)?;
    with(|registry| registry.entries.insert(inode, Entry { object, ours }));
    Ok(theirs.into_raw_fd())
}

/// The object behind one of the program's descriptors.
pub(crate) fn find(fd: RawFd) -> Option<Object> {
    if fd < 0 || !any() {
        return None;
    }
    // SAFETY: the descriptor is only borrowed for one fstat; a number that is not open is an error there.
    let inode = inode(unsafe { BorrowedFd::borrow_raw(fd) })?;
    with(|registry| registry.entries.get(&inode).map(|entry| entry.object.clone()))
}

/// Lets go of objects whose last descriptor is closed. A VM whose last reference this was ends here.
pub(crate) fn sweep() {
    if !any() {
        return;
    }
    let gone: Vec<Entry> = with(|registry| {
        let dead: Vec<u64> = registry
            .entries
            .iter()
            .filter(|(_, entry)| is_orphan(entry.ours.as_fd()))
            .map(|(inode, _)| *inode)
            .collect();
        dead.iter().filter_map(|inode| registry.entries.remove(inode)).collect()
    });
    // Outside the lock: this may tear a VM down.
    drop(gone);
}

/// A pipe without a reader polls as an error.
fn is_orphan(ours: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(ours, PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    polled == Ok(1) && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Maps a run page over a mapping of `length` bytes that the caller has just made for it at `start`.
pub(crate) fn map_run_page(
    vcpu: &Arc<Vcpu>,
    start: *mut libc::c_void,
    protection: i32,
    offset: i64,
) -> Result<(), Errno> {
    let mut call = Call::new(MMAP);
    call.set("vm", vcpu.vm_id());
    call.set("vcpu", vcpu.id());
    // Only the first page exists; the rest of a larger mapping raises SIGBUS (rule 1.3).
    let mapped = if offset == 0 { vcpu.page().shared().map_over(start, protection) } else { Ok(()) };
    let start = start.expose_provenance() as u64;
    if mapped.is_ok() {
        with(|registry| registry.run_pages.push(RunPageMapping { start, vcpu: Arc::clone(vcpu) }));
    }
    trace::call(call, mapped.map(|()| 0));
    mapped
}

/// Notes that a range of the program's addresses holds something else, or nothing, from now on.
pub(crate) fn unmapped(start: u64, length: u64) {
    lend::forget(start, length);
    guest_mem::forget(start, length);
    if !any() {
        return;
    }
    let end = start.saturating_add(length);
    let gone: Vec<RunPageMapping> = with(|registry| {
        let (gone, kept) =
            registry.run_pages.drain(..).partition(|page| page.start < end && start < page.start + PAGE);
        registry.run_pages = kept;
        gone
    });
    // Outside the lock: this may tear a VM down.
    drop(gone);
}

/// What the program still has, for the report.
pub(crate) fn open() -> Vec<Value> {
    with(|registry| {
        let files = registry.entries.values().map(|entry| match &entry.object {
            Object::Node => json!({ "kind": "node" }),
            Object::Vm(vm) => json!({ "kind": "vm", "vm": vm.id() }),
            Object::Vcpu(vcpu) => json!({ "kind": "vcpu", "vm": vcpu.vm_id(), "vcpu": vcpu.id() }),
        });
        let pages = registry
            .run_pages
            .iter()
            .map(|page| json!({ "kind": "run page", "vm": page.vcpu.vm_id(), "vcpu": page.vcpu.id() }));
        files.chain(pages).collect()
    })
}
