//! A walk through the tables of an image before the library may write to it.
//!
//! What the library cannot bear, or what would let a guest write to the tables themselves, is found here: clusters
//! that are used twice or whose use is not counted. Clusters that are counted and not used are harmless; they are what
//! is left when a process that wrote to the image was killed.
//!
//! The walk reads the tables, which are about an eight-thousandth of the data for clusters of the usual size.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::Header;

/// Offset in an entry of a table (bits 9 to 55).
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Flag of a second-level entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Most clusters that an image may reach to, so that the notes on them stay below 64 MiB: 16 TiB in clusters of 64 KiB.
const MAX_CLUSTERS: u64 = 1 << 28;
/// Unit in which compressed data is measured.
const COMPRESSED_SECTOR: u64 = 512;

/// What is wrong with the tables; the text follows the name of the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("is corrupt: {what} at {offset:#x} is used twice; repair it with: qemu-img check -r all")]
    UsedTwice { what: &'static str, offset: u64 },
    #[error(
        "is corrupt: {what} at {offset:#x} is used and not counted; repair it with: qemu-img check -r all"
    )]
    NotCounted { what: &'static str, offset: u64 },
    #[error(
        "is corrupt: {what} at {offset:#x} is not where a cluster begins; repair it with: qemu-img check -r all"
    )]
    Unaligned { what: &'static str, offset: u64 },
    #[error("is corrupt or too large: it has {what} at {offset:#x}")]
    TooFar { what: &'static str, offset: u64 },
    #[error("is corrupt: {what} at {offset:#x} cannot be read: {source}")]
    Read { what: &'static str, offset: u64, source: io::Error },
}

/// Walks through all tables of the disk; snapshots are left alone, as the library leaves them.
pub(super) fn check(image: &File, header: &Header) -> Result<(), TableError> {
    let mut walk = Walk {
        image,
        header,
        refcount_table: read_table(
            image,
            "the refcount table",
            header.refcount_table,
            header.refcount_table_size,
        )?,
        block: None,
        owned: ClusterSet::default(),
        compressed: ClusterSet::default(),
    };
    walk.own("the header", 0, u64::from(header.cluster_size))?;
    walk.own("the refcount table", header.refcount_table, header.refcount_table_size)?;
    for index in 0..walk.refcount_table.len() {
        // An entry of this table has its offset in bits 9 to 63.
        let block = walk.refcount_table[index];
        if block != 0 {
            walk.own("a refcount block", block, u64::from(header.cluster_size))?;
        }
    }
    walk.own("the L1 table", header.l1_table, header.l1_size)?;
    for entry in read_table(image, "the L1 table", header.l1_table, header.l1_size)? {
        if entry & OFFSET != 0 {
            walk.second_level(entry & OFFSET)?;
        }
    }
    Ok(())
}

struct Walk<'a> {
    image: &'a File,
    header: &'a Header,
    refcount_table: Vec<u64>,
    /// The refcount block looked at last, by its place in the table: clusters mostly come in order.
    block: Option<(u64, Vec<u8>)>,
    /// Clusters that have one use.
    owned: ClusterSet,
    /// Clusters that hold compressed data, of which each may hold several pieces.
    compressed: ClusterSet,
}

impl Walk<'_> {
    fn second_level(&mut self, offset: u64) -> Result<(), TableError> {
        let size = u64::from(self.header.cluster_size);
        self.own("an L2 table", offset, size)?;
        for entry in read_table(self.image, "an L2 table", offset, size)? {
            if entry & COMPRESSED != 0 {
                self.share(entry)?;
            } else if entry & OFFSET != 0 {
                self.own("data", entry & OFFSET, size)?;
            }
        }
        Ok(())
    }

    /// Notes that a range of whole clusters has its one use.
    fn own(&mut self, what: &'static str, offset: u64, len: u64) -> Result<(), TableError> {
        if !offset.is_multiple_of(self.header.cluster_size.into()) {
            return Err(TableError::Unaligned { what, offset });
        }
        for cluster in self.clusters(what, offset, len)? {
            self.expect_counted(what, cluster)?;
            if self.compressed.contains(cluster) || !self.owned.insert(cluster) {
                return Err(TableError::UsedTwice { what, offset: self.offset(cluster) });
            }
        }
        Ok(())
    }

    /// Notes the clusters of a compressed one.
    fn share(&mut self, entry: u64) -> Result<(), TableError> {
        let what = "compressed data";
        // The offset takes the lower bits, the number of further sectors the rest below the flags.
        let offset_bits = 62 - (self.header.cluster_size.ilog2() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let len = (sectors + 1) * COMPRESSED_SECTOR - offset % COMPRESSED_SECTOR;
        for cluster in self.clusters(what, offset, len)? {
            self.expect_counted(what, cluster)?;
            if self.owned.contains(cluster) {
                return Err(TableError::UsedTwice { what, offset: self.offset(cluster) });
            }
            self.compressed.insert(cluster);
        }
        Ok(())
    }

    fn clusters(
        &self,
        what: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<std::ops::Range<u64>, TableError> {
        let size = u64::from(self.header.cluster_size);
        let end = offset.checked_add(len).map(|end| end.div_ceil(size));
        let end = end.filter(|end| *end <= MAX_CLUSTERS).ok_or(TableError::TooFar { what, offset })?;
        Ok(offset / size..end)
    }

    fn expect_counted(&mut self, what: &'static str, cluster: u64) -> Result<(), TableError> {
        match self.is_counted(cluster)? {
            true => Ok(()),
            false => Err(TableError::NotCounted { what, offset: self.offset(cluster) }),
        }
    }

    /// Whether the reference count of a cluster is not zero.
    fn is_counted(&mut self, cluster: u64) -> Result<bool, TableError> {
        let size = u64::from(self.header.cluster_size);
        let bits = u64::from(self.header.refcount_bits);
        let counts = size * 8 / bits;
        let (place, index) = (cluster / counts, cluster % counts);
        let entry = usize::try_from(place).ok().and_then(|place| self.refcount_table.get(place));
        let Some(&offset) = entry.filter(|offset| **offset != 0) else { return Ok(false) };
        if self.block.as_ref().is_none_or(|(loaded, _)| *loaded != place) {
            let bytes = read_bytes(self.image, "a refcount block", offset, size)?;
            self.block = Some((place, bytes));
        }
        let Some((_, block)) = &self.block else { return Ok(false) };
        // Counts of less than a byte begin at its lowest bit.
        let first = index * bits;
        Ok(match bits {
            1..8 => block[(first / 8) as usize] >> (first % 8) & ((1 << bits) - 1) != 0,
            _ => block[(first / 8) as usize..][..(bits / 8) as usize].iter().any(|byte| *byte != 0),
        })
    }

    fn offset(&self, cluster: u64) -> u64 {
        cluster * u64::from(self.header.cluster_size)
    }
}

/// Clusters by their numbers, which are below [`MAX_CLUSTERS`].
#[derive(Default)]
struct ClusterSet(Vec<u64>);

impl ClusterSet {
    fn contains(&self, cluster: u64) -> bool {
        self.0.get((cluster / 64) as usize).is_some_and(|word| word >> (cluster % 64) & 1 != 0)
    }

    /// Whether the cluster is new.
    fn insert(&mut self, cluster: u64) -> bool {
        let (word, bit) = ((cluster / 64) as usize, 1 << (cluster % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }
}

/// A table of 8-byte entries; the header has limited its size.
fn read_table(image: &File, what: &'static str, offset: u64, len: u64) -> Result<Vec<u64>, TableError> {
    let bytes = read_bytes(image, what, offset, len)?;
    let entry = |entry: &[u8]| entry.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
    Ok(bytes.chunks_exact(8).map(entry).collect())
}

fn read_bytes(image: &File, what: &'static str, offset: u64, len: u64) -> Result<Vec<u8>, TableError> {
    let mut bytes = vec![0; len as usize];
    match image.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(source) => Err(TableError::Read { what, offset, source }),
    }
}
