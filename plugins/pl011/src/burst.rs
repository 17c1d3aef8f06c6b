//! How long output waits for more.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Output is sent when none has been added for so long: more than a guest takes between two bytes, less than people
/// notice.
const QUIET: Duration = Duration::from_millis(4);
/// Output waits no longer than this: a guest that fills the FIFO meanwhile writes the rest by interrupts, which costs
/// it half the register accesses.
const LONGEST: Duration = Duration::from_millis(100);

/// Output that waits for more.
#[derive(Debug)]
pub(crate) struct Burst {
    started: Instant,
    grew: Instant,
    len: usize,
}

impl Burst {
    /// A burst that has just begun with so many bytes.
    pub(crate) fn new(now: Instant, len: usize) -> Self {
        Self { started: now, grew: now, len }
    }

    /// Notes how many bytes there are; for how long they wait yet.
    pub(crate) fn wait(&mut self, now: Instant, len: usize) -> Duration {
        if self.len != len {
            (self.grew, self.len) = (now, len);
        }
        (self.grew + QUIET).min(self.started + LONGEST).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_waits_as_long_as_it_grows_but_not_forever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut burst = Burst::new(start, 1);
        for i in 1..25 {
            assert!(!burst.wait(at(4 * i), 1 + i as usize).is_zero());
        }
        assert!(burst.wait(at(100), 26).is_zero());
    }

    #[test]
    fn output_that_no_longer_grows_is_due() {
        let start = Instant::now();
        let mut burst = Burst::new(start, 1);
        assert_eq!(burst.wait(start, 1), QUIET);
        assert_eq!(burst.wait(start + QUIET / 2, 1), QUIET / 2);
        assert!(burst.wait(start + QUIET, 1).is_zero());
    }
}
