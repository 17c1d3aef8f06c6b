//! How many processor cores the host has.

use std::fs;

/// Cores that the host has, online or not (Documentation/ABI/stable/sysfs-devices-system-cpu).
const PRESENT: &str = "/sys/devices/system/cpu/present";

/// Number of cores of the host, offline ones included; `None` where the kernel does not say.
pub fn present() -> Option<u32> {
    parse(&fs::read_to_string(PRESENT).ok()?)
}

/// Counts a list such as `0-3,6`.
fn parse(list: &str) -> Option<u32> {
    let mut count = 0u32;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_single_cores_and_ranges() {
        assert_eq!(parse("0\n"), Some(1));
        assert_eq!(parse("0-7\n"), Some(8));
        assert_eq!(parse("0-3,6,8-9"), Some(7));
    }

    #[test]
    fn makes_nothing_of_other_text() {
        for text in ["", "none", "3-0", "0-", "0-4294967295", "99999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn finds_the_cores_of_this_host() {
        assert!(present().is_none_or(|count| count > 0));
    }
}
