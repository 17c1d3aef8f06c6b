//! The frame by which a card makes itself known to whoever has to learn its address from the frames it sends.
#![forbid(unsafe_code)]

use crate::mac::Mac;

/// Bytes of the shortest Ethernet frame, without its checksum.
const FRAME: usize = 60;
/// EtherType of RARP.
const RARP: [u8; 2] = [0x80, 0x35];
/// Start of a RARP packet (RFC 903): Ethernet and IPv4 with addresses of 6 and 4 bytes, "request reverse".
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];

/// A request for the card's own protocol address, which asks nobody to do anything and names the card as its sender.
pub(crate) fn frame(mac: Mac) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let nobody = [0; 4];
    let parts: [&[u8]; 8] = [&Mac::BROADCAST.0, &mac.0, &RARP, &REQUEST, &mac.0, &nobody, &mac.0, &nobody];
    frame.iter_mut().zip(parts.concat()).for_each(|(byte, value)| *byte = value);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_is_sender_and_target() {
        let frame = frame(Mac([2, 3, 4, 5, 6, 7]));
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 3, 4, 5, 6, 7, 0x80, 0x35]);
        assert_eq!(frame[20..22], [0, 3]);
        assert_eq!(frame[22..42], [2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]);
        assert_eq!(frame[42..], [0; 18]);
    }
}
