//! Queues start and stop one by one.

use gvmm_plugin_api::virtio::QueueState;

use super::config::not_for_mmio;
use super::report::Verdict;
use super::subject::Subject;
use super::work::Plug;

/// Places in the rings where a queue is started; the last one is before the index wraps.
const PLACES: [u16; 4] = [0, 1, 0x7fff, 0xffff];

pub(super) fn queues(subject: &Subject) -> Result<Verdict, String> {
    let Some((host, device)) = subject.virtio()? else { return Ok(not_for_mmio()) };
    let plug = Plug::new(device.clone());
    for index in plug.queues() {
        if device.stop_queue(index).is_some() {
            return Err(format!("queue {index} was never started, and stopping it says that it was"));
        }
        PLACES.into_iter().try_for_each(|place| stands(&plug, index, place))?;
        started_twice(&plug, index)?;
    }
    out_of_range(&plug, device.traits().queue_sizes.len())?;
    together(&plug)?;
    host.no_panic()?;
    Ok(Verdict::Pass)
}

/// An empty queue that is started at a place is still there when it is stopped.
fn stands(plug: &Plug, index: u16, place: u16) -> Result<(), String> {
    let state = QueueState { next_avail: place, next_used: place };
    let mut driver = plug.driver(index);
    driver.set_available_index(place);
    plug.start(index, &driver, state)?;
    driver.kick();
    let stopped = plug.stop(index)?;
    if stopped != state {
        return Err(format!(
            "queue {index} was started at {place} and stopped without a request: it says that it stands at {} of the \
             available ring and {} of the used ring",
            stopped.next_avail, stopped.next_used
        ));
    }
    match plug.device().stop_queue(index) {
        Some(_) => {
            Err(format!("queue {index} was stopped twice, and both times it says that it was started"))
        }
        None => Ok(()),
    }
}

fn started_twice(plug: &Plug, index: u16) -> Result<(), String> {
    let driver = plug.driver(index);
    plug.start(index, &driver, QueueState::default())?;
    let again = plug.device().start_queue(index, driver.setup(QueueState::default()));
    let panicked = again.as_ref().err().filter(|error| error.contains("panicked"));
    if let Some(error) = panicked {
        return Err(format!("queue {index} was started twice: {error}"));
    }
    if again.is_ok() {
        return Err(format!("queue {index} was started twice, and both succeeded"));
    }
    plug.stop(index).map(|_| ())
}

fn out_of_range(plug: &Plug, count: usize) -> Result<(), String> {
    let driver = plug.driver(0);
    for index in [count, 0xffff] {
        // A device has at most 65535 queues.
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        match plug.device().start_queue(index, driver.setup(QueueState::default())) {
            Ok(()) => return Err(format!("queue {index} was started, but there are {count}")),
            Err(error) if error.contains("panicked") => return Err(format!("queue {index}: {error}")),
            Err(_) => {}
        }
        if plug.device().stop_queue(index).is_some() {
            return Err(format!("queue {index} was stopped, but there are {count}"));
        }
    }
    Ok(())
}

/// All at once, stopped in the other order.
fn together(plug: &Plug) -> Result<(), String> {
    plug.start_all()?;
    let mut indexes: Vec<u16> = plug.queues().collect();
    indexes.reverse();
    indexes.into_iter().try_for_each(|index| plug.stop(index).map(|_| ()))
}
