//! Which frames the driver wants (virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2).
#![forbid(unsafe_code)]

use crate::mac::Mac;

/// Most addresses of each kind that are kept; with more, all of the kind pass.
pub(crate) const TABLE_LEN: usize = 64;

/// Receive modes, as the driver last set them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) all_unicast: bool,
    pub(crate) no_multicast: bool,
    pub(crate) no_unicast: bool,
    pub(crate) no_broadcast: bool,
}

/// Addresses of one kind that the driver wants beside its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Table {
    All,
    Only(Vec<Mac>),
}

impl Table {
    /// A table with these addresses.
    pub(crate) fn new(addresses: Vec<Mac>) -> Self {
        if addresses.len() > TABLE_LEN { Self::All } else { Self::Only(addresses) }
    }

    fn holds(&self, mac: Mac) -> bool {
        match self {
            Self::All => true,
            Self::Only(addresses) => addresses.contains(&mac),
        }
    }
}

/// Decides by a frame's destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) own: Mac,
    pub(crate) modes: Modes,
    pub(crate) unicast: Table,
    pub(crate) multicast: Table,
}

impl Filter {
    /// All frames pass, as before the driver has said anything.
    pub(crate) fn open(own: Mac) -> Self {
        let modes = Modes { promiscuous: true, ..Modes::default() };
        Self { own, modes, unicast: Table::Only(Vec::new()), multicast: Table::Only(Vec::new()) }
    }

    /// Whether the driver wants a frame to this address.
    pub(crate) fn passes(&self, destination: Mac) -> bool {
        let modes = &self.modes;
        if modes.promiscuous {
            return true;
        }
        if destination == Mac::BROADCAST {
            return !modes.no_broadcast;
        }
        if destination.is_group() {
            return !modes.no_multicast && (modes.all_multicast || self.multicast.holds(destination));
        }
        !modes.no_unicast && (modes.all_unicast || destination == self.own || self.unicast.holds(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const GROUP: Mac = Mac([1, 0, 0x5e, 0, 0, 1]);

    fn closed() -> Filter {
        Filter { modes: Modes::default(), ..Filter::open(OWN) }
    }

    #[test]
    fn all_passes_until_the_driver_turns_that_off() {
        assert!([OWN, OTHER, GROUP, Mac::BROADCAST].iter().all(|mac| Filter::open(OWN).passes(*mac)));
        let closed = closed();
        assert!(closed.passes(OWN) && closed.passes(Mac::BROADCAST));
        assert!(!closed.passes(OTHER) && !closed.passes(GROUP));
    }

    #[test]
    fn tables_and_modes_let_more_pass_or_less() {
        let mut filter = closed();
        filter.unicast = Table::new(vec![OTHER]);
        filter.multicast = Table::new(vec![GROUP]);
        assert!(filter.passes(OTHER) && filter.passes(GROUP));
        filter.modes.no_unicast = true;
        filter.modes.no_multicast = true;
        filter.modes.no_broadcast = true;
        assert!(![OWN, OTHER, GROUP, Mac::BROADCAST].iter().any(|mac| filter.passes(*mac)));
        let wide = Modes { all_multicast: true, all_unicast: true, ..Modes::default() };
        let filter = Filter { modes: wide, ..closed() };
        assert!(filter.passes(OTHER) && filter.passes(GROUP));
    }

    #[test]
    fn a_table_that_is_too_long_lets_all_pass() {
        let many = vec![OTHER; TABLE_LEN + 1];
        assert!(Table::new(many).holds(GROUP));
    }
}
