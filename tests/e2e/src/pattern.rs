//! Content that tells where it belongs, and the random numbers behind it.

/// A small generator (xorshift64*): tests must repeat, so the seed is always given.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state that never changes.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Fills a buffer with content that depends on its offset on the disk and on how often it was written.
pub(crate) fn fill(buffer: &mut [u8], offset: u64, generation: u32) {
    let mut random = Random::new(offset ^ (u64::from(generation) << 40));
    for word in buffer.chunks_mut(8) {
        let bytes = random.next().to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// The first byte that differs from what [`fill`] writes there.
pub(crate) fn mismatch(buffer: &[u8], offset: u64, generation: u32) -> Option<usize> {
    let mut expected = vec![0; buffer.len()];
    fill(&mut expected, offset, generation);
    buffer.iter().zip(&expected).position(|(got, expected)| got != expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_differs_by_place_and_by_generation() {
        let mut block = vec![0; 4096];
        fill(&mut block, 8192, 3);
        assert_eq!(mismatch(&block, 8192, 3), None);
        assert!(mismatch(&block, 4096, 3).is_some());
        assert!(mismatch(&block, 8192, 2).is_some());
    }

    #[test]
    fn one_changed_byte_is_found() {
        let mut block = vec![0; 4096];
        fill(&mut block, 0, 1);
        block[1234] ^= 1;
        assert_eq!(mismatch(&block, 0, 1), Some(1234));
    }
}
