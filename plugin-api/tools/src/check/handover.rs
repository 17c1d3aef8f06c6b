//! What one device left, another one goes on with.

use std::time::Duration;

use gvmm_plugin_api::virtio::QueueState;

use super::config::not_for_mmio;
use super::report::Verdict;
use super::requests::gave_up;
use super::subject::Subject;
use super::work::{Loaded, Plug, check_states, collect_all};

/// Each time the first device gets a little more time for its work.
const PAUSES: [u64; 6] = [0, 20, 50, 100, 500, 2000];

pub(super) fn handover(subject: &Subject) -> Result<Verdict, String> {
    let mut random = subject.random();
    for pause in PAUSES {
        let Some((first_host, first)) = subject.virtio()? else { return Ok(not_for_mmio()) };
        let plug = Plug::new(first);
        let mut queues = plug.load(&mut random);
        plug.start_loaded(&queues, &vec![QueueState::default(); queues.len()])?;
        std::thread::sleep(Duration::from_micros(pause));
        let states = plug.stop_loaded(&queues);
        first_host.no_panic()?;
        if let Some(skip) = gave_up(&first_host) {
            return Ok(skip);
        }
        let states = states?;
        collect_once(&mut queues)?;
        check_states(&queues, &states)?;

        // The first device is gone before the second comes: they may want the same file.
        let memory = plug.unplug();
        let Some((second_host, second)) = subject.virtio()? else { return Ok(not_for_mmio()) };
        let plug = Plug::with_memory(second, memory);
        plug.start_loaded(&queues, &states)?;
        let collected = collect_all(&mut queues);
        let states = plug.stop_loaded(&queues);
        second_host.no_panic()?;
        collected.map_err(|e| format!("the second device: {e}"))?;
        if let Some(skip) = gave_up(&second_host) {
            return Ok(skip);
        }
        collect_once(&mut queues)?;
        check_states(&queues, &states?).map_err(|e| format!("the second device: {e}"))?;
    }
    Ok(Verdict::Pass)
}

fn collect_once(queues: &mut [Loaded]) -> Result<(), String> {
    queues.iter_mut().try_for_each(|queue| queue.collect().map(|_| ()))
}
