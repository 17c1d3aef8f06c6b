//! Registers, from one vCPU and from several.

use std::sync::Arc;

use gvmm_plugin_api::mmio::{MmioDevice, Width};

use super::bench::{Recorder, start};
use super::random::Random;
use super::report::Verdict;
use super::subject::Subject;

/// How far into a window every offset is tried; behind it some are, and the last ones.
const EVERY: u64 = 0x1000;
/// Distance of the offsets behind.
const STEP: u64 = 0x3f1;
/// vCPUs that access registers at once, and accesses of each.
const VCPUS: u64 = 4;
const ACCESSES: u64 = 5000;

pub(super) fn not_for_virtio() -> Verdict {
    Verdict::Skip("a virtio device has no registers of its own".to_owned())
}

pub(super) fn registers(subject: &Subject) -> Result<Verdict, String> {
    let Some((host, device)) = subject.mmio()? else { return Ok(not_for_virtio()) };
    let _lines = start(&device)?;
    let random = &mut subject.random();
    for (window, size) in (0..).zip(device.layout().windows) {
        for offset in offsets(size) {
            for width in Width::ALL.into_iter().filter(|width| offset + width.bytes() as u64 <= size) {
                for value in [0, u64::MAX, random.next()] {
                    // The guest may do without the effect of the access, but not the machine.
                    let _ = device.write(window, offset, width, value & mask(width));
                    read(&device, window, offset, width)?;
                }
            }
        }
        host.no_panic()?;
    }
    alive(&host)
}

/// Reads a register; an error if the value does not fit.
fn read(device: &Arc<dyn MmioDevice>, window: u32, offset: u64, width: Width) -> Result<(), String> {
    match device.read(window, offset, width) {
        Ok(value) if value & !mask(width) != 0 => Err(format!(
            "a read of {} bytes at offset {offset:#x} of window {window} gives {value:#x}, which is wider",
            width.bytes()
        )),
        _ => Ok(()),
    }
}

fn mask(width: Width) -> u64 {
    u64::MAX >> (64 - 8 * width.bytes())
}

fn offsets(size: u64) -> impl Iterator<Item = u64> {
    let behind = (EVERY..size).step_by(STEP as usize);
    (0..size.min(EVERY)).chain(behind).chain(size.saturating_sub(16).max(EVERY)..size)
}

/// Whether the device lives on after all that.
fn alive(host: &Recorder) -> Result<Verdict, String> {
    host.no_panic()?;
    match host.failures().first() {
        Some(failure) => Err(format!("register accesses made the device fail: {failure}")),
        None => Ok(Verdict::Pass),
    }
}

pub(super) fn parallel(subject: &Subject) -> Result<Verdict, String> {
    let Some((host, device)) = subject.mmio()? else { return Ok(not_for_virtio()) };
    let _lines = start(&device)?;
    let sizes = device.layout().windows;
    let seed = subject.random().next();
    std::thread::scope(|scope| {
        for vcpu in 0..VCPUS {
            let (device, sizes) = (&device, &sizes);
            scope.spawn(move || access(device, sizes, &mut Random::new(seed ^ vcpu)));
        }
    });
    alive(&host)
}

/// A few random accesses.
pub(super) fn some(device: &Arc<dyn MmioDevice>, seed: u64) {
    access(device, &device.layout().windows, &mut Random::new(seed));
}

/// Random accesses, most of them where registers are.
fn access(device: &Arc<dyn MmioDevice>, sizes: &[u64], random: &mut Random) {
    for _ in 0..ACCESSES {
        let window = random.below(sizes.len() as u64) as u32;
        let size = sizes[window as usize];
        let reach = if random.below(4) > 0 { size.min(0x40) } else { size };
        let width = Width::ALL[random.below(4) as usize];
        let offset = random.below(reach) & !(width.bytes() as u64 - 1);
        if offset + width.bytes() as u64 > size {
            continue;
        }
        let _ = match random.below(2) {
            0 => device.read(window, offset, width).map(|_| ()),
            _ => device.write(window, offset, width, random.next() & mask(width)),
        };
    }
}
