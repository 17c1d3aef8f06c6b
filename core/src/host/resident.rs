//! Gives back memory that is not in use, above all what only start-up needed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the pages of program text, that of plugins included, and of other files that are mapped for reading alone, and
/// returns freed heap to the kernel.
///
/// Much of the text is used once: command line, loading of plugins, loader, device tree, the guest's set-up of its
/// devices. What runs from now on comes back from the page cache at its first use, with a fault for each few pages. A
/// failure costs memory, nothing else. Any thread may call it while others run.
pub fn trim() {
    // SAFETY: frees what nobody holds.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    if let Err(error) = unmap_read_only() {
        tracing::debug!("the text of start-up stays in memory: {error}");
    }
}

fn unmap_read_only() -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    for (start, len) in fs::read_to_string("/proc/self/maps")?.lines().filter_map(read_only_file) {
        let Some(address) = std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(start)) else {
            continue;
        };
        if is_as_its_file(&pagemap, start, len)? {
            // SAFETY: none of the mapping's pages is a changed copy, so each comes back from the file as it was.
            unsafe { madvise(address, len, MmapAdvise::MADV_DONTNEED) }?;
        }
    }
    Ok(())
}

/// Address and length of a mapping (proc_pid_maps(5)) if it is of a file and not for writing.
fn read_only_file(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if !["r-xp", "r--p", "r--s"].contains(&words.next()?) || !words.nth(3)?.starts_with('/') {
        return None;
    }
    let [start, end] = [start, end].map(|number| usize::from_str_radix(number, 16).ok());
    Some((start?, end?.checked_sub(start?)?))
}

/// Whether a mapping holds no page of its own: a relocation, or the breakpoint of a debugger or a probe.
fn is_as_its_file(pagemap: &File, start: usize, len: usize) -> io::Result<bool> {
    /// Bits of an entry (Linux, `Documentation/admin-guide/mm/pagemap.rst`).
    const FILE: u64 = 1 << 61;
    const SWAPPED_OR_PRESENT: u64 = 3 << 62;
    const ENTRY: usize = size_of::<u64>();

    let page = page_size()?;
    let mut entries = vec![0; len / page * ENTRY];
    pagemap.read_exact_at(&mut entries, (start / page * ENTRY) as u64)?;
    let (entries, _) = entries.as_chunks::<ENTRY>();
    Ok(entries.iter().all(|entry| {
        let entry = u64::from_ne_bytes(*entry);
        entry & SWAPPED_OR_PRESENT == 0 || entry & FILE != 0
    }))
}

fn page_size() -> io::Result<usize> {
    // SAFETY: the call has no memory arguments.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use super::*;

    const SIZE: usize = 0x10_0000;

    /// Held by tests that look at what is resident: `trim` is for the whole process.
    static ALONE: Mutex<()> = Mutex::new(());

    /// A private mapping of a file full of sevens.
    struct Mapped {
        start: *mut u8,
        pagemap: File,
    }

    impl Mapped {
        fn new(protection: i32) -> Self {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![7; SIZE], 0).unwrap();
            let (place, flags) = (std::ptr::null_mut(), libc::MAP_PRIVATE);
            // SAFETY: a new mapping at a place of the kernel's choice.
            let start = unsafe { libc::mmap(place, SIZE, protection, flags, file.as_raw_fd(), 0) };
            assert_ne!(start, libc::MAP_FAILED);
            Self { start: start.cast(), pagemap: File::open("/proc/self/pagemap").unwrap() }
        }

        fn sum(&self) -> usize {
            // SAFETY: the mapping is there as long as `self`, and no test writes to it meanwhile.
            let bytes = unsafe { std::slice::from_raw_parts(self.start, SIZE) };
            bytes.iter().map(|byte| usize::from(*byte)).sum()
        }

        fn resident(&self) -> bool {
            let mut entry = [0; 8];
            self.pagemap
                .read_exact_at(&mut entry, (self.start.addr() / page_size().unwrap() * 8) as u64)
                .unwrap();
            u64::from_ne_bytes(entry) >> 63 == 1
        }

        fn is_as_its_file(&self) -> bool {
            is_as_its_file(&self.pagemap, self.start.addr(), SIZE).unwrap()
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: the mapping from `new`, which nobody else uses.
            unsafe { libc::munmap(self.start.cast(), SIZE) };
        }
    }

    #[test]
    fn what_is_not_in_use_is_not_resident_and_reads_as_before() {
        let _alone = ALONE.lock();
        let text = Mapped::new(libc::PROT_READ);
        assert_eq!(text.sum(), 7 * SIZE);
        assert!(text.resident());
        trim();
        assert!(!text.resident());
        assert_eq!(text.sum(), 7 * SIZE);
    }

    #[test]
    fn a_mapping_with_a_changed_page_stays() {
        let _alone = ALONE.lock();
        let text = Mapped::new(libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(text.sum(), 7 * SIZE);
        assert!(text.is_as_its_file());
        // SAFETY: the last byte of the mapping.
        unsafe { text.start.wrapping_add(SIZE - 1).write_volatile(8) };
        assert!(!text.is_as_its_file());
        // SAFETY: the whole mapping, which nobody else uses.
        unsafe { libc::mprotect(text.start.cast(), SIZE, libc::PROT_READ) };
        trim();
        assert_eq!(text.sum(), 7 * SIZE + 1);
    }

    #[test]
    fn files_that_may_be_written_and_memory_without_a_file_stay() {
        let of = read_only_file;
        assert_eq!(of("1000-3000 r-xp 00000000 00:21 17 /gvmm/gvmm"), Some((0x1000, 0x2000)));
        assert_eq!(of("1000-3000 r--s 00000000 00:01 17 /memfd:x (deleted)"), Some((0x1000, 0x2000)));
        assert_eq!(of("1000-3000 rwxp 00000000 00:21 17 /gvmm/gvmm"), None);
        assert_eq!(of("1000-3000 rw-s 00000000 00:01 17 /memfd:x (deleted)"), None);
        assert_eq!(of("1000-3000 r-xp 00000000 00:00 0"), None);
        assert_eq!(of("1000-3000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(of("3000-1000 r-xp 00000000 00:21 17 /gvmm/gvmm"), None);
        assert_eq!(of("garbage"), None);
    }
}
