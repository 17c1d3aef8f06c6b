//! Nothing of a device outlives it.

use std::fs;
use std::time::{Duration, Instant};

use gvmm_plugin_api::host::Instance;
use gvmm_plugin_api::virtio::QueueState;

use super::registers;
use super::registers_of::RegisterDevice;
use super::report::Verdict;
use super::subject::Subject;
use super::work::Plug;

/// Devices after which stacks and heaps have the size that they keep.
const WARM_UP: usize = 4;
/// Devices that are counted.
const ROUNDS: usize = 8;
/// How long a thread that was joined may still be listed.
const SETTLE: Duration = Duration::from_secs(10);
/// What a device gets to begin its work.
const WORK: Duration = Duration::from_millis(20);

/// What the process has.
struct Counts {
    threads: usize,
    descriptors: usize,
    /// Bytes of address space.
    mapped: u64,
}

impl Counts {
    fn now() -> Result<Self, String> {
        let entries = |folder: &str| {
            let entries = fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
            Ok::<_, String>(entries.count())
        };
        let maps = fs::read_to_string("/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
        let mapped = maps.lines().filter_map(size).sum();
        Ok(Self { threads: entries("/proc/self/task")?, descriptors: entries("/proc/self/fd")?, mapped })
    }
}

/// Size of a mapping, from its line (proc_pid_maps(5)).
fn size(line: &str) -> Option<u64> {
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    number(to)?.checked_sub(number(from)?)
}

pub(super) fn leaks(subject: &Subject) -> Result<Verdict, String> {
    for _ in 0..WARM_UP {
        life(subject)?;
    }
    let before = steady()?;
    let mut mapped = vec![before.mapped];
    for _ in 0..ROUNDS {
        life(subject)?;
        settle(&before, WORK)?;
        mapped.push(Counts::now()?.mapped);
    }
    settle(&before, SETTLE)?;
    let after = Counts::now()?;
    let left = |count: usize| format!("{count} after {ROUNDS} devices were made, used and dropped");
    if after.threads > before.threads {
        return Err(format!("threads are left: {}", left(after.threads - before.threads)));
    }
    if after.descriptors > before.descriptors {
        return Err(format!("file descriptors are left: {}", left(after.descriptors - before.descriptors)));
    }
    // A heap grows now and then, a leak each time.
    if mapped.is_sorted_by(|a, b| a < b) {
        let bytes = after.mapped.saturating_sub(before.mapped);
        return Err(format!("mappings are left: {bytes} bytes more after {ROUNDS} devices"));
    }
    Ok(Verdict::Pass)
}

/// What the process has once it does not change any more.
fn steady() -> Result<Counts, String> {
    let begun = Instant::now();
    let mut last = Counts::now()?;
    loop {
        std::thread::sleep(WORK);
        let now = Counts::now()?;
        if (now.threads, now.descriptors) == (last.threads, last.descriptors) || begun.elapsed() > SETTLE {
            return Ok(now);
        }
        last = now;
    }
}

/// Waits until threads that have ended are gone, and the far ends of connections with them.
fn settle(before: &Counts, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let left = |now: Counts| now.threads > before.threads || now.descriptors > before.descriptors;
    while left(Counts::now()?) && begun.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A device from its making to its end, with some work between.
fn life(subject: &Subject) -> Result<(), String> {
    let made = subject.device()?;
    if let Some(device) = RegisterDevice::of(&made.device) {
        let _started = device.start()?;
        registers::some(&device, subject.random().next());
        device.reset();
        return Ok(());
    }
    let Instance::Virtio(device) = &made.device else { return Ok(()) };
    let plug = Plug::new(device.clone());
    let queues = plug.load(&mut subject.random());
    plug.start_loaded(&queues, &vec![QueueState::default(); queues.len()])?;
    std::thread::sleep(WORK);
    // A device that gave up on the requests has no queue to stop.
    for queue in &queues {
        device.stop_queue(queue.index);
    }
    device.reset();
    Ok(())
}
