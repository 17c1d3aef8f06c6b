//! The header before each packet (virtio 1.2, 5.10.6).
#![forbid(unsafe_code)]

/// Bytes of a header.
pub(crate) const HEADER: usize = 44;
/// Address of the host (virtio 1.2, 5.10.4).
pub(crate) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(crate) const TYPE_STREAM: u16 = 1;
/// Flags of [`Op::Shutdown`]: the sender receives no more, sends no more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
pub(crate) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [(u16, Self); 7] = [
        (1, Self::Request),
        (2, Self::Response),
        (3, Self::Reset),
        (4, Self::Shutdown),
        (5, Self::Data),
        (6, Self::CreditUpdate),
        (7, Self::CreditRequest),
    ];

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == number).map(|(_, op)| *op)
    }

    fn number(self) -> u16 {
        Self::ALL.iter().find(|(_, op)| *op == self).map_or(0, |(number, _)| *number)
    }
}

/// The two ports of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// A header, in either direction: which side is the source follows from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) ports: Ports,
    pub(crate) len: u32,
    /// `None` for a number that this device does not know.
    pub(crate) op: Option<Op>,
    pub(crate) kind: u16,
    pub(crate) flags: u32,
    /// Room that the sender has for data that it has not passed on, in bytes.
    pub(crate) buf_alloc: u32,
    /// Bytes that the sender has passed on so far.
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// A packet to the guest that is about nothing but a stream's state.
    pub(crate) fn new(ports: Ports, op: Op) -> Self {
        Self { ports, len: 0, op: Some(op), kind: TYPE_STREAM, flags: 0, buf_alloc: 0, fwd_cnt: 0 }
    }

    /// Reads a header of the guest with this address; `None` when it is from or to somebody else.
    pub(crate) fn from_guest(bytes: &[u8; HEADER], cid: u64) -> Option<Self> {
        let long = |at| u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (long(0) == cid && long(8) == HOST_CID).then(|| Self {
            ports: Ports { guest: word(bytes, 16), host: word(bytes, 20) },
            len: word(bytes, 24),
            kind: half(28),
            op: Op::from_number(half(30)),
            flags: word(bytes, 32),
            buf_alloc: word(bytes, 36),
            fwd_cnt: word(bytes, 40),
        })
    }

    /// The header as the guest with this address gets it.
    pub(crate) fn to_guest(self, cid: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&HOST_CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.ports.host.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.ports.guest.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.map_or(0, Op::number).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn word(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header = Header {
        ports: Ports { host: 0x0102_0304, guest: 0x0506_0708 },
        len: 9,
        op: Some(Op::Data),
        kind: TYPE_STREAM,
        flags: 3,
        buf_alloc: 0x1111,
        fwd_cnt: 0x2222,
    };

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes = SAMPLE.to_guest(7);
        assert_eq!(bytes[..16], [2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(bytes[24..36], [9, 0, 0, 0, 1, 0, 5, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[36..], [0x11, 0x11, 0, 0, 0x22, 0x22, 0, 0]);
    }

    #[test]
    fn what_the_guest_sends_is_read_with_the_ports_turned_round() {
        let mut bytes = SAMPLE.to_guest(7);
        bytes[..16].rotate_left(8);
        let header = Header::from_guest(&bytes, 7).unwrap();
        assert_eq!(header.ports, Ports { guest: SAMPLE.ports.host, host: SAMPLE.ports.guest });
        assert_eq!((header.op, header.len, header.fwd_cnt), (Some(Op::Data), 9, 0x2222));
        assert!(Header::from_guest(&bytes, 8).is_none(), "from another guest");
        bytes[30] = 99;
        assert_eq!(Header::from_guest(&bytes, 7).unwrap().op, None);
    }
}
