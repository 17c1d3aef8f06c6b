//! Back to the first state.

use std::sync::Arc;

use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::virtio::VirtioDevice;

use super::config::read_all;
use super::registers_of::{Area, RegisterDevice};
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
    if let Some((host, device)) = subject.registers()? {
        let _started = device.start()?;
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

fn registers(subject: &Subject, device: &RegisterDevice) -> Result<(), String> {
    let first = snapshot(device);
    let mut random = subject.random();
    for (area, offset) in places(device) {
        write(device, area, offset, random.next() as u32);
    }
    for times in ["", " twice"] {
        device.reset();
        let now = snapshot(device);
        let places = places(device).zip(first.iter().zip(&now));
        if let Some(((area, offset), (was, is))) = places.into_iter().find(|(_, (was, is))| was != is) {
            return Err(format!(
                "after a reset{times} the register at offset {offset:#x} of {area} is {is:#x}, at first it was {was:#x}"
            ));
        }
    }
    Ok(())
}

/// Where registers are looked for.
fn places(device: &RegisterDevice) -> impl Iterator<Item = (Area, u64)> + use<> {
    let of = |area: Area| (0..(area.size & !3).min(REACH)).step_by(4).map(move |offset| (area, offset));
    device.areas().into_iter().flat_map(of)
}

fn snapshot(device: &RegisterDevice) -> Vec<u64> {
    places(device).map(|(area, offset)| read(device, area, offset)).collect()
}

/// A word, or four bytes where the device takes no words.
fn read(device: &RegisterDevice, area: Area, offset: u64) -> u64 {
    match device.read(area, offset, Width::Word) {
        Err(AccessError::Width) => {
            let byte = |at| device.read(area, offset + at, Width::Byte).unwrap_or(0);
            (0..4).fold(0, |word, at| word | byte(at) << (8 * at))
        }
        read => read.unwrap_or(0),
    }
}

fn write(device: &RegisterDevice, area: Area, offset: u64, value: u32) {
    // Whether a write is refused is the business of other tests.
    if device.write(area, offset, Width::Word, value.into()) == Err(AccessError::Width) {
        for (at, byte) in (0..).zip(value.to_le_bytes()) {
            let _ = device.write(area, offset + at, Width::Byte, byte.into());
        }
    }
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
