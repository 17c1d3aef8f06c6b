//! Holding an interrupt back for a moment, so that one tells of several requests.
//!
//! A driver whose program has several threads makes a request for each, one soon after the other. A disk that answers at
//! once interrupts it after every one of them, and the guest's CPU then spends most of its time on kicks and interrupts.
//! If the device waits for the next request first, one kick and one interrupt do for all. Where the driver waits for the
//! answer, though, holding it back is time lost. Nothing in the queue tells these cases apart, so both ways are timed
//! now and then, and the quicker one is used for a while.

use std::time::{Duration, Instant};

/// Requests over which a way is timed.
const BLOCK: u32 = 256;
/// Blocks in the quicker way until the other is timed again; also most blocks between two attempts that failed.
const BLOCKS: u32 = 64;
/// Holding back has to be quicker by this much.
const WORTH: f64 = 0.9;
/// Batches of a single request, held back in vain, after which it is no use to go on.
const VAIN: u32 = 4;
/// Most requests of a batch.
const MOST: u16 = 16;
/// Batches after which more requests than usual are waited for.
const PROBE: u32 = 8;
/// Longest wait for another request. It is at most half of what a request takes otherwise.
const LONGEST: Duration = Duration::from_micros(200);
/// A pause after which the driver's load is taken for another one.
const IDLE: Duration = Duration::from_millis(5);

/// Decides how many requests to wait for before an interrupt.
#[derive(Debug)]
pub(crate) struct Gather {
    held: bool,
    /// Blocks to go in this way, and in the plain way after the next attempt that fails.
    left: u32,
    pause: u32,
    block: Block,
    /// Seconds that a request took in the plain way; none before a block was timed.
    plain: Option<f64>,
    /// Requests that a batch is expected to have, and batches since more were waited for.
    expected: u16,
    batches: u32,
    vain: u32,
    last: Option<Instant>,
}

/// What was timed so far.
#[derive(Debug, Default)]
struct Block {
    requests: u32,
    time: Duration,
}

impl Gather {
    /// Holds nothing back so far.
    pub(crate) fn new() -> Self {
        let block = Block::default();
        Self {
            held: false,
            left: 1,
            pause: 1,
            block,
            plain: None,
            expected: MOST,
            batches: 0,
            vain: 0,
            last: None,
        }
    }

    /// Holds back what it can from the beginning.
    #[cfg(test)]
    pub(crate) fn holding() -> Self {
        let mut gather = Self { plain: Some(1.0), ..Self::new() };
        gather.begin(true, BLOCKS);
        gather
    }

    /// How long to wait for another request when so many have been completed; `None` to interrupt the driver now.
    pub(crate) fn wait(&self, completed: u16) -> Option<Duration> {
        let plain = self.plain.filter(|_| self.held && (1..self.expected).contains(&completed))?;
        Some(Duration::from_secs_f64(plain / 2.0).min(LONGEST))
    }

    /// No request came after so many.
    pub(crate) fn in_vain(&mut self, completed: u16) {
        self.expected = completed;
        self.vain = if completed == 1 { self.vain + 1 } else { 0 };
        if self.vain >= VAIN {
            self.give_up();
        }
    }

    /// The driver is interrupted at a moment for so many requests.
    pub(crate) fn interrupted(&mut self, completed: u16, now: Instant) {
        let since = self.last.replace(now).map(|last| now.saturating_duration_since(last));
        let Some(since) = since.filter(|since| *since < IDLE) else {
            return self.begin(false, 1);
        };
        self.batches += 1;
        if self.batches.is_multiple_of(PROBE) {
            self.expected = MOST;
        }
        self.block.requests += u32::from(completed);
        self.block.time += since;
        if self.block.requests >= BLOCK {
            let block = std::mem::take(&mut self.block);
            self.timed(block.time.as_secs_f64() / f64::from(block.requests));
        }
    }

    /// A request took so many seconds over a block.
    fn timed(&mut self, seconds: f64) {
        self.left = self.left.saturating_sub(1);
        match self.plain {
            Some(plain) if self.held && seconds > plain * WORTH => self.give_up(),
            // The plain way is timed anew, and then compared at once.
            Some(_) if self.held && self.left == 0 => {
                self.pause = 1;
                self.begin(false, 1);
            }
            _ if self.held => {}
            _ => {
                self.plain = Some(seconds);
                if self.left == 0 {
                    // A first block tells whether to stay.
                    self.begin(true, BLOCKS);
                }
            }
        }
    }

    /// The plain way is the quicker one.
    fn give_up(&mut self) {
        self.pause = (2 * self.pause).min(BLOCKS);
        self.begin(false, self.pause);
    }

    fn begin(&mut self, held: bool, blocks: u32) {
        (self.held, self.left, self.block) = (held, blocks, Block::default());
        (self.expected, self.vain) = (MOST, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver with some threads, of which each makes its next request when it has been interrupted for the last.
    struct Driver {
        threads: u16,
        /// Between two requests of different threads.
        apart: Duration,
        /// From an interrupt to the first request after it.
        turn: Duration,
        now: Instant,
        requests: u32,
    }

    impl Driver {
        fn new(threads: u16, apart: u64, turn: u64) -> Self {
            let (apart, turn) = (Duration::from_micros(apart), Duration::from_micros(turn));
            Self { threads, apart, turn, now: Instant::now(), requests: 0 }
        }

        /// Serves a batch; how many requests it had.
        fn batch(&mut self, gather: &mut Gather) -> u16 {
            let mut completed = 1;
            while let Some(wait) = gather.wait(completed) {
                if completed == self.threads || self.apart > wait {
                    self.now += wait;
                    gather.in_vain(completed);
                    break;
                }
                self.now += self.apart;
                completed += 1;
            }
            self.now += self.turn;
            gather.interrupted(completed, self.now);
            self.requests += u32::from(completed);
            completed
        }

        /// Microseconds that a request takes, over many.
        fn cost(&mut self, gather: &mut Gather) -> f64 {
            let (begun, before) = (self.now, self.requests);
            while self.requests < before + 100 * BLOCK {
                self.batch(gather);
            }
            (self.now - begun).as_secs_f64() * 1e6 / f64::from(self.requests - before)
        }
    }

    #[test]
    fn the_requests_of_many_threads_get_one_interrupt() {
        let (mut driver, mut gather) = (Driver::new(8, 5, 20), Gather::new());
        let cost = driver.cost(&mut gather);
        // At best eight requests in 7 * 5 + 20 microseconds; one by one 20 each.
        assert!((6.8..9.0).contains(&cost), "{cost}");
    }

    #[test]
    fn a_driver_that_waits_for_each_answer_has_it_at_once() {
        let (mut driver, mut gather) = (Driver::new(1, 5, 20), Gather::new());
        let cost = driver.cost(&mut gather);
        assert!((20.0..20.5).contains(&cost), "{cost}");
    }

    #[test]
    fn what_makes_it_no_quicker_is_left() {
        // Threads on CPUs of their own: another request comes soon, and each loses by waiting for it.
        let (mut gather, mut now) = (Gather::new(), Instant::now());
        let (mut held, mut plain) = (0, 0);
        for _ in 0..1000 * BLOCK {
            if gather.wait(1).is_some() {
                held += 1;
                now += Duration::from_micros(22);
                gather.interrupted(2, now);
            } else {
                plain += 1;
                now += Duration::from_micros(10);
                gather.interrupted(1, now);
            }
        }
        assert!(held > 0 && held < plain / 50, "{held} of {plain}");
    }

    #[test]
    fn a_pause_ends_it() {
        let (mut driver, mut gather) = (Driver::new(8, 5, 20), Gather::new());
        driver.cost(&mut gather);
        assert_eq!(driver.batch(&mut gather), 8);
        driver.now += IDLE;
        driver.batch(&mut gather);
        assert_eq!(driver.batch(&mut gather), 1);
    }

    #[test]
    fn fewer_threads_are_not_waited_for_any_more() {
        let (mut driver, mut gather) = (Driver::new(8, 5, 20), Gather::new());
        driver.cost(&mut gather);
        driver.threads = 1;
        let cost = driver.cost(&mut gather);
        assert!((20.0..21.0).contains(&cost), "{cost}");
    }
}
