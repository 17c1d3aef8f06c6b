//! What the host has for guests.

use std::fs;

use super::Error;

const MIB: u64 = 1 << 20;

/// Memory of the host in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostMemory {
    total: u64,
    available: u64,
}

impl HostMemory {
    /// Reads `/proc/meminfo`; `None` where that cannot be read.
    pub(super) fn query() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(meminfo: &str) -> Option<Self> {
        Some(Self { total: field(meminfo, "MemTotal:")?, available: field(meminfo, "MemAvailable:")? })
    }

    /// Refuses a guest larger than all of the host's memory, which could never be backed. One larger than what is
    /// available now is let through with a warning: its pages are taken as it touches them, and the host may swap.
    pub(super) fn check(self, wanted: u64) -> Result<(), Error> {
        let Self { total, available } = self;
        if wanted > total {
            return Err(Error::MoreThanHost {
                wanted_mib: wanted / MIB,
                total_mib: total / MIB,
                available_mib: available / MIB,
            });
        }
        if wanted > available {
            tracing::warn!(
                "guest memory of {} MiB is more than the {} MiB that this host has available; \
                 it may run out of memory",
                wanted / MIB,
                available / MIB
            );
        }
        Ok(())
    }
}

/// Bytes of a line such as `MemTotal:  2048 kB` (proc_meminfo(5)).
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        2048 kB\nMemFree:          100 kB\nMemAvailable:    1024 kB\n";

    #[test]
    fn reads_total_and_available() {
        let host = HostMemory::parse(MEMINFO).unwrap();
        assert_eq!(host, HostMemory { total: 2 * MIB, available: MIB });
    }

    #[test]
    fn makes_nothing_of_a_file_without_the_fields() {
        assert_eq!(HostMemory::parse("MemTotal: many\n"), None);
        assert_eq!(HostMemory::parse(""), None);
    }

    #[test]
    fn refuses_more_than_the_host_has_and_says_the_numbers() {
        let host = HostMemory { total: 2048 * MIB, available: 1000 * MIB };
        let error = host.check(4096 * MIB).unwrap_err().to_string();
        assert_eq!(
            error,
            "guest memory of 4096 MiB is more than the 2048 MiB of this host (1000 MiB available): give less"
        );
    }

    #[test]
    fn lets_a_guest_pass_that_fits_in_the_whole_host() {
        let host = HostMemory { total: 2048 * MIB, available: 1000 * MIB };
        assert!(host.check(1500 * MIB).is_ok());
    }
}
