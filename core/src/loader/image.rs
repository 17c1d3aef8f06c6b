//! The header of an arm64 kernel Image (Linux, Documentation/arch/arm64/booting, "Call the kernel image").

use std::path::Path;

use super::Error;
use super::format::{u16_at, u32_at, u64_at};

/// Bytes of the header.
const HEADER_SIZE: usize = 64;
/// `magic`, "ARM\x64".
const MAGIC: u32 = 0x644d_5241;
const MAGIC_OFFSET: usize = 56;
/// Bit 0 of `flags`: the kernel is big-endian.
const FLAG_BIG_ENDIAN: u64 = 1;
/// `B`, an unconditional branch with 26 bits of signed offset in words (Arm ARM, C6.2.26).
const BRANCH: u32 = 0x1400_0000;
/// How far forward `B` reaches.
const BRANCH_REACH: u64 = 1 << 27;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageHeader {
    /// Distance of the kernel from a 2 MiB boundary.
    pub(super) text_offset: u64,
    /// Bytes of memory from the start of the Image on that the kernel uses.
    pub(super) image_size: u64,
    /// Bytes that the file has at least.
    pub(super) file_extent: u64,
}

/// Whether a file is an arm64 Image, by its magic number.
pub(super) fn is_image(head: &[u8]) -> bool {
    u32_at(head, MAGIC_OFFSET) == Some(MAGIC)
}

impl ImageHeader {
    /// Reads the header of a file for which [`is_image`] holds.
    pub(super) fn parse(head: &[u8], path: &Path) -> Result<Self, Error> {
        let truncated = || Error::Truncated {
            path: path.to_owned(),
            length: head.len() as u64,
            expected: HEADER_SIZE as u64,
        };
        let unsupported = |problem| Error::Unsupported { path: path.to_owned(), problem };
        let text_offset = u64_at(head, 8).ok_or_else(truncated)?;
        let image_size = u64_at(head, 16).ok_or_else(truncated)?;
        let flags = u64_at(head, 24).ok_or_else(truncated)?;
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(unsupported("is big-endian: build it with CONFIG_CPU_LITTLE_ENDIAN".to_owned()));
        }
        if image_size == 0 {
            return Err(unsupported(
                "does not say how much memory it uses (image_size is 0): use Linux 3.17 or later".to_owned(),
            ));
        }
        if !text_offset.is_multiple_of(4) || text_offset >= BRANCH_REACH {
            return Err(unsupported(format!(
                "wants to be {text_offset:#x} bytes behind the start of memory (text_offset), which is not a multiple \
                 of 4 below 128 MiB: is it damaged?"
            )));
        }
        Ok(Self { text_offset, image_size, file_extent: pe_extent(head).unwrap_or(HEADER_SIZE as u64) })
    }

    /// The instruction that leads from the base of RAM to the kernel, if it is not there itself.
    pub(super) fn branch_from_base(&self) -> Option<u32> {
        // Below 2^27 and a multiple of 4, thus 25 bits.
        (self.text_offset != 0).then_some(BRANCH | (self.text_offset / 4) as u32)
    }
}

/// End of the last section by the PE header that the EFI stub of a kernel brings along (PE format, "Section Table").
/// `None` for a kernel without one, and for headers that are not within `head`.
fn pe_extent(head: &[u8]) -> Option<u64> {
    const SECTION_SIZE: usize = 40;
    if !head.starts_with(b"MZ") {
        return None;
    }
    let pe = usize::try_from(u32_at(head, 60)?).ok()?;
    let header = head.get(pe..)?.strip_prefix(b"PE\0\0")?;
    let sections = usize::from(u16_at(header, 2)?);
    let table = 20 + usize::from(u16_at(header, 16)?);
    let table = header.get(table..)?.get(..sections * SECTION_SIZE)?;
    let ends = table.chunks_exact(SECTION_SIZE).map(|section| {
        let (size, start) = (u32_at(section, 16), u32_at(section, 20));
        u64::from(size.unwrap_or(0)) + u64::from(start.unwrap_or(0))
    });
    ends.max()
}
