//! Temperature sensor LM75 (National Semiconductor): four registers behind a pointer.

use crate::temperature::Temperature;

const TEMPERATURE: u8 = 0;
const CONFIGURATION: u8 = 1;
const HYSTERESIS: u8 = 2;
const OVER: u8 = 3;

/// Bits of the configuration that can be set.
const CONFIGURATION_BITS: u8 = 0x1f;
/// Bits of the two limits: nine, in steps of half a degree.
const LIMIT_BITS: u16 = 0xff80;
/// Range of the sensor in thousandths of a degree.
const RANGE: (i32, i32) = (-55_000, 125_000);

/// An LM75. Its output for alarms is not connected.
#[derive(Debug)]
pub(crate) struct Lm75 {
    temperature: Temperature,
    state: State,
}

#[derive(Debug)]
struct State {
    pointer: u8,
    configuration: u8,
    hysteresis: u16,
    over: u16,
}

impl Default for State {
    /// The limits are 75 and 80 degrees.
    fn default() -> Self {
        Self { pointer: 0, configuration: 0, hysteresis: 75 << 8, over: 80 << 8 }
    }
}

impl Lm75 {
    /// A sensor at power-on.
    pub(crate) fn new(temperature: Temperature) -> Self {
        Self { temperature, state: State::default() }
    }

    /// Back to power-on.
    pub(crate) fn reset(&mut self) {
        self.state = State::default();
    }

    /// Takes a message: the pointer, then the content of a register if there is more.
    pub(crate) fn write(&mut self, message: &[u8]) {
        let Some((&pointer, content)) = message.split_first() else { return };
        self.state.pointer = pointer;
        match (pointer, content) {
            (CONFIGURATION, &[value, ..]) => self.state.configuration = value & CONFIGURATION_BITS,
            (HYSTERESIS, &[high, low, ..]) => {
                self.state.hysteresis = u16::from_be_bytes([high, low]) & LIMIT_BITS;
            }
            (OVER, &[high, low, ..]) => self.state.over = u16::from_be_bytes([high, low]) & LIMIT_BITS,
            _ => {}
        }
    }

    /// Fills a message from the register at the pointer; behind its end nobody pulls the data line down. `false` when
    /// there is no temperature to be had.
    pub(crate) fn read(&self, message: &mut [u8]) -> bool {
        let word = match self.state.pointer {
            TEMPERATURE => match self.temperature.now() {
                Some(thousandths) => encode(thousandths).to_be_bytes(),
                None => return false,
            },
            CONFIGURATION => [self.state.configuration, 0xff],
            HYSTERESIS => self.state.hysteresis.to_be_bytes(),
            OVER => self.state.over.to_be_bytes(),
            _ => [0xff; 2],
        };
        message.fill(0xff);
        message.iter_mut().zip(word).for_each(|(byte, value)| *byte = value);
        true
    }
}

/// The temperature register: half degrees in the upper nine bits.
fn encode(thousandths: i32) -> u16 {
    let half_degrees = thousandths.clamp(RANGE.0, RANGE.1).div_euclid(500);
    // From -110 to 250, so that nothing of it is lost.
    (half_degrees << 7) as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use super::*;

    fn sensor() -> Lm75 {
        Lm75::new(Temperature::new(None).unwrap())
    }

    fn register(sensor: &mut Lm75, pointer: u8) -> [u8; 2] {
        sensor.write(&[pointer]);
        let mut word = [0; 2];
        assert!(sensor.read(&mut word));
        word
    }

    #[test]
    fn temperatures_are_those_of_the_data_sheet() {
        for (thousandths, register) in [
            (125_000, 0x7d00),
            (25_000, 0x1900),
            (500, 0x0080),
            (0, 0),
            (-500, 0xff80),
            (-25_000, 0xe700),
            (-55_000, 0xc900),
        ] {
            assert_eq!(encode(thousandths), register, "{thousandths}");
        }
    }

    #[test]
    fn temperatures_outside_of_the_range_are_its_ends() {
        assert_eq!((encode(i32::MAX), encode(i32::MIN)), (0x7d00, 0xc900));
    }

    #[test]
    fn registers_keep_what_they_can_hold_until_a_reset() {
        let mut sensor = sensor();
        sensor.write(&[CONFIGURATION, 0xff]);
        sensor.write(&[HYSTERESIS, 0x14, 0xff]);
        sensor.write(&[OVER, 0x1e, 0x80]);
        sensor.write(&[TEMPERATURE, 1, 2]);
        assert_eq!(register(&mut sensor, CONFIGURATION), [0x1f, 0xff]);
        assert_eq!(register(&mut sensor, HYSTERESIS), [0x14, 0x80]);
        assert_eq!(register(&mut sensor, OVER), [0x1e, 0x80]);
        assert_eq!(register(&mut sensor, TEMPERATURE), [0x19, 0]);
        sensor.reset();
        assert_eq!(register(&mut sensor, OVER), [80, 0]);
    }

    #[test]
    fn there_is_nothing_behind_a_register_and_at_other_pointers() {
        let mut sensor = sensor();
        assert_eq!(register(&mut sensor, 9), [0xff; 2]);
        sensor.write(&[OVER]);
        let mut long = [0; 4];
        assert!(sensor.read(&mut long));
        assert_eq!(long, [80, 0, 0xff, 0xff]);
    }

    #[test]
    fn half_a_limit_is_no_limit() {
        let mut sensor = sensor();
        sensor.write(&[OVER, 1]);
        assert_eq!(register(&mut sensor, OVER), [80, 0]);
        sensor.write(&[]);
        assert_eq!(register(&mut sensor, OVER), [80, 0]);
    }
}
