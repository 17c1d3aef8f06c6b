//! Requests come back once, and memory is written where it may be.

use gvmm_plugin_api::virtio::QueueState;

use super::bench::Recorder;
use super::config::not_for_mmio;
use super::report::Verdict;
use super::subject::Subject;
use super::work::{Loaded, Plug, check_states, collect_all};

/// Each time with other requests.
const ROUNDS: usize = 4;

pub(super) fn requests(subject: &Subject) -> Result<Verdict, String> {
    let mut random = subject.random();
    for _ in 0..ROUNDS {
        let Some((host, device)) = subject.virtio()? else { return Ok(not_for_mmio()) };
        let plug = Plug::new(device);
        let mut queues = plug.load(&mut random);
        let before = plug.data(&queues);
        plug.start_loaded(&queues, &vec![QueueState::default(); queues.len()])?;
        let collected = collect_all(&mut queues);
        let states = plug.stop_loaded(&queues);
        host.no_panic()?;
        collected?;
        // What came back while the queues stopped.
        queues.iter_mut().try_for_each(|queue| queue.collect().map(|_| ()))?;
        check_memory(&before, &plug.data(&queues), &queues)?;
        if let Some(skip) = gave_up(&host) {
            return Ok(skip);
        }
        check_states(&queues, &states?)?;
    }
    Ok(Verdict::Pass)
}

/// The verdict for a device that asks for a reset rather than to answer requests that are none of its type. That is
/// within its rights.
pub(super) fn gave_up(host: &Recorder) -> Option<Verdict> {
    let failure = host.failures().into_iter().next()?;
    Some(Verdict::Skip(format!(
        "the device asks for a reset rather than to answer random requests: {failure}"
    )))
}

fn check_memory(before: &[u8], after: &[u8], queues: &[Loaded]) -> Result<(), String> {
    let mut after = after.to_vec();
    for request in queues.iter().flat_map(|queue| queue.requests.values()) {
        let range = request.writable();
        after[range.clone()].copy_from_slice(&before[range]);
    }
    match before.iter().zip(&after).position(|(was, is)| was != is) {
        Some(at) => Err(format!(
            "guest memory was written outside of the buffers to write: at {at:#x} from the first request"
        )),
        None => Ok(()),
    }
}
