//! Rings and descriptors that make no sense.

use std::time::Duration;

use gvmm_plugin_api::testing::{QueueDriver, VirtioHarness};
use gvmm_plugin_api::virtio::QueueState;

use super::config::not_for_mmio;
use super::random::Random;
use super::report::Verdict;
use super::subject::Subject;
use super::work::Plug;

/// Drivers that misbehave, one after the other, in each queue.
const ROUNDS: u64 = 60;
/// Every so many rounds the device has time enough to look at everything.
const LONG_ROUND: u64 = 8;
const LONG: Duration = Duration::from_millis(20);
/// Descriptors and heads of a round.
const MANY: u64 = 12;
/// Reach of addresses that lie in guest memory, so that some requests are followed further.
const NEAR: u64 = 1 << 20;

pub(super) fn hostile(subject: &Subject) -> Result<Verdict, String> {
    let Some((host, device)) = subject.virtio()? else { return Ok(not_for_mmio()) };
    let plug = Plug::new(device.clone());
    let mut random = subject.random();
    for round in 0..ROUNDS {
        for index in plug.queues() {
            let mut driver = plug.driver(index);
            spoil(&mut driver, &mut random);
            // A device may well refuse rings that make no sense; what counts is that it goes on.
            if let Err(error) = plug.start(index, &driver, QueueState::default())
                && error.contains("panicked")
            {
                return Err(error);
            }
            driver.kick();
        }
        let short = Duration::from_micros(random.below(1500));
        std::thread::sleep(if round % LONG_ROUND == 0 { LONG } else { short });
        for index in plug.queues() {
            device.stop_queue(index);
        }
        device.reset();
        host.no_panic().map_err(|e| format!("round {round} of bad requests: {e}"))?;
    }
    // After a reset it is a device like any other.
    plug.start_all()?;
    plug.stop_all()?;
    host.no_panic()?;
    Ok(Verdict::Pass)
}

/// Fills rings with what no driver should.
fn spoil(driver: &mut QueueDriver, random: &mut Random) {
    for index in 0..MANY as u16 {
        let address = match random.below(4) {
            0 => random.next(),
            1 => u64::MAX - random.below(64),
            _ => VirtioHarness::DATA + random.below(NEAR),
        };
        let len = if random.below(3) == 0 { random.next() as u32 } else { random.below(600) as u32 };
        // NEXT, WRITE and INDIRECT (virtio 1.2, 2.7.5), and bits that mean nothing.
        let flags = if random.below(8) == 0 { random.next() as u16 } else { random.below(8) as u16 };
        driver.descriptor(index, address, len, flags, random.below(MANY + 2) as u16);
    }
    for _ in 0..random.below(MANY) {
        let far = random.below(6) == 0;
        driver.offer(if far { random.next() as u16 } else { random.below(MANY) as u16 });
    }
    if random.below(5) == 0 {
        driver.set_available_index(random.next() as u16);
    }
    driver.set_available_flags(random.below(2) as u16);
}
