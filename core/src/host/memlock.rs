//! How much memory this process may lock.
//!
//! Gunyah's drivers charge guest memory to the process that gives it. Phones allow a process 64 KiB.

use std::fs;
use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Bit of CAP_IPC_LOCK in a capability set (`linux/capability.h`).
const CAP_IPC_LOCK: u32 = 14;

/// The limit on locked memory and what stands against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LockLimit {
    /// Bytes that may be locked; `None` for no limit.
    pub soft: Option<u64>,
    /// Bytes to which the process may raise the limit; `None` for no limit.
    pub hard: Option<u64>,
    /// Bytes locked now.
    pub locked: u64,
    /// Whether the process has CAP_IPC_LOCK, for which the limit does not count.
    pub exempt: bool,
}

impl LockLimit {
    /// The limit of this process.
    ///
    /// # Errors
    ///
    /// The kernel's, where it does not tell.
    pub fn query() -> io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        let status = fs::read_to_string("/proc/self/status")?;
        Ok(Self::parse(soft, hard, &status))
    }

    fn parse(soft: u64, hard: u64, status: &str) -> Self {
        let bytes = |limit| (limit != RLIM_INFINITY).then_some(limit);
        let capabilities =
            super::field(status, "CapEff").and_then(|value| u64::from_str_radix(value, 16).ok()).unwrap_or(0);
        Self {
            soft: bytes(soft),
            hard: bytes(hard),
            locked: super::field(status, "VmLck").and_then(super::kibibytes).unwrap_or(0),
            exempt: capabilities & (1 << CAP_IPC_LOCK) != 0,
        }
    }

    /// Whether so many bytes more may be locked as the limit is now.
    pub fn allows(&self, bytes: u64) -> bool {
        self.exempt || fits(self.soft, self.locked, bytes)
    }

    /// Whether so many bytes more may be locked once the process has raised the limit as far as it may.
    pub fn could_allow(&self, bytes: u64) -> bool {
        self.allows(bytes) || fits(self.hard, self.locked, bytes)
    }
}

fn fits(limit: Option<u64>, locked: u64, bytes: u64) -> bool {
    let wanted = locked.saturating_add(bytes);
    limit.is_none_or(|limit| wanted <= limit)
}

/// Bytes that this process has locked now; `None` where the kernel does not tell.
pub fn locked_now() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    super::field(&status, "VmLck").and_then(super::kibibytes)
}

/// Makes sure that so many bytes more can be locked, raising the limit of this process where that is allowed.
///
/// # Errors
///
/// What limits it, and what to type.
pub fn allow(bytes: u64) -> Result<(), String> {
    let Ok(limit) = LockLimit::query() else { return Ok(()) };
    if fits(limit.soft, limit.locked, bytes) {
        return Ok(());
    }
    let wanted = limit.hard.filter(|_| fits(limit.hard, limit.locked, bytes)).unwrap_or(RLIM_INFINITY);
    match setrlimit(Resource::RLIMIT_MEMLOCK, wanted, wanted.max(limit.hard.unwrap_or(RLIM_INFINITY))) {
        Ok(()) => {
            tracing::debug!("raised RLIMIT_MEMLOCK from {:?} bytes", limit.soft);
            Ok(())
        }
        // The kernel asks for the capability of the initial user namespace, which a container's root has not; the
        // refusal is then explained when it comes.
        Err(_) if limit.exempt => Ok(()),
        Err(_) => Err(too_little(limit, bytes)),
    }
}

fn too_little(limit: LockLimit, bytes: u64) -> String {
    let wanted_kib = limit.locked.saturating_add(bytes).div_ceil(1024);
    format!(
        "this process may lock {} KiB of memory (RLIMIT_MEMLOCK) and the guest needs {wanted_kib} KiB: type \
         `ulimit -l unlimited` in a root shell and start gvmm from it, or `sudo prlimit --pid $$ \
         --memlock=unlimited` in this one",
        limit.soft.unwrap_or(0) / 1024
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tgvmm\nVmLck:\t     128 kB\nCapEff:\t0000000000000000\n";
    const PRIVILEGED: &str = "VmLck:\t0 kB\nCapEff:\t000001ffffffffff\n";

    #[test]
    fn reads_limit_locked_memory_and_capability() {
        let limit = LockLimit::parse(65536, RLIM_INFINITY, STATUS);
        assert_eq!(limit, LockLimit { soft: Some(65536), hard: None, locked: 131_072, exempt: false });
        assert!(LockLimit::parse(65536, 65536, PRIVILEGED).exempt);
    }

    #[test]
    fn counts_what_is_locked_already() {
        let limit = LockLimit { soft: Some(1000), hard: Some(2000), locked: 400, exempt: false };
        assert!(limit.allows(600));
        assert!(!limit.allows(601));
        assert!(limit.could_allow(1600));
        assert!(!limit.could_allow(1601));
    }

    #[test]
    fn sets_no_limit_to_the_privileged() {
        let limit = LockLimit { soft: Some(0), hard: Some(0), locked: 0, exempt: true };
        assert!(limit.allows(u64::MAX));
    }

    #[test]
    fn says_what_to_type() {
        let limit = LockLimit { soft: Some(65536), hard: Some(65536), locked: 0, exempt: false };
        assert_eq!(
            too_little(limit, 256 << 20),
            "this process may lock 64 KiB of memory (RLIMIT_MEMLOCK) and the guest needs 262144 KiB: type `ulimit -l \
             unlimited` in a root shell and start gvmm from it, or `sudo prlimit --pid $$ --memlock=unlimited` in \
             this one"
        );
    }

    #[test]
    fn finds_the_limit_of_this_process() {
        let limit = LockLimit::query().unwrap();
        assert!(limit.soft.is_none() || limit.hard.is_none() || limit.soft <= limit.hard);
        assert!(locked_now().is_some());
    }
}
