//! Getting a thread out of the guest.
//!
//! Both hypervisors share a page with user space whose `immediate_exit` byte makes the next run call return EINTR. The
//! byte is looked at on the way into the guest alone, so a kick is two steps: store the byte, then signal the thread to
//! break a run that has begun. Done in this order no kick is lost, whatever the thread is doing at the moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

/// The page that a vCPU shares with the hypervisor's driver.
#[derive(Debug)]
pub struct RunPage {
    start: NonNull<u8>,
    size: usize,
    immediate_exit: usize,
}

// SAFETY: the mapping belongs to this value and is valid in every thread.
unsafe impl Send for RunPage {}
// SAFETY: through a shared reference the `immediate_exit` byte alone is accessed, atomically; who uses the pointer for
// more answers for it.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the first `size` bytes of a vCPU's descriptor. `immediate_exit` is the offset of that byte: 1 under KVM,
    /// 0 under Gunyah.
    pub fn map(vcpu: impl AsFd, size: usize, immediate_exit: usize) -> io::Result<Arc<Self>> {
        if immediate_exit >= size {
            return Err(io::Error::other(format!("a run page of {size} bytes has no immediate_exit flag")));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = vcpu.as_fd().as_raw_fd();
        // SAFETY: without MAP_FIXED the kernel picks a free range; no memory in use is changed.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Arc::new(Self { start, size, immediate_exit }))
    }

    /// First byte of the page, page-aligned, valid as long as `self`. The driver writes to the page during a run call
    /// and at no other time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Forgets a kick that has done its work. To be called after a run call returned EINTR and before the caller looks
    /// at what it was kicked for: a kick that comes later ends the next run.
    pub fn clear_immediate_exit(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    /// Whether a kick is waiting to be seen.
    pub fn is_kicked(&self) -> bool {
        self.immediate_exit().load(Ordering::SeqCst) != 0
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: `map` checked that the offset is inside the mapping.
        let byte = unsafe { self.start.add(self.immediate_exit) };
        // SAFETY: the byte is mapped as long as `self`; user space writes it through this function alone, and the
        // driver only reads it.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`; everyone who uses it holds the value.
        if unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) } != 0 {
            tracing::error!("munmap of a run page: {}", io::Error::last_os_error());
        }
    }
}

/// Makes the run call of one vCPU return; see [`super::Vcpu::kicker`].
///
/// A kick after the vCPU is gone does nothing. The kicker does not keep the run page mapped: a Gunyah VM lives as long
/// as one of its run pages does.
#[derive(Debug, Clone)]
pub struct Kicker {
    page: Weak<RunPage>,
    thread: libc::pid_t,
}

impl Kicker {
    /// A kicker for the vCPU with this run page, run by the calling thread.
    ///
    /// Other signals are kept from the thread from now on, but for those that tell of its own faults: a Gunyah driver
    /// that is interrupted on its way into the guest forgets what a device answered to the guest's last read.
    pub fn for_this_thread(page: &Arc<RunPage>) -> io::Result<Self> {
        let signal = kick_signal();
        block_foreign_signals()?;
        // The handler is there to interrupt system calls, and it does: it is installed without SA_RESTART.
        register_signal_handler(signal, ignore)?;
        unblock_signal(signal).map_err(|error| io::Error::other(format!("pthread_sigmask: {error:?}")))?;
        // SAFETY: gettid has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        Ok(Self { page: Arc::downgrade(page), thread })
    }

    /// Ends the current or the next run call of the vCPU with [`super::Exit::Interrupted`]. Set what the thread shall
    /// see before.
    pub fn kick(&self) {
        let Some(page) = self.page.upgrade() else { return };
        page.immediate_exit().store(1, Ordering::SeqCst);
        let signal = kick_signal();
        let process = std::process::id();
        // SAFETY: the call has no memory arguments. The id may have passed to another thread of this process if the
        // vCPU's ended: the handler does nothing there, and ESRCH means that it has not.
        unsafe { libc::syscall(libc::SYS_tgkill, process, self.thread, signal) };
    }
}

/// Blocks all signals in the calling thread that are not about itself.
fn block_foreign_signals() -> io::Result<()> {
    let mut signals = SigSet::all();
    for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT] {
        signals.remove(fault);
    }
    Ok(signals.thread_block()?)
}

/// Real-time signals are queued and have no meaning to libraries or terminals.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    const PAGE: usize = 4096;

    fn run_page() -> Arc<RunPage> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE as u64).unwrap();
        RunPage::map(&file, PAGE, 1).unwrap()
    }

    #[test]
    fn interrupts_a_thread_that_waits_in_the_kernel() {
        let page = run_page();
        let done = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let runner = thread::spawn({
            let (page, done) = (Arc::clone(&page), Arc::clone(&done));
            move || {
                sender.send(Kicker::for_this_thread(&page).unwrap()).unwrap();
                // Nobody ever writes to it: the read ends by a signal or not at all.
                let silent = EventFd::new(0).unwrap();
                // SAFETY: the descriptor is open as long as `silent`.
                let silent_fd = unsafe { BorrowedFd::borrow_raw(silent.as_raw_fd()) };
                let outcome = nix::unistd::read(silent_fd, &mut [0; 8]);
                done.store(true, Ordering::SeqCst);
                outcome
            }
        });
        let kicker = receiver.recv().unwrap();
        // A signal that comes before the read does not end it, for only a run call looks at the flag; and without a
        // pause the signals would come faster than the thread can take them.
        while !done.load(Ordering::SeqCst) {
            kicker.kick();
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(runner.join().unwrap(), Err(nix::errno::Errno::EINTR));
    }

    #[test]
    fn leaves_the_flag_set_until_it_is_cleared() {
        let page = run_page();
        let kicker = Kicker::for_this_thread(&page).unwrap();
        kicker.kick();
        assert_eq!(page.immediate_exit().load(Ordering::SeqCst), 1);
        page.clear_immediate_exit();
        assert_eq!(page.immediate_exit().load(Ordering::SeqCst), 0);
    }

    #[test]
    fn keeps_other_signals_from_the_thread() {
        let page = run_page();
        let blocked = thread::spawn(move || {
            let _kicker = Kicker::for_this_thread(&page).unwrap();
            SigSet::thread_get_mask().unwrap()
        });
        let blocked = blocked.join().unwrap();
        for signal in [nix::sys::signal::SIGWINCH, nix::sys::signal::SIGTERM] {
            assert!(blocked.contains(signal));
        }
        assert!(!blocked.contains(SIGSEGV));
    }

    #[test]
    fn does_nothing_once_the_vcpu_is_gone() {
        let page = run_page();
        let kicker =
            thread::scope(|scope| scope.spawn(|| Kicker::for_this_thread(&page)).join().unwrap()).unwrap();
        kicker.kick();
        drop(page);
        kicker.kick();
    }

    #[test]
    fn does_not_keep_the_run_page_mapped() {
        let page = run_page();
        let _kicker = Kicker::for_this_thread(&page).unwrap();
        let gone = Arc::downgrade(&page);
        drop(page);
        assert!(gone.upgrade().is_none());
    }

    #[test]
    fn refuses_a_page_without_room_for_the_flag() {
        let file = tempfile::tempfile().unwrap();
        assert!(RunPage::map(&file, 1, 1).is_err());
    }
}
