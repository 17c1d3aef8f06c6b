//! The least that is a kernel.

/// The window's name in device trees, which gvmm looks for in a kernel.
pub(crate) const POOL: &[u8] = b"restricted-dma-pool";

/// An arm64 Image (Documentation/arch/arm64/booting.rst) whose code nobody runs.
pub(crate) fn kernel() -> Vec<u8> {
    let mut image = vec![0; 4096];
    // A branch over the header.
    image[..4].copy_from_slice(&0x1400_0010u32.to_le_bytes());
    // Bytes that the kernel takes in memory.
    image[16..24].copy_from_slice(&0x1_0000u64.to_le_bytes());
    // Little-endian, 4 KiB pages, anywhere in memory.
    image[24..32].copy_from_slice(&0xau64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    // What a kernel contains that can use the window of a protected guest.
    image[64..64 + POOL.len()].copy_from_slice(POOL);
    image
}
