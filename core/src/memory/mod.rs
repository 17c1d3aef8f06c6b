//! Guest memory: one region of RAM, written by the loader, then given to the guest.

/// Guest RAM, complete and out of the loader's reach.
pub struct GuestRam {}
