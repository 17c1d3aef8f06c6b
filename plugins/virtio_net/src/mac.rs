//! Hardware addresses.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

/// Bit of the first byte: an address of a group (IEEE 802, 8.2).
const GROUP: u8 = 1;
/// Bit of the first byte: not from a manufacturer.
const LOCAL: u8 = 2;

/// Back ends for which an address was made, in the order of the command line: the second card on the same one differs.
static DERIVED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Mac {
    /// The broadcast address.
    pub(crate) const BROADCAST: Self = Self([0xff; 6]);

    /// Reads `52:54:00:12:34:56`; the address of one card, not of a group, not zero.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(hex)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        let card = bytes[0] & GROUP == 0 && bytes != [0; 6];
        (parts.next().is_none() && card).then_some(Self(bytes))
    }

    /// An address for a card on this back end: the same at every start on this host, another one on another host and
    /// for another back end, so that guests on one bridge differ.
    pub(crate) fn derive(backend: &str) -> Self {
        let mut derived = DERIVED.lock().unwrap_or_else(PoisonError::into_inner);
        let before = derived.iter().filter(|known| *known == backend).count();
        derived.push(backend.to_owned());
        let host = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Self::from_hash(fnv1a(format!("{}\0{backend}\0{before}", host.trim()).as_bytes()))
    }

    fn from_hash(hash: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
        Self([(a & !GROUP) | LOCAL, b ^ g, c ^ h, d, e, f])
    }

    /// Whether it is an address of a group.
    pub(crate) fn is_group(self) -> bool {
        self.0[0] & GROUP != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// FNV-1a, 64 bits: unlike the hashes of the standard library it is the same in every build.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written() {
        let mac = Mac::parse("52:54:00:aB:cd:0f").unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0xcd, 0x0f]));
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
    }

    #[test]
    fn what_is_no_address_of_a_card_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "zz:54:00:12:34:56",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
    }

    #[test]
    fn derived_addresses_are_local_and_differ() {
        let (first, second) = (Mac::derive("tap some"), Mac::derive("tap other"));
        let again = Mac::derive("tap some");
        assert!(first != second && first != again && second != again);
        for mac in [first, second, again] {
            assert_eq!(mac.0[0] & 3, LOCAL);
        }
        assert_eq!(Mac::from_hash(fnv1a(b"a")), Mac::from_hash(0xaf63_dc4c_8601_ec8c));
    }
}
