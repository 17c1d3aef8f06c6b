//! Page faults that the driver could not resolve.
//!
//! The later drivers bring guest memory in as the guest touches it. Where that fails they hand the fault to the VMM and
//! try again at the next run call. A host short of memory may have some by then; a guest that touches nothing never
//! gets over it.

use std::fs;
use std::time::{Duration, Instant};

use super::probe::Failure;
use crate::hypervisor::End;

/// Tries at one address before the VM is given up.
pub(crate) const MOST_TRIES: u32 = 50;
/// The wait before the first try, doubled up to [`LONGEST_WAIT`]: about nine seconds in all.
const FIRST_WAIT: Duration = Duration::from_millis(2);
/// Short enough for a request to stop not to be kept waiting.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// Tries after which the kernel is asked to make large pieces of its free memory.
const COMPACTING_TRIES: [u32; 2] = [2, 20];

/// What to do about a fault.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Run the vCPU again after a wait.
    Retry(Duration),
    /// End the VM.
    GiveUp(End),
}

/// The faults of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    streak: Option<Streak>,
}

/// Faults at one address with nothing else in between.
#[derive(Debug)]
struct Streak {
    address: u64,
    tries: u32,
    since: Instant,
}

impl Faults {
    /// The vCPU came back for something else: it got over its fault.
    pub(crate) fn passed(&mut self) {
        if let Some(streak) = self.streak.take() {
            tracing::info!(
                "the guest got over a page fault at {:#x} after {} tries in {} ms",
                streak.address,
                streak.tries,
                streak.since.elapsed().as_millis()
            );
        }
    }

    /// Judges a fault. `attempt` is what the driver says of its own try, a negative error number.
    pub(crate) fn judge(&mut self, address: u64, attempt: i32) -> Verdict {
        let errno = attempt.checked_neg().unwrap_or(0);
        if self.streak.as_ref().is_some_and(|streak| streak.address != address) {
            self.passed();
        }
        let streak = self.streak.get_or_insert_with(|| Streak { address, tries: 0, since: Instant::now() });
        streak.tries += 1;
        if streak.tries == 1 {
            tracing::warn!("the driver could not bring in guest memory at {address:#x}: {}", Failure(errno));
        }
        if !may_pass(errno) || streak.tries > MOST_TRIES {
            let tries = (streak.tries - 1, streak.since.elapsed());
            return Verdict::GiveUp(End::Crash(describe(address, errno, tries)));
        }
        if errno == libc::ENOMEM && COMPACTING_TRIES.contains(&streak.tries) {
            compact_memory();
        }
        Verdict::Retry(FIRST_WAIT.saturating_mul(1 << (streak.tries - 1).min(16)).min(LONGEST_WAIT))
    }
}

/// Whether trying again may help.
fn may_pass(errno: i32) -> bool {
    // Nothing there; not allowed there; memory of a kind that the driver does not take.
    !matches!(errno, libc::ENOENT | libc::EPERM | libc::EACCES | libc::EIO | libc::EINVAL)
}

fn describe(address: u64, errno: i32, (tries, time): (u32, Duration)) -> String {
    let failure = Failure(errno);
    let cause = match errno {
        libc::ENOENT => {
            "the guest has no memory there and gvmm no device: a driver for hardware that this machine \
                         does not have, or a guest that went astray"
        }
        libc::EPERM | libc::EACCES => {
            "the guest used memory in a way that it may not, such as running code in the \
                                       window that it shares with the host"
        }
        libc::EIO => {
            "guest memory is of a kind that the driver does not take: it wants anonymous memory or a memfd"
        }
        libc::ENOMEM => {
            "the host is out of memory, or the hypervisor is out of page tables, which small pages use up: \
                         give the guest less memory, or free and compact the host's before the start (as root: echo 3 \
                         > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory). Some phones must be \
                         rebooted after this"
        }
        _ => "look for lines of the VM manager in the kernel log (as root: dmesg | grep -i gunyah)",
    };
    let tries = match tries {
        0 => String::new(),
        _ => format!(", {tries} tries in {:.1} s", time.as_secs_f32()),
    };
    format!(
        "page fault at guest address {address:#x} that the driver could not resolve: {failure}{tries}; {cause}"
    )
}

/// Asks the kernel to move its memory together, which root alone may do and which may take a while.
fn compact_memory() {
    match fs::write("/proc/sys/vm/compact_memory", "1") {
        Ok(()) => tracing::info!("compacted the host's memory"),
        Err(error) => tracing::debug!("cannot compact the host's memory: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(verdict: Verdict) -> String {
        match verdict {
            Verdict::GiveUp(End::Crash(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ends_at_once_where_the_guest_has_no_memory() {
        let text = text(Faults::default().judge(0x4_0000_0000, -libc::ENOENT));
        assert!(text.starts_with("page fault at guest address 0x400000000"), "{text}");
        assert!(text.contains("No such file or directory (ENOENT); the guest has no memory there"), "{text}");
    }

    #[test]
    fn tries_again_with_growing_waits_until_the_limit() {
        let mut faults = Faults::default();
        let mut last = Duration::ZERO;
        for _ in 0..MOST_TRIES {
            let Verdict::Retry(wait) = faults.judge(0x8000_0000, -libc::EBUSY) else { panic!() };
            assert!(wait >= last && wait <= LONGEST_WAIT);
            last = wait;
        }
        let text = text(faults.judge(0x8000_0000, -libc::EBUSY));
        assert!(text.contains("50 tries in"), "{text}");
    }

    #[test]
    fn counts_anew_once_the_guest_got_on() {
        let mut faults = Faults::default();
        for round in 0..3 * u64::from(MOST_TRIES) {
            let address = 0x8000_0000 + (round << 12);
            assert!(matches!(faults.judge(address, -libc::EBUSY), Verdict::Retry(_)));
        }
        for _ in 0..3 * MOST_TRIES {
            faults.passed();
            assert!(matches!(faults.judge(0x8000_0000, -libc::EAGAIN), Verdict::Retry(_)));
        }
    }

    #[test]
    fn takes_any_number_for_an_error() {
        for attempt in [0, i32::MIN, i32::MAX, -1000] {
            let mut faults = Faults::default();
            assert!(matches!(faults.judge(0, attempt), Verdict::Retry(_)));
        }
    }
}
