//! Looking out for requests for a moment before a worker sleeps.
//!
//! A driver that has many requests in flight makes the next ones available soon after some are completed: sooner than
//! a worker can go to sleep and be woken, which costs the driver a kick and both sides microseconds. Looking at the
//! ring for that long instead costs a thread little. Where it is in vain it is soon hardly done any more, and a queue
//! that is idle is not looked at.

use std::num::NonZero;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// Longest look-out: about what a sleep and a wake-up cost, so that one in vain at most doubles that.
const LONGEST: Duration = Duration::from_micros(10);
/// Looks between two readings of the clock.
const UNTIMED: u32 = 16;
/// Most occasions that are let pass between two look-outs in vain.
const MOST_PASSED: u32 = 63;

/// Decides when to look out, by how it went before.
#[derive(Debug)]
pub(crate) struct LookOut {
    /// On a single CPU nobody can bring anything meanwhile.
    possible: bool,
    /// Occasions to let pass after the last look-out, and those that are still to pass.
    interval: u32,
    left: u32,
}

impl LookOut {
    /// For a thread that may run on the CPUs on which the caller may.
    pub(crate) fn new() -> Self {
        Self::on(available_parallelism().map_or(1, NonZero::get))
    }

    pub(crate) fn on(cpus: usize) -> Self {
        Self { possible: cpus > 1, interval: 0, left: 0 }
    }

    /// Whether this is an occasion to look out; to be asked once on each.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.left == 0;
        self.left = self.left.saturating_sub(1);
        due && self.possible
    }

    /// Whether somebody else can run meanwhile.
    pub(crate) fn is_possible(&self) -> bool {
        self.possible
    }

    /// Looks until something shows or the time is up; whether something did.
    pub(crate) fn run<E>(&mut self, look: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        let found = look_for(LONGEST, look)?;
        // Not all at once: where it is in vain as often as not, it should stay seldom.
        self.interval = if found { self.interval / 2 } else { (2 * self.interval + 1).min(MOST_PASSED) };
        self.left = self.interval;
        Ok(found)
    }
}

/// Looks for so long until something shows; whether something did.
pub(crate) fn look_for<E>(time: Duration, mut look: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let begun = Instant::now();
    loop {
        for _ in 0..UNTIMED {
            if look()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        if begun.elapsed() >= time {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Look-outs on so many occasions, all in vain or none.
    fn count(look_out: &mut LookOut, occasions: u32, found: bool) -> u32 {
        let mut done = 0;
        for _ in 0..occasions {
            if look_out.is_due() {
                done += 1;
                assert_eq!(look_out.run(|| Ok::<_, ()>(found)), Ok(found));
            }
        }
        done
    }

    #[test]
    fn it_is_done_each_time_while_it_finds_something() {
        let mut look_out = LookOut::on(2);
        assert_eq!(count(&mut look_out, 1000, true), 1000);
    }

    #[test]
    fn in_vain_it_is_soon_done_seldom_until_it_finds_something() {
        let mut look_out = LookOut::on(2);
        let done = count(&mut look_out, 6400, false);
        assert!((100..=106).contains(&done), "{done}");
        // While it finds something, the interval is halved each time.
        assert!(count(&mut look_out, 1000, true) >= 1000 - 3 * MOST_PASSED);
    }

    #[test]
    fn a_single_cpu_is_left_to_the_driver() {
        assert_eq!(count(&mut LookOut::on(1), 1000, true), 0);
    }
}
