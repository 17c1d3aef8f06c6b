//! How much of the host's free memory is in large pieces.
//!
//! A guest whose memory comes in huge pages starts faster, faults less and asks less of the hypervisor's page tables,
//! which are small enough to run out.

use std::fs;

use serde::Serialize;

/// Bytes of the huge page that gvmm asks for, on hosts with pages of 4 KiB.
pub const HUGE_PAGE: u64 = 2 << 20;

/// The host's free memory by the size of its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FreePieces {
    /// Bytes free.
    pub free: u64,
    /// Bytes of them in pieces of a huge page or more.
    pub huge: u64,
    /// Bytes of the largest free piece.
    pub largest: u64,
}

impl FreePieces {
    /// The pieces now; `None` where the kernel does not tell (Android lets root alone read it).
    pub fn query() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/buddyinfo").ok()?, page_size())
    }

    /// Adds up lines such as `Node 0, zone   Normal  216 55 189 ...`: free blocks of 1, 2, 4 ... pages
    /// (Documentation/filesystems/proc.rst).
    fn parse(buddyinfo: &str, page: u64) -> Option<Self> {
        let mut pieces = Self { free: 0, huge: 0, largest: 0 };
        let mut lines = 0;
        for line in buddyinfo.lines() {
            let Some((_, zone)) = line.split_once("zone") else { continue };
            for (order, count) in zone.split_whitespace().skip(1).enumerate() {
                let size = page.checked_shl(u32::try_from(order).ok()?)?;
                let bytes = count.parse::<u64>().ok()?.checked_mul(size)?;
                pieces.free = pieces.free.checked_add(bytes)?;
                if size >= HUGE_PAGE {
                    pieces.huge = pieces.huge.checked_add(bytes)?;
                }
                if bytes > 0 {
                    pieces.largest = pieces.largest.max(size);
                }
            }
            lines += 1;
        }
        (lines > 0).then_some(pieces)
    }
}

/// When the kernel makes huge pages by itself (Documentation/admin-guide/mm/transhuge.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransparentHugePages {
    /// For all memory.
    Always,
    /// For memory of programs that ask, as gvmm does.
    Madvise,
    /// Never.
    Never,
}

impl TransparentHugePages {
    /// The setting; `None` for a kernel without it.
    pub fn query() -> Option<Self> {
        Self::parse(&fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?)
    }

    fn parse(setting: &str) -> Option<Self> {
        let chosen = setting.split_once('[')?.1.split_once(']')?.0;
        match chosen {
            "always" => Some(Self::Always),
            "madvise" => Some(Self::Madvise),
            "never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// Bytes of a page of this host.
pub fn page_size() -> u64 {
    // SAFETY: the call has no memory arguments.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It never fails for this name.
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_all_zones() {
        let text = "Node 0, zone      DMA      1      0      0      0      0      0      0      0      0      1\n\
                    Node 0, zone   Normal      2      1      0      0      0      0      0      0      0      0      3\n";
        let pieces = FreePieces::parse(text, 4096).unwrap();
        let huge = (2 << 20) + 3 * (4 << 20);
        assert_eq!(pieces, FreePieces { free: huge + 5 * 4096, huge, largest: 4 << 20 });
    }

    #[test]
    fn tells_a_fragmented_host() {
        let pieces = FreePieces::parse("Node 0, zone Normal 1000 10 0 0 0 0 0 0 0 0 0\n", 4096).unwrap();
        assert_eq!((pieces.huge, pieces.largest), (0, 8192));
    }

    #[test]
    fn makes_nothing_of_other_text() {
        assert_eq!(FreePieces::parse("", 4096), None);
        assert_eq!(FreePieces::parse("Node 0, zone Normal many\n", 4096), None);
        let orders = "1 ".repeat(100);
        assert_eq!(FreePieces::parse(&format!("Node 0, zone Normal {orders}\n"), 4096), None);
    }

    #[test]
    fn reads_the_chosen_setting() {
        assert_eq!(
            TransparentHugePages::parse("always [madvise] never\n"),
            Some(TransparentHugePages::Madvise)
        );
        assert_eq!(
            TransparentHugePages::parse("always madvise [never]\n"),
            Some(TransparentHugePages::Never)
        );
        assert_eq!(TransparentHugePages::parse("[sometimes]"), None);
    }
}
