//! Features (virtio 1.2, 5.1.3) and configuration space (virtio 1.2, 5.1.4).
#![forbid(unsafe_code)]

use crate::mac::Mac;

/// Device type (virtio 1.2, 5).
pub(crate) const DEVICE_TYPE: u32 = 1;

/// The driver may leave checksums to the device.
pub(crate) const F_CSUM: u64 = 1;
/// The driver takes packets whose checksum is not filled in.
pub(crate) const F_GUEST_CSUM: u64 = 1 << 1;
/// The driver may change its receive offloads in use.
pub(crate) const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The configuration space has an MTU.
pub(crate) const F_MTU: u64 = 1 << 3;
/// The configuration space has a hardware address.
pub(crate) const F_MAC: u64 = 1 << 5;
/// The driver takes TCP over IPv4 that is not cut into segments; the next ones: over IPv6, with ECN.
pub(crate) const F_GUEST_TSO4: u64 = 1 << 7;
pub(crate) const F_GUEST_TSO6: u64 = 1 << 8;
pub(crate) const F_GUEST_ECN: u64 = 1 << 9;
/// The same in the other direction.
pub(crate) const F_HOST_TSO4: u64 = 1 << 11;
pub(crate) const F_HOST_TSO6: u64 = 1 << 12;
pub(crate) const F_HOST_ECN: u64 = 1 << 13;
/// A received frame may be spread over several buffers.
pub(crate) const F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration space tells whether there is a link.
pub(crate) const F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub(crate) const F_CTRL_VQ: u64 = 1 << 17;
/// The control queue takes receive modes; the next one: further ones.
pub(crate) const F_CTRL_RX: u64 = 1 << 18;
pub(crate) const F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// There are several pairs of queues.
pub(crate) const F_MQ: u64 = 1 << 22;
/// The control queue takes a hardware address.
pub(crate) const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// The configuration space has speed and duplex.
pub(crate) const F_SPEED_DUPLEX: u64 = 1 << 63;

/// Receive offloads, which the driver can turn on and off by [`F_CTRL_GUEST_OFFLOADS`].
pub(crate) const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
/// Transmit offloads.
pub(crate) const HOST_OFFLOADS: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;

/// Bytes of the configuration space: up to and including `duplex`, and padding to a multiple of 4.
pub(crate) const CONFIG_SIZE: usize = 20;
/// `VIRTIO_NET_S_LINK_UP` in the field `status`.
const LINK_UP: u16 = 1;
/// Speed that nobody has told (virtio 1.2, 5.1.4), and full duplex.
const SPEED_UNKNOWN: u32 = u32::MAX;
const FULL_DUPLEX: u8 = 1;

/// Fields of the configuration space.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    pub(crate) mac: Mac,
    pub(crate) link_up: bool,
    pub(crate) pairs: u16,
    pub(crate) mtu: Option<u16>,
    /// In Mbit/s.
    pub(crate) speed: Option<u32>,
}

impl Config {
    pub(crate) fn to_bytes(self) -> [u8; CONFIG_SIZE] {
        let mut bytes = [0; CONFIG_SIZE];
        bytes[..6].copy_from_slice(&self.mac.0);
        bytes[6..8].copy_from_slice(&(if self.link_up { LINK_UP } else { 0 }).to_le_bytes());
        bytes[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.speed.unwrap_or(SPEED_UNKNOWN).to_le_bytes());
        bytes[16] = FULL_DUPLEX;
        bytes
    }
}

/// Role of a queue (virtio 1.2, 5.1.2), which depends on what the driver has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Receive queue of a pair.
    Receive(u16),
    /// Transmit queue of a pair.
    Transmit(u16),
    Control,
}

impl Role {
    /// The role of the queue with this index; `None` when the driver has no such queue.
    pub(crate) fn of(index: u16, pairs: u16, features: u64) -> Option<Self> {
        let pairs = if features & F_MQ != 0 { pairs } else { 1 };
        if index == 2 * pairs && features & F_CTRL_VQ != 0 {
            return Some(Self::Control);
        }
        let pair = index / 2;
        let role = if index.is_multiple_of(2) { Self::Receive(pair) } else { Self::Transmit(pair) };
        (pair < pairs).then_some(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mac = Mac([2, 3, 4, 5, 6, 7]);
        let config = Config { mac, link_up: true, pairs: 4, mtu: Some(1500), speed: Some(1000) };
        let bytes = config.to_bytes();
        assert_eq!(bytes[..8], [2, 3, 4, 5, 6, 7, 1, 0]);
        assert_eq!(bytes[8..12], [4, 0, 0xdc, 5]);
        assert_eq!(bytes[12..17], [0xe8, 3, 0, 0, 1]);
        let down = Config { link_up: false, mtu: None, speed: None, ..config }.to_bytes();
        assert_eq!(down[6..8], [0, 0]);
        assert_eq!(down[12..16], [0xff; 4]);
    }

    #[test]
    fn the_control_queue_is_behind_the_pairs_that_the_driver_uses() {
        let of = |index, features| Role::of(index, 4, features);
        assert_eq!(of(0, 0), Some(Role::Receive(0)));
        assert_eq!(of(1, 0), Some(Role::Transmit(0)));
        assert_eq!(of(2, 0), None);
        assert_eq!(of(2, F_CTRL_VQ), Some(Role::Control));
        assert_eq!(of(8, F_CTRL_VQ), None);
        assert_eq!(of(2, F_CTRL_VQ | F_MQ), Some(Role::Receive(1)));
        assert_eq!(of(7, F_CTRL_VQ | F_MQ), Some(Role::Transmit(3)));
        assert_eq!(of(8, F_CTRL_VQ | F_MQ), Some(Role::Control));
    }
}
