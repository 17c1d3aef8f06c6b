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

    // SAFETY: the call has no memory arguments.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
    let mut entries = vec![0; len / page * ENTRY];
    pagemap.read_exact_at(&mut entries, (start / page * ENTRY) as u64)?;
    let (entries, _) = entries.as_chunks::<ENTRY>();
    Ok(entries.iter().all(|entry| {
        let entry = u64::from_ne_bytes(*entry);
        entry & SWAPPED_OR_PRESENT == 0 || entry & FILE != 0
    }))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn resident_text() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut counts, mut sum) = (false, 0);
        for line in smaps.lines() {
            if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
                counts = line.contains(" r-xp ") && read_only_file(line).is_some();
            } else if let Some(size) = line.strip_prefix("Rss:")
                && counts
            {
                sum += size.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn less_text_is_resident_afterwards_and_all_of_it_still_runs() {
        let before = resident_text();
        trim();
        let after = resident_text();
        assert!(after < before, "{after} kB of {before} kB");
        assert_eq!(format!("{:?}", "still here".to_owned().to_uppercase()), "\"STILL HERE\"");
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

    #[test]
    fn a_mapping_with_a_changed_page_is_told() {
        const SIZE: usize = 0x10_000;
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE as u64).unwrap();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let bytes = start.cast::<u8>();
        // SAFETY: the first byte of the mapping.
        assert_eq!(unsafe { bytes.read_volatile() }, 0);
        assert!(is_as_its_file(&pagemap, start.addr(), SIZE).unwrap());
        // SAFETY: the last byte of the mapping.
        unsafe { bytes.wrapping_add(SIZE - 1).write_volatile(1) };
        assert!(!is_as_its_file(&pagemap, start.addr(), SIZE).unwrap());
        // SAFETY: the mapping from above, which nobody uses any more.
        unsafe { libc::munmap(start, SIZE) };
    }
}
