//! Registers, from one vCPU and from several.

use gvmm_plugin_api::mmio::Width;

use super::bench::Recorder;
use super::random::Random;
use super::registers_of::{Area, RegisterDevice};
use super::report::Verdict;
use super::subject::Subject;

/// How far into a window or BAR every offset is tried; behind it some are, and the last ones.
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
    let Some((host, device)) = subject.registers()? else { return Ok(not_for_virtio()) };
    let started = device.start()?;
    let random = &mut subject.random();
    for messages in [true, false] {
        started.use_messages(messages);
        for area in device.areas() {
            every_offset(&device, area, random)?;
            host.no_panic()?;
        }
    }
    alive(&host)
}

fn every_offset(device: &RegisterDevice, area: Area, random: &mut Random) -> Result<(), String> {
    for offset in offsets(area.size) {
        for width in Width::ALL.into_iter().filter(|width| offset + width.bytes() as u64 <= area.size) {
            for value in [0, u64::MAX, random.next()] {
                // The guest may do without the effect of the access, but not the machine.
                let _ = device.write(area, offset, width, value & mask(width));
                read(device, area, offset, width)?;
            }
        }
    }
    Ok(())
}

/// Reads a register; an error if the value does not fit.
fn read(device: &RegisterDevice, area: Area, offset: u64, width: Width) -> Result<(), String> {
    match device.read(area, offset, width) {
        Ok(value) if value & !mask(width) != 0 => Err(format!(
            "a read of {} bytes at offset {offset:#x} of {area} gives {value:#x}, which is wider",
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
    let Some((host, device)) = subject.registers()? else { return Ok(not_for_virtio()) };
    let _started = device.start()?;
    let areas = device.areas();
    let seed = subject.random().next();
    std::thread::scope(|scope| {
        for vcpu in 0..VCPUS {
            let (device, areas) = (&device, &areas);
            scope.spawn(move || access(device, areas, &mut Random::new(seed ^ vcpu)));
        }
    });
    alive(&host)
}

/// A few random accesses.
pub(super) fn some(device: &RegisterDevice, seed: u64) {
    access(device, &device.areas(), &mut Random::new(seed));
}

/// Random accesses, most of them where registers are.
fn access(device: &RegisterDevice, areas: &[Area], random: &mut Random) {
    for _ in 0..ACCESSES {
        let area = areas[random.below(areas.len() as u64) as usize];
        let reach = if random.below(4) > 0 { area.size.min(0x40) } else { area.size };
        let width = Width::ALL[random.below(4) as usize];
        let offset = random.below(reach) & !(width.bytes() as u64 - 1);
        if offset + width.bytes() as u64 > area.size {
            continue;
        }
        let _ = match random.below(2) {
            0 => device.read(area, offset, width).map(|_| ()),
            _ => device.write(area, offset, width, random.next() & mask(width)),
        };
    }
}
