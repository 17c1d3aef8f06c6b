//! Back to the first state.

use std::sync::Arc;

use gvmm_plugin_api::mmio::{MmioDevice, Width};
use gvmm_plugin_api::virtio::VirtioDevice;

use super::bench::start;
use super::config::read_all;
use super::report::Verdict;
use super::subject::Subject;
use super::work::Plug;

/// A clock may tick between two looks, but not each time.
const ATTEMPTS: usize = 4;
/// Largest offset that is looked at.
const REACH: u64 = 0x1000;

pub(super) fn reset(subject: &Subject) -> Result<Verdict, String> {
    let mut result = Ok(Verdict::Pass);
    for _ in 0..ATTEMPTS {
        result = attempt(subject).map(|()| Verdict::Pass);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn attempt(subject: &Subject) -> Result<(), String> {
    if let Some((host, device)) = subject.mmio()? {
        let _lines = start(&device)?;
        registers(subject, &device)?;
        return host.no_panic();
    }
    let Some((host, device)) = subject.virtio()? else { return Ok(()) };
    configuration(subject, &device)?;
    let plug = Plug::new(device.clone());
    for _ in 0..2 {
        plug.start_all()?;
        plug.stop_all()?;
        device.reset();
    }
    host.no_panic()
}

fn registers(subject: &Subject, device: &Arc<dyn MmioDevice>) -> Result<(), String> {
    let first = snapshot(device);
    let mut random = subject.random();
    for (window, offset) in places(device) {
        let _ = device.write(window, offset, Width::Word, random.next() & 0xffff_ffff);
    }
    for times in ["", " twice"] {
        device.reset();
        let now = snapshot(device);
        let places = places(device).zip(first.iter().zip(&now));
        if let Some(((window, offset), (was, is))) = places.into_iter().find(|(_, (was, is))| was != is) {
            return Err(format!(
                "after a reset{times} the register at offset {offset:#x} of window {window} is {is:#x}, at first it was \
                 {was:#x}"
            ));
        }
    }
    Ok(())
}

/// Where registers are looked for.
fn places(device: &Arc<dyn MmioDevice>) -> impl Iterator<Item = (u32, u64)> + use<> {
    let windows = (0..).zip(device.layout().windows);
    windows
        .flat_map(|(window, size)| (0..(size & !3).min(REACH)).step_by(4).map(move |offset| (window, offset)))
}

fn snapshot(device: &Arc<dyn MmioDevice>) -> Vec<u64> {
    places(device).map(|(window, offset)| device.read(window, offset, Width::Word).unwrap_or(0)).collect()
}

fn configuration(subject: &Subject, device: &Arc<dyn VirtioDevice>) -> Result<(), String> {
    let first = read_all(device);
    let mut random = subject.random();
    for offset in 0..first.len() {
        device.write_config(offset as u32, &random.bytes(1));
    }
    for times in ["", " twice"] {
        device.reset();
        let now = read_all(device);
        if now != first {
            return Err(format!(
                "after a reset{times} configuration space is {now:02x?}, at first it was {first:02x?}"
            ));
        }
    }
    Ok(())
}
