//! What tests of links out of the machine share.

/// A packet of a stream from the guest, which is CID 3, to the host (virtio 1.2, 5.10.6): ports of guest and host,
/// operation, data.
pub(crate) fn packet(ports: [u32; 2], operation: u16, data: &[u8]) -> Vec<u8> {
    let (guest, host) = (3_u64, 2_u64);
    let mut bytes = [guest, host].map(u64::to_le_bytes).concat();
    bytes.extend(ports.map(u32::to_le_bytes).concat());
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend([1, operation].map(u16::to_le_bytes).concat());
    bytes.extend([0_u32, 65536, 0].map(u32::to_le_bytes).concat());
    bytes.extend(data);
    bytes
}

/// Operation of a packet (virtio 1.2, 5.10.6).
pub(crate) fn operation(packet: &[u8]) -> u16 {
    u16::from_le_bytes([packet[30], packet[31]])
}
