//! Limits on requests and bytes per second.
//!
//! Each limit is a schedule: every request moves the time at which the next one is due by what it costs. A disk that
//! has been idle may run ahead of its schedule for a moment, so that short bursts go through untouched.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far a disk may run ahead of its schedule.
const BURST: Duration = Duration::from_millis(100);

/// The limits of a disk, shared by its queues.
#[derive(Debug)]
pub(crate) struct Throttle {
    requests: Option<Schedule>,
    bytes: Option<Schedule>,
}

#[derive(Debug)]
struct Schedule {
    per_second: u64,
    due: Mutex<Instant>,
}

impl Throttle {
    /// Limits per second; `None` when there are none.
    pub(crate) fn new(requests: Option<u64>, bytes: Option<u64>) -> Option<Self> {
        let schedule = |per_second: Option<u64>| {
            per_second.map(|per_second| Schedule { per_second, due: Mutex::new(Instant::now()) })
        };
        let throttle = Self { requests: schedule(requests), bytes: schedule(bytes) };
        (requests.is_some() || bytes.is_some()).then_some(throttle)
    }

    /// How long the next request has to wait.
    pub(crate) fn delay(&self, now: Instant) -> Option<Duration> {
        self.schedules().filter_map(|schedule| schedule.delay(now)).max()
    }

    /// Notes that a request moves so many bytes.
    pub(crate) fn charge(&self, now: Instant, bytes: u64) {
        if let Some(requests) = &self.requests {
            requests.charge(now, 1);
        }
        if let Some(limit) = &self.bytes {
            limit.charge(now, bytes);
        }
    }

    fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.requests.iter().chain(&self.bytes)
    }
}

impl Schedule {
    fn delay(&self, now: Instant) -> Option<Duration> {
        let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = due.saturating_duration_since(now);
        ahead.checked_sub(BURST).filter(|delay| !delay.is_zero())
    }

    fn charge(&self, now: Instant, count: u64) {
        let nanoseconds = u128::from(count) * 1_000_000_000 / u128::from(self.per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let start = now.max(*due);
        // A cost beyond what a clock can show is a wait without end all the same.
        *due = start.checked_add(cost).unwrap_or(start + Duration::from_secs(86400));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that get through in so many seconds when there is always a next one.
    fn run(throttle: &Throttle, seconds: u64, bytes: u64) -> u64 {
        let mut now = Instant::now();
        let end = now + Duration::from_secs(seconds);
        let mut done = 0;
        while now < end {
            match throttle.delay(now) {
                Some(delay) => now += delay,
                None => {
                    throttle.charge(now, bytes);
                    done += 1;
                }
            }
        }
        done
    }

    #[test]
    fn requests_and_bytes_keep_to_their_rates() {
        let by_requests = Throttle::new(Some(200), None).unwrap();
        let done = run(&by_requests, 10, 1 << 20);
        assert!((2000..=2025).contains(&done), "{done} requests in 10 s at 200 a second");
        let by_bytes = Throttle::new(None, Some(1 << 20)).unwrap();
        let done = run(&by_bytes, 10, 4096);
        assert!((2560..=2590).contains(&done), "{done} pages in 10 s at 256 a second");
        let by_both = Throttle::new(Some(100), Some(1 << 20)).unwrap();
        let done = run(&by_both, 10, 4096);
        assert!((1000..=1015).contains(&done), "{done} requests in 10 s at 100 a second");
    }

    #[test]
    fn an_idle_disk_saves_no_more_than_a_moment() {
        let throttle = Throttle::new(Some(1000), None).unwrap();
        let later = Instant::now() + Duration::from_secs(3600);
        let mut done = 0;
        while throttle.delay(later).is_none() {
            throttle.charge(later, 0);
            done += 1;
        }
        assert!((100..=102).contains(&done), "{done} requests at once");
    }

    #[test]
    fn absurd_costs_wait_and_do_not_overflow() {
        let throttle = Throttle::new(None, Some(1)).unwrap();
        let now = Instant::now();
        throttle.charge(now, u64::MAX);
        throttle.charge(now, u64::MAX);
        assert!(throttle.delay(now).is_some());
    }
}
