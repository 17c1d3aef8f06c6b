//! Configuration space and features (virtio 1.2, 5.2.3 and 5.2.4).
#![forbid(unsafe_code)]

/// Device type of a block device (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 2;

/// `VIRTIO_BLK_F_SEG_MAX`: `seg_max` limits the data buffers of a request.
pub(crate) const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`: the disk is write-protected.
pub(crate) const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`: `blk_size` is the logical block size.
pub(crate) const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`: writes are durable once flushed.
pub(crate) const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`: physical block size and good transfer sizes are given.
pub(crate) const F_TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_CONFIG_WCE`: the driver may switch between writeback and writethrough.
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
/// `VIRTIO_BLK_F_MQ`: there are several queues.
pub(crate) const F_MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`: the driver may discard sectors.
pub(crate) const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`: the driver may have sectors zeroed.
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Unit of sector numbers in bytes, whatever the logical block size.
pub(crate) const SECTOR_SIZE: u64 = 512;

/// Most sectors in one segment of a discard or write-zeroes request: 1 GiB, so that none keeps the queue for long.
pub(crate) const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Most segments in one discard or write-zeroes request.
pub(crate) const MAX_RANGE_SEGMENTS: u32 = 32;

/// Bytes of `struct virtio_blk_config` up to and without the fields for secure erase.
pub(crate) const CONFIG_SIZE: usize = 60;
/// Offset of `writeback`, the only field that the driver may write.
pub(crate) const WRITEBACK_OFFSET: usize = 32;

/// What the configuration space tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    /// Size in bytes, a multiple of [`SECTOR_SIZE`].
    pub(crate) capacity: u64,
    /// Most data buffers of a request.
    pub(crate) seg_max: u32,
    /// Logical block size in bytes.
    pub(crate) block_size: u32,
    /// Physical block size in bytes, `block_size` times a power of two.
    pub(crate) physical_block_size: u32,
    /// Best transfer size in bytes, 0 when none is known.
    pub(crate) optimal_io_size: u32,
    /// Whether writes are durable only once flushed.
    pub(crate) writeback: bool,
    /// Number of queues.
    pub(crate) queues: u16,
}

impl Config {
    /// `struct virtio_blk_config`.
    pub(crate) fn to_bytes(self) -> [u8; CONFIG_SIZE] {
        let physical_blocks = (self.physical_block_size / self.block_size).max(1);
        let mut bytes = [0; CONFIG_SIZE];
        let mut put =
            |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
        put(0, &(self.capacity / SECTOR_SIZE).to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        // physical_block_exp, alignment_offset, min_io_size and opt_io_size; sizes in logical blocks.
        put(24, &[physical_blocks.ilog2() as u8, 0]);
        put(26, &u16::try_from(physical_blocks).unwrap_or(u16::MAX).to_le_bytes());
        put(28, &(self.optimal_io_size / self.block_size).to_le_bytes());
        put(WRITEBACK_OFFSET, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        // max_discard_sectors, max_discard_seg, discard_sector_alignment; then the same for zeroes and may_unmap.
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGE_SEGMENTS.to_le_bytes());
        put(44, &(self.physical_block_size / SECTOR_SIZE as u32).to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGE_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_puts_them() {
        let config = Config {
            capacity: 0x1234_5678_0000_0200,
            seg_max: 254,
            block_size: 512,
            physical_block_size: 4096,
            optimal_io_size: 65536,
            writeback: true,
            queues: 4,
        };
        let bytes = config.to_bytes();
        assert_eq!(bytes[0..8], (0x1234_5678_0000_0200_u64 / 512).to_le_bytes());
        assert_eq!(bytes[12..16], [254, 0, 0, 0]);
        assert_eq!(bytes[20..24], [0, 2, 0, 0]);
        assert_eq!(bytes[24..32], [3, 0, 8, 0, 128, 0, 0, 0]);
        assert_eq!(bytes[32..36], [1, 0, 4, 0]);
        assert_eq!(bytes[36..48], [0, 0, 0x20, 0, 32, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(bytes[48..60], [0, 0, 0x20, 0, 32, 0, 0, 0, 1, 0, 0, 0]);
    }
}
