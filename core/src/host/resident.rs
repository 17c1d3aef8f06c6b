//! Gives back memory that is not in use, above all what only start-up needed.

use std::fs;
use std::io;

use nix::sys::mman::{MmapAdvise, madvise};

/// Unmaps the pages of program text, that of plugins included, and returns freed heap to the kernel.
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
    if let Err(error) = unmap_text() {
        tracing::debug!("the text of start-up stays in memory: {error}");
    }
}

fn unmap_text() -> io::Result<()> {
    for (start, len) in unchanged_text(&fs::read_to_string("/proc/self/smaps")?) {
        let Some(start) = std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(start)) else {
            continue;
        };
        // SAFETY: none of the mapping's pages is a changed copy, so each comes back from the file as it was.
        unsafe { madvise(start, len, MmapAdvise::MADV_DONTNEED) }?;
    }
    Ok(())
}

/// Address and length of the mappings (proc_pid_smaps(5)) that are text of a file, without those that hold a page of
/// their own: a relocation, or the breakpoint of a debugger or a probe.
fn unchanged_text(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            found.extend(current.take().filter(|_| anonymous.trim() == "0 kB"));
        } else if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
            current = text_of_a_file(line);
        }
    }
    found
}

/// Address and length of a mapping if it is text of a file.
fn text_of_a_file(head: &str) -> Option<(usize, usize)> {
    let mut words = head.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if words.next()? != "r-xp" || !words.nth(3)?.starts_with('/') {
        return None;
    }
    let [start, end] = [start, end].map(|number| usize::from_str_radix(number, 16).ok());
    Some((start?, end?.checked_sub(start?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_text() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut counts, mut sum) = (false, 0);
        for line in smaps.lines() {
            if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
                counts = text_of_a_file(line).is_some();
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
    fn only_text_of_files_is_unmapped() {
        let of = |head: &str| unchanged_text(&format!("{head}\nRss: 4 kB\nAnonymous:             0 kB\n"));
        assert_eq!(of("1000-3000 r-xp 00000000 00:21 17 /gvmm/gvmm"), [(0x1000, 0x2000)]);
        assert_eq!(of("1000-3000 r--p 00000000 00:21 17 /gvmm/gvmm"), []);
        assert_eq!(of("1000-3000 rwxp 00000000 00:21 17 /gvmm/gvmm"), []);
        assert_eq!(of("1000-3000 r-xp 00000000 00:00 0"), []);
        assert_eq!(of("1000-3000 r-xp 00000000 00:00 0 [vdso]"), []);
        assert_eq!(of("3000-1000 r-xp 00000000 00:21 17 /gvmm/gvmm"), []);
        assert_eq!(of("garbage"), []);
    }

    #[test]
    fn text_with_a_breakpoint_stays() {
        let smaps = "1000-3000 r-xp 00000000 00:21 17 /a\nAnonymous:   4 kB\n\
                     5000-6000 r-xp 00000000 00:21 17 /b\nAnonymous:   0 kB\n";
        assert_eq!(unchanged_text(smaps), [(0x5000, 0x1000)]);
    }
}
