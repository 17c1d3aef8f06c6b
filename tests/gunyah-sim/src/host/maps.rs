//! What is mapped at a range of this process's addresses, from `/proc/self/maps`.

use crate::driver::memory::HostRange;

/// One mapping, cut to the range asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
    writable: bool,
    /// Pages of a file on disk, not anonymous or shared memory.
    file: bool,
}

/// The mappings that make up `start .. start + length`; empty if any of it is not mapped.
pub(crate) fn pieces(start: u64, length: u64) -> Vec<Piece> {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let end = start.saturating_add(length);
    covering(text.lines().filter_map(parse), start, end)
}

/// What kind of memory the range is; `write` also demands that it can be written.
pub(crate) fn kind(start: u64, length: u64, write: bool) -> HostRange {
    let pieces = pieces(start, length);
    if pieces.is_empty() || (write && pieces.iter().any(|piece| !piece.writable)) {
        HostRange::Unmapped
    } else if pieces.iter().any(|piece| piece.file) {
        HostRange::File
    } else {
        HostRange::SwapBacked
    }
}

fn covering(mappings: impl Iterator<Item = Piece>, start: u64, end: u64) -> Vec<Piece> {
    let mut found = Vec::new();
    let mut next = start;
    for piece in mappings {
        if piece.end <= next || next >= end {
            continue;
        }
        if piece.start > next {
            return Vec::new();
        }
        found.push(Piece { start: next, end: piece.end.min(end), ..piece });
        next = piece.end;
    }
    if next >= end { found } else { Vec::new() }
}

/// `start-end perms offset dev inode path`
fn parse(line: &str) -> Option<Piece> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let path = fields.nth(3).unwrap_or_default();
    let shared_memory =
        ["/memfd:", "/dev/shm/", "/dev/zero", "/SYSV"].iter().any(|prefix| path.starts_with(prefix));
    Some(Piece {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        writable: rights.contains('w'),
        file: path.starts_with('/') && !shared_memory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-2000 r--p 00000000 fd:01 12 /usr/bin/true
2000-4000 rw-p 00000000 00:00 0
4000-5000 rw-s 00000000 00:01 99 /memfd:ram (deleted)
6000-7000 rw-p 00000000 00:00 0 [heap]";

    fn find(start: u64, end: u64) -> Vec<Piece> {
        covering(MAPS.lines().filter_map(parse), start, end)
    }

    #[test]
    fn a_range_is_cut_out_of_its_mappings() {
        let found = find(0x2800, 0x4800);
        assert_eq!(
            found.iter().map(|piece| (piece.start, piece.end)).collect::<Vec<_>>(),
            [(0x2800, 0x4000), (0x4000, 0x4800)]
        );
        assert!(found.iter().all(|piece| piece.writable && !piece.file));
    }

    #[test]
    fn a_hole_makes_a_range_unmapped() {
        assert_eq!(find(0x4000, 0x6800), []);
        assert_eq!(find(0x6000, 0x8000), []);
        assert_eq!(find(0x8000, 0x9000), []);
    }

    #[test]
    fn file_pages_are_told_from_memory() {
        assert!(find(0x1000, 0x2000)[0].file);
        let local = 0u64;
        let address = (&raw const local).expose_provenance() as u64 & !0xfff;
        assert_eq!(kind(address, 0x1000, true), HostRange::SwapBacked);
        assert_eq!(kind(0, 0x1000, false), HostRange::Unmapped);
    }
}
