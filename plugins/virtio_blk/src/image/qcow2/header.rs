//! The header of a qcow2 image, looked at before the library that reads the rest: what the image needs of other files,
//! and whether it would have the library use more memory than an honest image does.
//!
//! The layout is that of "Qcow2 Image File Format" in QEMU's documentation (`docs/interop/qcow2.rst`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// First bytes of every image.
pub(in crate::image) const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Bytes of the header of version 3 that are looked at.
const HEADER_SIZE: usize = 104;
/// Largest table of mappings of the first level, as in QEMU.
const MAX_L1_SIZE: u64 = 32 << 20;
/// Largest table of reference counts, as in QEMU.
const MAX_REFCOUNT_TABLE_SIZE: u64 = 8 << 20;
/// Cluster sizes from 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Incompatible features of version 3, and what they mean for this disk.
const INCOMPATIBLE: [(u64, &str); 5] = [
    (1 << 0, "was not closed properly; repair it with: qemu-img check -r all"),
    (1 << 1, "is marked as corrupt; repair it with: qemu-img check -r all"),
    (1 << 2, "keeps its data in another file, which is not supported; convert it with: qemu-img convert"),
    (1 << 3, "is compressed in a way that is not supported; convert it with: qemu-img convert"),
    (1 << 4, "has extended L2 entries, which are not supported; convert it with: qemu-img convert"),
];

/// What the header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// Size of a cluster in bytes.
    pub(super) cluster_size: u32,
    /// Offset of the first-level table of mappings.
    pub(super) l1_table: u64,
    /// Its size in bytes.
    pub(super) l1_size: u64,
    /// Offset of the table of refcount blocks.
    pub(super) refcount_table: u64,
    /// Its size in bytes.
    pub(super) refcount_table_size: u64,
    /// Bits of a reference count: a power of two up to 64.
    pub(super) refcount_bits: u32,
}

/// Why an image cannot be used; the text follows the name of the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("is not a qcow2 image")]
    Magic,
    #[error("is a qcow2 image of version {0}; versions 2 and 3 are supported")]
    Version(u32),
    #[error("is encrypted, which is not supported; convert it with: qemu-img convert")]
    Encrypted,
    #[error("{0}")]
    Incompatible(&'static str),
    #[error("has incompatible features that are not known ({0:#x})")]
    UnknownFeatures(u64),
    #[error("is corrupt: {what} of {value}, and {limit} is the most")]
    TooLarge { what: &'static str, value: u64, limit: u64 },
    #[error("is corrupt: a cluster size of 2^{0} bytes")]
    ClusterSize(u32),
    #[error("is corrupt: a reference count of 2^{0} bits")]
    RefcountOrder(u32),
    #[error("is corrupt: a disk size of {0} bytes, which is not a multiple of 512")]
    Size(u64),
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads and checks the header of an image.
pub(super) fn read(image: &File) -> Result<Header, HeaderError> {
    let mut bytes = [0; HEADER_SIZE];
    // A file shorter than this is no image; a header of version 2 is shorter, but never its file.
    image.read_exact_at(&mut bytes, 0).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Magic,
        _ => HeaderError::Io(error),
    })?;
    check(&bytes)
}

fn check(bytes: &[u8; HEADER_SIZE]) -> Result<Header, HeaderError> {
    if !bytes.starts_with(MAGIC) {
        return Err(HeaderError::Magic);
    }
    let version = be32(bytes, 4);
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Version(version));
    }
    if be32(bytes, 32) != 0 {
        return Err(HeaderError::Encrypted);
    }
    if version == 3 {
        check_features(be64(bytes, 72))?;
    }
    let cluster_bits = be32(bytes, 20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err(HeaderError::ClusterSize(cluster_bits));
    }
    let at_most = |what, value, limit| match value > limit {
        true => Err(HeaderError::TooLarge { what, value, limit }),
        false => Ok(()),
    };
    let l1_size = u64::from(be32(bytes, 36)) * 8;
    at_most("an L1 table of a size", l1_size, MAX_L1_SIZE)?;
    let refcount_table_size = u64::from(be32(bytes, 56)) << cluster_bits;
    at_most("a refcount table of a size", refcount_table_size, MAX_REFCOUNT_TABLE_SIZE)?;
    // Version 2 has no such field: its counts have 16 bits.
    let refcount_order = if version == 3 { be32(bytes, 96) } else { 4 };
    if refcount_order > 6 {
        return Err(HeaderError::RefcountOrder(refcount_order));
    }
    let size = be64(bytes, 24);
    // What a full L1 table can map: each entry is a cluster of 8-byte entries.
    let entries = MAX_L1_SIZE / 8;
    at_most("a disk size", size, entries << (2 * cluster_bits - 3))?;
    if size == 0 || !size.is_multiple_of(512) {
        return Err(HeaderError::Size(size));
    }
    Ok(Header {
        size,
        cluster_size: 1 << cluster_bits,
        l1_table: be64(bytes, 40),
        l1_size,
        refcount_table: be64(bytes, 48),
        refcount_table_size,
        refcount_bits: 1 << refcount_order,
    })
}

fn check_features(features: u64) -> Result<(), HeaderError> {
    match INCOMPATIBLE.iter().find(|(bit, _)| features & bit != 0) {
        Some((_, meaning)) => Err(HeaderError::Incompatible(meaning)),
        None if features != 0 => Err(HeaderError::UnknownFeatures(features)),
        None => Ok(()),
    }
}

fn be32(bytes: &[u8; HEADER_SIZE], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, &byte| value << 8 | u32::from(byte))
}

fn be64(bytes: &[u8; HEADER_SIZE], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A good header with some bytes replaced.
    fn with(fields: &[(usize, &[u8])]) -> Result<Header, String> {
        let mut bytes = [0; HEADER_SIZE];
        let good: [(usize, &[u8]); 9] = [
            (0, b"QFI\xfb"),
            (4, &3_u32.to_be_bytes()),
            (20, &16_u32.to_be_bytes()),
            (24, &(1_u64 << 30).to_be_bytes()),
            (36, &2_u32.to_be_bytes()),
            (40, &0x30000_u64.to_be_bytes()),
            (48, &0x10000_u64.to_be_bytes()),
            (56, &1_u32.to_be_bytes()),
            (96, &4_u32.to_be_bytes()),
        ];
        for (at, field) in good.iter().chain(fields) {
            bytes[*at..at + field.len()].copy_from_slice(field);
        }
        check(&bytes).map_err(|e| e.to_string())
    }

    #[test]
    fn a_good_header_gives_sizes() {
        let header = Header {
            size: 1 << 30,
            cluster_size: 65536,
            l1_table: 0x30000,
            l1_size: 16,
            refcount_table: 0x10000,
            refcount_table_size: 65536,
            refcount_bits: 16,
        };
        assert_eq!(with(&[]), Ok(header));
        // Where version 3 has the width of counts, version 2 has other things.
        assert_eq!(with(&[(4, &[0, 0, 0, 2]), (96, &[9; 4])]), Ok(header));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_a_way_out() {
        let refusal = |at, field: &[u8]| with(&[(at, field)]).unwrap_err();
        assert_eq!(refusal(0, b"QFX"), "is not a qcow2 image");
        assert_eq!(
            refusal(4, &[0, 0, 0, 1]),
            "is a qcow2 image of version 1; versions 2 and 3 are supported"
        );
        assert_eq!(
            refusal(32, &[0, 0, 0, 2]),
            "is encrypted, which is not supported; convert it with: qemu-img convert"
        );
        assert_eq!(refusal(79, &[1]), "was not closed properly; repair it with: qemu-img check -r all");
        assert_eq!(refusal(79, &[0x20]), "has incompatible features that are not known (0x20)");
    }

    #[test]
    fn sizes_beyond_reason_are_refused() {
        let refusal = |at, field: &[u8]| with(&[(at, field)]).unwrap_err();
        assert_eq!(refusal(20, &[0, 0, 0, 8]), "is corrupt: a cluster size of 2^8 bytes");
        assert_eq!(refusal(20, &[0, 0, 0, 22]), "is corrupt: a cluster size of 2^22 bytes");
        assert_eq!(refusal(20, &[255; 4]), "is corrupt: a cluster size of 2^4294967295 bytes");
        assert_eq!(
            refusal(36, &[255; 4]),
            "is corrupt: an L1 table of a size of 34359738360, and 33554432 is the most"
        );
        assert_eq!(refusal(96, &[0, 0, 0, 7]), "is corrupt: a reference count of 2^7 bits");
        assert!(refusal(56, &[255; 4]).starts_with("is corrupt: a refcount table of a size of"));
        assert!(refusal(24, &[255; 8]).starts_with("is corrupt: a disk size of"));
        assert_eq!(
            refusal(24, &1000_u64.to_be_bytes()),
            "is corrupt: a disk size of 1000 bytes, which is not a multiple of 512"
        );
        assert_eq!(
            refusal(24, &[0; 8]),
            "is corrupt: a disk size of 0 bytes, which is not a multiple of 512"
        );
    }
}
