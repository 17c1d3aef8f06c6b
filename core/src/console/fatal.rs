//! Puts the terminal back when a signal ends the process at once.
//!
//! Signals that ask for the end (SIGTERM and its like) are handled elsewhere and end the process in order.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::terminal::{Unread, restore};

/// What ends a process by a fault of its own.
const SIGNALS: [libc::c_int; 7] =
    [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS, libc::SIGTRAP];

/// What was installed before.
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Installs the handlers, once in a process.
pub(super) fn install() {
    if PREVIOUS.set(SIGNALS.map(current)).is_err() {
        return;
    }
    for signal in SIGNALS {
        let mut action = default_action();
        action.sa_sigaction = handle as *const () as libc::sighandler_t;
        // A stack overflow is handled on the alternate stack that Rust gives to its threads.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        set(signal, &action);
    }
}

fn default_action() -> libc::sigaction {
    // SAFETY: all fields of a sigaction may be zero: default action, empty mask, no flags.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn current(signal: libc::c_int) -> libc::sigaction {
    let mut action = default_action();
    // SAFETY: a null action changes nothing; the old one is written to `action`.
    unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    action
}

fn set(signal: libc::c_int, action: &libc::sigaction) {
    // SAFETY: the handler in `action` is one of this file, the one that was installed before, or the default. It fails
    // for no signal of the list; the terminal would then stay raw.
    unsafe { libc::sigaction(signal, action, std::ptr::null_mut()) };
}

/// Restores the terminal and lets what was installed before do its work. Calls async-signal-safe functions alone.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore(Unread::Discard);
    // SAFETY: the kernel passes a siginfo to a handler installed with SA_SIGINFO.
    let is_fault = unsafe { (*info).si_code } > 0 && signal != libc::SIGSYS;
    let at = SIGNALS.iter().position(|&known| known == signal);
    match (PREVIOUS.get(), at) {
        // The instruction is tried again and faults again, for whoever explains faults (Rust: stack overflows).
        (Some(previous), Some(at)) if is_fault => set(signal, &previous[at]),
        _ => {
            set(signal, &default_action());
            // SAFETY: no memory arguments. The signal is blocked here and arrives when the handler returns.
            unsafe { libc::raise(signal) };
        }
    }
}
