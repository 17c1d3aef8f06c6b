//! Dispatch of register accesses in the trap window to devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gvmm_plugin_api::mmio::{AccessError, MmioDevice, Width};

/// Something with registers at a range of guest addresses.
pub trait Registers: Send + Sync {
    /// Reads a register; `offset + width` lies within the range.
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError>;

    /// Writes a register; `offset + width` lies within the range.
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError>;
}

/// One register window of a plugin's MMIO device.
pub struct DeviceWindow {
    /// The device.
    pub device: Arc<dyn MmioDevice>,
    /// Which of its windows.
    pub window: u32,
}

impl Registers for DeviceWindow {
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.device.read(self.window, offset, width)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.device.write(self.window, offset, width, value)
    }
}

/// Refused accesses of one range that are logged; the guest can cause any number.
const LOGGED_REFUSALS: u32 = 8;

struct Range {
    base: u64,
    end: u64,
    device: String,
    registers: Arc<dyn Registers>,
    reads: AtomicU64,
    writes: AtomicU64,
    refusals: AtomicU32,
}

impl Range {
    fn refused(&self, error: AccessError, what: &str, address: u64, width: usize) {
        let count = self.refusals.fetch_add(1, Ordering::Relaxed);
        if count < LOGGED_REFUSALS {
            let last = if count + 1 == LOGGED_REFUSALS { " (further ones are not logged)" } else { "" };
            let offset = address - self.base;
            tracing::warn!(
                "device {}: guest {what} of {width} bytes at offset {offset:#x} refused: {error}{last}",
                self.device
            );
        }
    }
}

/// Register accesses of one device, for statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessCount {
    /// Id of the device.
    pub device: String,
    /// Reads that reached user space.
    pub reads: u64,
    /// Writes that reached user space.
    pub writes: u64,
}

/// All ranges of the machine.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
    unmapped: AtomicU32,
}

impl Bus {
    /// Puts registers at a range that overlaps no other; the machine's address map sees to that.
    pub fn insert(&mut self, base: u64, size: u64, device: &str, registers: Arc<dyn Registers>) {
        let at = self.ranges.partition_point(|range| range.base < base);
        let range = Range {
            base,
            end: base + size,
            device: device.to_owned(),
            registers,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            refusals: AtomicU32::new(0),
        };
        debug_assert!(at == 0 || self.ranges[at - 1].end <= base);
        debug_assert!(self.ranges.get(at).is_none_or(|next| range.end <= next.base));
        self.ranges.insert(at, range);
    }

    /// Serves a read: fills `data`, with zeroes where nothing answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((range, width)) = self.find(address, data.len()) else {
            return self.nothing_there("read", address, data.len());
        };
        range.reads.fetch_add(1, Ordering::Relaxed);
        match range.registers.read(address - range.base, width) {
            Ok(value) => data.copy_from_slice(&value.to_le_bytes()[..width.bytes()]),
            Err(error) => range.refused(error, "read", address, data.len()),
        }
    }

    /// Serves a write; one that nothing takes is dropped.
    pub fn write(&self, address: u64, data: &[u8]) {
        let Some((range, width)) = self.find(address, data.len()) else {
            return self.nothing_there("write", address, data.len());
        };
        range.writes.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [0; 8];
        bytes[..width.bytes()].copy_from_slice(data);
        if let Err(error) = range.registers.write(address - range.base, width, u64::from_le_bytes(bytes)) {
            range.refused(error, "write", address, data.len());
        }
    }

    /// Accesses so far, one entry a range.
    pub fn counts(&self) -> Vec<AccessCount> {
        let count = |range: &Range| AccessCount {
            device: range.device.clone(),
            reads: range.reads.load(Ordering::Relaxed),
            writes: range.writes.load(Ordering::Relaxed),
        };
        self.ranges.iter().map(count).collect()
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Range, Width)> {
        let width = Width::from_bytes(len)?;
        let at = self.ranges.partition_point(|range| range.end <= address);
        let range = self.ranges.get(at)?;
        (address >= range.base && range.end - address >= len as u64).then_some((range, width))
    }

    fn nothing_there(&self, what: &str, address: u64, len: usize) {
        if self.unmapped.fetch_add(1, Ordering::Relaxed) < LOGGED_REFUSALS {
            tracing::warn!("guest {what} of {len} bytes at {address:#x}: no device is there");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize, u64)>>);

    impl Registers for Recorder {
        fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
            if offset == 0x40 { Err(AccessError::NoRegister) } else { Ok(offset << 8 | width.bytes() as u64) }
        }

        fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
            self.0.lock().unwrap().push((offset, width.bytes(), value));
            Ok(())
        }
    }

    fn bus() -> (Bus, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.insert(0x3000, 0x1000, "b", recorder.clone());
        bus.insert(0x1000, 0x1000, "a", recorder.clone());
        (bus, recorder)
    }

    fn read(bus: &Bus, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn accesses_reach_the_range_that_holds_all_of_them() {
        let (bus, recorder) = bus();
        assert_eq!(read(&bus, 0x1012, 4), [4, 0x12, 0, 0]);
        bus.write(0x3ff8, &0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(recorder.0.lock().unwrap()[..], [(0xff8, 8, 0x1122_3344_5566_7788)]);
        let counts = bus.counts();
        assert_eq!((counts[0].device.as_str(), counts[0].reads, counts[1].writes), ("a", 1, 1));
    }

    #[test]
    fn what_nothing_answers_reads_as_zero_and_is_dropped() {
        let (bus, recorder) = bus();
        for (address, len) in [(0xfff, 1), (0x1ffd, 4), (0x2000, 8), (0x4000, 1), (u64::MAX, 8), (0x1000, 3)]
        {
            assert_eq!(read(&bus, address, len), vec![0; len], "{address:#x}");
            bus.write(address, &vec![1; len]);
        }
        assert_eq!(read(&bus, 0x1040, 4), [0; 4]);
        assert!(recorder.0.lock().unwrap().is_empty());
    }
}
