//! What this host has and allows, read from the kernel's files. Nothing here changes anything but
//! [`memlock::allow`] and [`resident::trim`], which say so.

pub mod cores;
pub mod memlock;
pub mod pieces;
pub mod resident;
pub mod security;

/// Value of a `name:` line of a file such as `/proc/self/status`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The bytes of a value such as `64 kB`.
fn kibibytes(value: &str) -> Option<u64> {
    value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
