//! Telling kernel files apart by their content.

use super::compression::Compression;
use super::image;
use super::source::Extent;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// An arm64 Image.
    Image,
    /// Something compressed: a whole file, or the payload of an EFI zboot kernel.
    Compressed {
        /// How.
        compression: Compression,
        /// Where in the file.
        payload: Extent,
    },
    /// Nothing that can be loaded.
    Foreign {
        /// What it is.
        found: String,
        /// The way out.
        advice: &'static str,
    },
}

const USE_ARM64: &str = "take a kernel that was built for arm64";
const USE_IMAGE: &str = "take arch/arm64/boot/Image of the kernel's build, or the vmlinuz of a distribution";
const UNPACK: &str = "unpack it first, or take a kernel compressed with gzip or zstd";

impl Format {
    /// Recognises a file by its first 4 KiB.
    pub(super) fn of(head: &[u8]) -> Self {
        if image::is_image(head) {
            return Self::Image;
        }
        let whole = Extent { offset: 0, size: None };
        if head.starts_with(&[0x1f, 0x8b]) {
            return Self::Compressed { compression: Compression::Gzip, payload: whole };
        }
        if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Self::Compressed { compression: Compression::Zstd, payload: whole };
        }
        zboot(head).unwrap_or_else(|| foreign(head))
    }
}

/// An EFI zboot kernel (Linux, drivers/firmware/efi/libstub/zboot-header.S).
fn zboot(head: &[u8]) -> Option<Format> {
    if !head.starts_with(b"MZ") || head.get(4..8)? != b"zimg" {
        return None;
    }
    let payload = Extent { offset: u64::from(u32_at(head, 8)?), size: Some(u64::from(u32_at(head, 12)?)) };
    let name = head.get(0x18..0x38)?.split(|&byte| byte == 0).next()?;
    let compression = match name {
        b"gzip" => Compression::Gzip,
        b"zstd" | b"zstd22" => Compression::Zstd,
        other => {
            let found = format!("an EFI zboot kernel compressed with {:?}", String::from_utf8_lossy(other));
            return Some(Format::Foreign { found, advice: UNPACK });
        }
    };
    Some(Format::Compressed { compression, payload })
}

/// Names what is no arm64 kernel.
fn foreign(head: &[u8]) -> Format {
    let (found, advice) = if head.starts_with(b"\x7fELF") {
        (elf(head), USE_IMAGE)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        ("an x86 kernel (bzImage)".to_owned(), USE_ARM64)
    } else if u32_at(head, 0x24) == Some(0x016f_2818) {
        ("a 32-bit Arm kernel (zImage)".to_owned(), USE_ARM64)
    } else if head.get(0x30..0x35) == Some(b"RISCV") {
        ("a RISC-V kernel".to_owned(), USE_ARM64)
    } else if head.starts_with(b"MZ") {
        ("another EFI program".to_owned(), USE_IMAGE)
    } else if let Some((_, found, advice)) = WRAPPED.iter().find(|(magic, ..)| head.starts_with(magic)) {
        ((*found).to_owned(), *advice)
    } else {
        let start: Vec<String> = head.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        (format!("an unknown file that starts with the bytes {}", start.join(" ")), USE_IMAGE)
    };
    Format::Foreign { found, advice }
}

/// Containers by their first bytes.
const WRAPPED: [(&[u8], &str, &str); 8] = [
    (b"\xfd7zXZ\0", "a file compressed with xz", UNPACK),
    (b"BZh", "a file compressed with bzip2", UNPACK),
    (b"\x02\x21\x4c\x18", "a file compressed with lz4", UNPACK),
    (b"\x04\x22\x4d\x18", "a file compressed with lz4", UNPACK),
    (b"\x89LZO", "a file compressed with lzo", UNPACK),
    (b"ANDROID!", "an Android boot image", "take the kernel out of it with unpack_bootimg"),
    (b"\x27\x05\x19\x56", "a U-Boot image (uImage)", USE_IMAGE),
    (b"\xd0\x0d\xfe\xed", "a device tree or a U-Boot FIT image", USE_IMAGE),
];

/// An ELF file by its machine (ELF gABI, `e_ident` and `e_machine`).
fn elf(head: &[u8]) -> String {
    let machine = match u16_at(head, 18) {
        Some(3) => "x86",
        Some(40) => "32-bit Arm",
        Some(62) => "x86-64",
        Some(183) => "arm64",
        Some(243) => "RISC-V",
        _ => "another machine",
    };
    format!("an ELF file (vmlinux?) for {machine}")
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
