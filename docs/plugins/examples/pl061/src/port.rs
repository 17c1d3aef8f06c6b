//! The eight lines and their interrupts, without a machine around them.

use gvmm_plugin_api::mmio::AccessError;

use crate::registers::Register;

/// State of the controller. Each bit of a field is one line.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Port {
    /// Levels that outside hands give the lines; what is outside is not reset with the controller.
    outside: u8,
    data: u8,
    direction: u8,
    sense: u8,
    both: u8,
    event: u8,
    enable: u8,
    alternate: u8,
    /// Edges that have come and were not cleared.
    edges: u8,
    /// Enabled interrupts at the last [`Port::take_new`].
    known: u8,
}

impl Port {
    /// A controller at power-on.
    pub(crate) fn new(outside: u8) -> Self {
        Self { outside, ..Self::default() }
    }

    /// Back to power-on.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.outside);
    }

    /// Levels of all lines: outputs as the guest drives them, inputs as they are from the outside.
    pub(crate) fn levels(&self) -> u8 {
        (self.data & self.direction) | (self.outside & !self.direction)
    }

    /// Lines that are outputs.
    pub(crate) fn outputs(&self) -> u8 {
        self.direction
    }

    /// Gives a line a level from the outside; it shows as soon as the line is an input.
    pub(crate) fn set_outside(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let changed = (high != (self.outside & bit != 0)) && self.direction & bit == 0;
        self.outside = if high { self.outside | bit } else { self.outside & !bit };
        let wanted = self.both & bit != 0 || high == (self.event & bit != 0);
        if changed && wanted && self.sense & bit == 0 {
            self.edges |= bit;
        }
    }

    /// Interrupts, whether enabled or not: edges that have come, and inputs at the level that interrupts.
    fn raw(&self) -> u8 {
        let level = !(self.outside ^ self.event) & !self.direction;
        (self.edges & !self.sense) | (level & self.sense)
    }

    /// Whether an enabled interrupt has come up since the last call. Lines of the machine are edges: each cause needs
    /// one of its own, also while another is still there.
    pub(crate) fn take_new(&mut self) -> bool {
        let now = self.raw() & self.enable;
        let new = now & !self.known;
        self.known = now;
        new != 0
    }

    /// Reads a register.
    pub(crate) fn read(&self, register: Register) -> Result<u8, AccessError> {
        Ok(match register {
            Register::Data { lines } => self.levels() & lines,
            Register::Direction => self.direction,
            Register::Sense => self.sense,
            Register::BothEdges => self.both,
            Register::Event => self.event,
            Register::Enable => self.enable,
            Register::RawStatus => self.raw(),
            Register::MaskedStatus => self.raw() & self.enable,
            Register::Alternate => self.alternate,
            Register::Id(value) => value,
            Register::Clear => return Err(AccessError::Direction),
        })
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, register: Register, value: u8) -> Result<(), AccessError> {
        match register {
            // What is written to an input is lost (Arm DDI 0190B, 3.3.1).
            Register::Data { lines } => {
                let lines = lines & self.direction;
                self.data = (self.data & !lines) | (value & lines);
            }
            Register::Direction => self.direction = value,
            Register::Sense => self.sense = value,
            Register::BothEdges => self.both = value,
            Register::Event => self.event = value,
            Register::Enable => self.enable = value,
            Register::Clear => self.edges &= !value,
            Register::Alternate => self.alternate = value,
            Register::RawStatus | Register::MaskedStatus | Register::Id(_) => {
                return Err(AccessError::Direction);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use super::*;

    const ALL: Register = Register::Data { lines: 0xff };

    fn port(settings: &[(Register, u8)]) -> Port {
        let mut port = Port::new(0);
        for (register, value) in settings {
            port.write(*register, *value).unwrap();
        }
        port
    }

    #[test]
    fn outputs_take_what_is_written_and_inputs_do_not() {
        let mut port = port(&[(Register::Direction, 0x0f), (ALL, 0xff)]);
        assert_eq!(port.read(ALL), Ok(0x0f));
        port.write(Register::Data { lines: 0x01 }, 0).unwrap();
        assert_eq!(port.read(ALL), Ok(0x0e));
        port.write(Register::Direction, 0xff).unwrap();
        assert_eq!(port.read(ALL), Ok(0x0e));
    }

    #[test]
    fn a_read_shows_the_lines_that_the_address_selects() {
        let mut port = Port::new(0xa5);
        assert_eq!(port.read(Register::Data { lines: 0x0f }), Ok(0x05));
        port.set_outside(1, true);
        assert_eq!(port.read(ALL), Ok(0xa7));
    }

    #[test]
    fn the_edge_that_was_asked_for_interrupts_until_it_is_cleared() {
        let mut port = port(&[(Register::Event, 0x08), (Register::Enable, 0xff)]);
        port.set_outside(3, true);
        assert!(port.take_new() && !port.take_new());
        assert_eq!(port.read(Register::MaskedStatus), Ok(0x08));
        port.write(Register::Clear, 0x08).unwrap();
        port.set_outside(3, false);
        assert!(!port.take_new());
        assert_eq!(port.read(Register::RawStatus), Ok(0));
        // GPIOIEV is clear for this one.
        port.set_outside(4, true);
        assert!(!port.take_new());
        port.set_outside(4, false);
        assert!(port.take_new());
    }

    #[test]
    fn both_edges_interrupt() {
        let mut port = port(&[(Register::BothEdges, 1), (Register::Enable, 1)]);
        for high in [true, false] {
            port.set_outside(0, high);
            assert!(port.take_new());
            port.write(Register::Clear, 1).unwrap();
            assert!(!port.take_new());
        }
    }

    #[test]
    fn a_second_line_interrupts_while_the_first_is_not_cleared() {
        let mut port = port(&[(Register::BothEdges, 3), (Register::Enable, 3)]);
        port.set_outside(0, true);
        assert!(port.take_new());
        port.set_outside(1, true);
        assert!(port.take_new());
    }

    #[test]
    fn a_level_interrupts_again_when_it_is_enabled_again() {
        let mut port = port(&[(Register::Sense, 1), (Register::Event, 1), (Register::Enable, 1)]);
        port.set_outside(0, true);
        assert!(port.take_new());
        port.write(Register::Clear, 1).unwrap();
        assert_eq!(port.read(Register::RawStatus), Ok(1));
        port.write(Register::Enable, 0).unwrap();
        assert!(!port.take_new());
        port.write(Register::Enable, 1).unwrap();
        assert!(port.take_new());
        port.set_outside(0, false);
        assert_eq!(port.read(Register::RawStatus), Ok(0));
    }

    #[test]
    fn an_edge_that_is_not_enabled_waits() {
        let mut port = port(&[(Register::Event, 1)]);
        port.set_outside(0, true);
        assert!(!port.take_new());
        assert_eq!((port.read(Register::RawStatus), port.read(Register::MaskedStatus)), (Ok(1), Ok(0)));
        port.write(Register::Enable, 1).unwrap();
        assert!(port.take_new());
    }

    #[test]
    fn a_reset_leaves_what_is_outside() {
        let mut port = port(&[(Register::Direction, 0xf0), (ALL, 0xf0), (Register::Enable, 0xff)]);
        port.set_outside(0, true);
        port.reset();
        assert_eq!((port.read(ALL), port.outputs(), port.read(Register::Enable)), (Ok(1), 0, Ok(0)));
    }

    #[test]
    fn registers_have_their_direction() {
        let mut port = Port::new(0);
        assert_eq!(port.read(Register::Clear), Err(AccessError::Direction));
        for register in [Register::RawStatus, Register::MaskedStatus, Register::Id(0x61)] {
            assert_eq!(port.write(register, 1), Err(AccessError::Direction));
        }
    }
}
