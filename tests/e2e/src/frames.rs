//! Ethernet frames: malformed ones, and the answers of a host that can be pinged.

use std::net::Ipv4Addr;

use crate::pattern::Random;

/// Longest frame that a card takes: an IP packet of 64 KiB behind an Ethernet header with two VLAN tags.
pub(crate) const LONGEST: usize = 65535 + 14 + 8;
/// Address of the host that answers.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// Ethernet header: destination, source, type.
const ETHERNET: usize = 14;
const TYPE_AT: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
/// Protocols of IP.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A frame that nobody should send, to a card or to all.
pub(crate) fn malformed(random: &mut Random, card: [u8; 6]) -> Vec<u8> {
    let len = match random.below(8) {
        // Cut off within the Ethernet header, or behind it.
        0 => random.below(ETHERNET as u64 + 2) as usize,
        1 => LONGEST - random.below(2000) as usize,
        _ => ETHERNET + random.below(1501) as usize,
    };
    let mut frame = vec![0; len];
    frame.fill_with(|| random.next() as u8);
    let to = if random.below(4) == 0 { [0xff; 6] } else { card };
    put(&mut frame, 0, &to);
    put(&mut frame, 6, &OWN);
    match random.below(4) {
        // Any type.
        0 => {}
        1 => put(&mut frame, TYPE_AT, &ARP),
        _ => {
            put(&mut frame, TYPE_AT, &IPV4);
            // Version 4, a header of any length, lengths and checksums of no meaning.
            put(&mut frame, ETHERNET, &[0x40 | random.below(16) as u8]);
            put(&mut frame, ETHERNET + 9, &[[ICMP, TCP, UDP][random.below(3) as usize]]);
        }
    }
    frame
}

/// Replaces bytes as far as the frame reaches.
fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// What a host at an address answers to a frame: where it is, and that it is there.
pub(crate) fn answer(frame: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut reply = frame.to_vec();
    let (ethernet, packet) = reply.split_at_mut_checked(ETHERNET)?;
    let kind = [ethernet[TYPE_AT], ethernet[TYPE_AT + 1]];
    ethernet.copy_within(6..12, 0);
    ethernet[6..12].copy_from_slice(&OWN);
    match kind {
        ARP => answer_arp(packet, address)?,
        IPV4 => answer_ping(packet, address)?,
        _ => return None,
    }
    Some(reply)
}

/// Makes a request for an address (RFC 826) the reply to it.
fn answer_arp(packet: &mut [u8], address: Ipv4Addr) -> Option<()> {
    let packet = packet.get_mut(..28)?;
    if packet[6..8] != [0, 1] || packet[24..28] != address.octets() {
        return None;
    }
    packet[7] = 2;
    packet.copy_within(8..18, 18);
    packet[8..14].copy_from_slice(&OWN);
    packet[14..18].copy_from_slice(&address.octets());
    Some(())
}

/// Makes an ICMP echo request (RFC 792) in a packet without options the reply to it.
fn answer_ping(packet: &mut [u8], address: Ipv4Addr) -> Option<()> {
    let header = packet.get_mut(..28)?;
    if header[0] != 0x45 || header[9] != ICMP || header[16..20] != address.octets() || header[20] != 8 {
        return None;
    }
    // Source and destination change places, which leaves the header's checksum as it is.
    let from = [header[12], header[13], header[14], header[15]];
    header.copy_within(16..20, 12);
    header[16..20].copy_from_slice(&from);
    // The type goes from 8 to 0; the checksum takes up the difference (RFC 1624).
    header[20] = 0;
    let (sum, carry) = u16::from_be_bytes([header[22], header[23]]).overflowing_add(0x0800);
    header[22..24].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 82, 1);
    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn frame(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6], &GUEST[..], &kind, packet].concat()
    }

    /// The Internet checksum (RFC 1071): zero over data with a right one.
    fn checksum(data: &[u8]) -> u16 {
        let words = data.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        !((sum & 0xffff) + (sum >> 16)) as u16
    }

    #[test]
    fn who_asks_for_the_address_is_told() {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend(GUEST.iter().chain(&[192, 168, 82, 2]).chain(&[0; 6]).chain(&[192, 168, 82, 1]));
        let reply = answer(&frame(ARP, &request), ADDRESS).unwrap();
        assert_eq!(reply[..12], [GUEST, OWN].concat());
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[22..32], [&OWN[..], &[192, 168, 82, 1]].concat());
        assert_eq!(reply[32..42], [&GUEST[..], &[192, 168, 82, 2]].concat());
        request[27] = 9;
        assert_eq!(answer(&frame(ARP, &request), ADDRESS), None);
        assert_eq!(answer(&frame(ARP, &request[..20]), ADDRESS), None);
    }

    #[test]
    fn a_ping_comes_back_with_a_right_checksum() {
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, ICMP, 0, 0, 192, 168, 82, 2, 192, 168, 82, 1];
        packet.extend([8, 0, 0, 0, 1, 2, 0, 1, 0xab, 0xcd, 0xef, 1]);
        let sum = checksum(&packet[20..]).to_be_bytes();
        packet[22..24].copy_from_slice(&sum);
        let reply = answer(&frame(IPV4, &packet), ADDRESS).unwrap();
        assert_eq!(reply[26..34], [192, 168, 82, 1, 192, 168, 82, 2]);
        assert_eq!((reply[34], checksum(&reply[34..])), (0, 0));
        assert_eq!(reply[38..], packet[24..]);
        packet[20] = 0;
        assert_eq!(answer(&frame(IPV4, &packet), ADDRESS), None);
    }

    #[test]
    fn malformed_frames_are_of_all_lengths() {
        let mut random = Random::new(1);
        let lens: Vec<_> = (0..500).map(|_| malformed(&mut random, GUEST).len()).collect();
        assert!(lens.iter().any(|len| *len < ETHERNET) && lens.iter().any(|len| *len > 60_000));
        assert!(lens.iter().all(|len| *len <= LONGEST));
    }
}
