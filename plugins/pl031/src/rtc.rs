//! The counter and its comparator, as functions of the host's time.
//!
//! Two things differ from the silicon. The clock runs from power-on, as one with a battery does, and so RTCCR always
//! reads as started. And it shows the host's time until the guest sets another.
#![forbid(unsafe_code)]

use gvmm_plugin_api::mmio::AccessError;

use crate::registers::{BIT, Register};

/// Seconds after which the counter is where it was.
const PERIOD: u64 = 1 << 32;

/// Registers, and the host's time of the next match.
#[derive(Debug)]
pub(crate) struct Rtc {
    /// What the counter is ahead of the host's time, modulo 2^32.
    offset: u32,
    load: u32,
    match_value: u32,
    unmasked: bool,
    raised: bool,
    /// When the counter next equals the match register, in seconds of the host's time.
    next_match: u64,
    /// An interrupt has come up since [`Rtc::take_edge`].
    edge: bool,
}

impl Rtc {
    /// A clock at power-on; `now` is the host's time in seconds since 1970.
    pub(crate) fn new(now: u64) -> Self {
        let mut rtc = Self {
            offset: 0,
            load: 0,
            match_value: 0,
            unmasked: false,
            raised: false,
            next_match: 0,
            edge: false,
        };
        rtc.find_next_match(now);
        rtc
    }

    /// Reads a register.
    pub(crate) fn read(&mut self, now: u64, register: Register) -> Result<u32, AccessError> {
        self.advance(now);
        Ok(match register {
            Register::Data => self.counter(now),
            Register::Match => self.match_value,
            Register::Load => self.load,
            Register::Control => BIT,
            Register::InterruptMask => self.unmasked.into(),
            Register::RawInterrupt => self.raised.into(),
            Register::MaskedInterrupt => (self.raised && self.unmasked).into(),
            Register::Id(byte) => byte.into(),
            Register::InterruptClear => return Err(AccessError::Direction),
        })
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, now: u64, register: Register, value: u32) -> Result<(), AccessError> {
        self.advance(now);
        match register {
            Register::Match => {
                self.match_value = value;
                self.compare(now);
            }
            Register::Load => {
                self.load = value;
                self.offset = value.wrapping_sub(now as u32);
                self.compare(now);
            }
            // The clock cannot be stopped (3.3.4).
            Register::Control => {}
            Register::InterruptMask => {
                let unmasked = value & BIT != 0;
                self.edge |= self.raised && unmasked && !self.unmasked;
                self.unmasked = unmasked;
            }
            Register::InterruptClear => self.raised &= value & BIT == 0,
            Register::Data | Register::RawInterrupt | Register::MaskedInterrupt | Register::Id(_) => {
                return Err(AccessError::Direction);
            }
        }
        Ok(())
    }

    /// Notes a match that has come with time.
    pub(crate) fn advance(&mut self, now: u64) {
        if now >= self.next_match {
            self.matched();
            self.find_next_match(now);
        }
    }

    /// When to call [`Rtc::advance`] so that the interrupt is in time; `None` if there will be none.
    pub(crate) fn deadline(&self) -> Option<u64> {
        (self.unmasked && !self.raised).then_some(self.next_match)
    }

    /// Whether the interrupt line is to be raised for what has come up since the last call.
    pub(crate) fn take_edge(&mut self) -> bool {
        std::mem::take(&mut self.edge)
    }

    /// The low 32 bits of the time are all that the guest can see.
    fn counter(&self, now: u64) -> u32 {
        (now as u32).wrapping_add(self.offset)
    }

    /// Counter or match register have changed and may be equal already.
    fn compare(&mut self, now: u64) {
        if self.counter(now) == self.match_value {
            self.matched();
        }
        self.find_next_match(now);
    }

    fn matched(&mut self) {
        self.edge |= self.unmasked && !self.raised;
        self.raised = true;
    }

    fn find_next_match(&mut self, now: u64) {
        let distance = match self.match_value.wrapping_sub(self.counter(now)) {
            0 => PERIOD,
            distance => distance.into(),
        };
        self.next_match = now.saturating_add(distance);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2025-01-01 00:00:00 UTC.
    const NEW_YEAR: u64 = 1_735_689_600;

    fn read(rtc: &mut Rtc, now: u64, register: Register) -> u32 {
        rtc.read(now, register).unwrap()
    }

    #[test]
    fn shows_the_time_of_the_host_from_power_on() {
        let mut rtc = Rtc::new(NEW_YEAR);
        assert_eq!(u64::from(read(&mut rtc, NEW_YEAR, Register::Data)), NEW_YEAR);
        assert_eq!(u64::from(read(&mut rtc, NEW_YEAR + 61, Register::Data)), NEW_YEAR + 61);
        assert_eq!(read(&mut rtc, NEW_YEAR, Register::Control), 1);
    }

    #[test]
    fn goes_on_from_the_time_that_the_guest_sets() {
        let mut rtc = Rtc::new(NEW_YEAR);
        for set in [0, 1_000_000, u32::MAX] {
            rtc.write(NEW_YEAR, Register::Load, set).unwrap();
            assert_eq!(read(&mut rtc, NEW_YEAR, Register::Load), set);
            assert_eq!(read(&mut rtc, NEW_YEAR, Register::Data), set);
            assert_eq!(read(&mut rtc, NEW_YEAR + 5, Register::Data), set.wrapping_add(5));
        }
    }

    #[test]
    fn starting_it_again_does_not_change_the_time() {
        let mut rtc = Rtc::new(NEW_YEAR);
        rtc.write(NEW_YEAR, Register::Load, 7).unwrap();
        rtc.write(NEW_YEAR, Register::Control, 1).unwrap();
        rtc.write(NEW_YEAR, Register::Control, 0).unwrap();
        assert_eq!(read(&mut rtc, NEW_YEAR, Register::Data), 7);
        assert_eq!(read(&mut rtc, NEW_YEAR, Register::Control), 1);
    }

    #[test]
    fn interrupts_once_when_the_match_comes() {
        let mut rtc = Rtc::new(NEW_YEAR);
        rtc.write(NEW_YEAR, Register::Match, NEW_YEAR as u32 + 10).unwrap();
        assert_eq!(rtc.deadline(), None, "masked");
        rtc.write(NEW_YEAR, Register::InterruptMask, 1).unwrap();
        assert_eq!(rtc.deadline(), Some(NEW_YEAR + 10));
        rtc.advance(NEW_YEAR + 9);
        assert!(!rtc.take_edge());
        rtc.advance(NEW_YEAR + 10);
        assert!(rtc.take_edge());
        assert_eq!(rtc.deadline(), None, "pending");
        assert_eq!(read(&mut rtc, NEW_YEAR + 11, Register::MaskedInterrupt), 1);
        rtc.write(NEW_YEAR + 11, Register::InterruptClear, 1).unwrap();
        assert_eq!(read(&mut rtc, NEW_YEAR + 11, Register::RawInterrupt), 0);
        assert!(!rtc.take_edge());
        assert_eq!(rtc.deadline(), Some(NEW_YEAR + 10 + PERIOD));
    }

    #[test]
    fn a_match_that_is_already_there_interrupts_at_once() {
        let mut rtc = Rtc::new(NEW_YEAR);
        rtc.write(NEW_YEAR, Register::InterruptMask, 1).unwrap();
        rtc.write(NEW_YEAR, Register::Match, 100).unwrap();
        assert!(!rtc.take_edge());
        rtc.write(NEW_YEAR, Register::Load, 100).unwrap();
        assert!(rtc.take_edge());
        rtc.write(NEW_YEAR, Register::InterruptClear, 1).unwrap();
        rtc.write(NEW_YEAR, Register::Match, 100).unwrap();
        assert!(rtc.take_edge());
    }

    #[test]
    fn a_masked_match_interrupts_when_it_is_unmasked() {
        let mut rtc = Rtc::new(NEW_YEAR);
        rtc.write(NEW_YEAR, Register::Match, NEW_YEAR as u32 + 1).unwrap();
        rtc.advance(NEW_YEAR + 1);
        assert!(!rtc.take_edge());
        assert_eq!(read(&mut rtc, NEW_YEAR + 1, Register::RawInterrupt), 1);
        assert_eq!(read(&mut rtc, NEW_YEAR + 1, Register::MaskedInterrupt), 0);
        rtc.write(NEW_YEAR + 1, Register::InterruptMask, 1).unwrap();
        assert!(rtc.take_edge());
    }

    #[test]
    fn a_match_waits_for_the_host_clock_that_was_set_back() {
        let mut rtc = Rtc::new(NEW_YEAR);
        rtc.write(NEW_YEAR, Register::InterruptMask, 1).unwrap();
        rtc.write(NEW_YEAR, Register::Match, NEW_YEAR as u32 + 10).unwrap();
        rtc.advance(NEW_YEAR - 3600);
        assert!(!rtc.take_edge());
        assert_eq!(rtc.deadline(), Some(NEW_YEAR + 10));
    }

    #[test]
    fn registers_of_one_direction_refuse_the_other() {
        let mut rtc = Rtc::new(NEW_YEAR);
        assert_eq!(rtc.read(NEW_YEAR, Register::InterruptClear), Err(AccessError::Direction));
        for register in
            [Register::Data, Register::RawInterrupt, Register::MaskedInterrupt, Register::Id(0x31)]
        {
            assert_eq!(rtc.write(NEW_YEAR, register, 1), Err(AccessError::Direction), "{register:?}");
        }
    }

    proptest! {
        #[test]
        fn the_next_match_is_always_ahead_and_no_more_than_a_period(
            start in any::<u64>(),
            steps in prop::collection::vec((any::<u64>(), 0..0x20_u64, any::<u32>()), 0..100),
        ) {
            let mut rtc = Rtc::new(start);
            for (now, offset, value) in steps {
                if let Some(register) = Register::at(offset & !3) {
                    let _ = rtc.write(now, register, value);
                    let _ = rtc.read(now, register);
                }
                rtc.advance(now);
                prop_assert!(rtc.next_match > now || now == u64::MAX);
                if let Some(deadline) = rtc.deadline().filter(|&at| at < u64::MAX) {
                    prop_assert_eq!(rtc.counter(deadline), rtc.match_value);
                }
            }
        }
    }
}
