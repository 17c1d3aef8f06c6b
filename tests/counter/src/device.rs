//! The device: one register and one interrupt line.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use gvmm_plugin_api::fdt::FdtNode;
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::metrics::Metric;
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};

/// Offset of the one register, 32 bits wide: a read gives the number of writes so far, modulo 2^32.
pub(crate) const COUNT: u64 = 0;

/// Counts writes.
#[derive(Debug)]
pub(crate) struct Tally {
    step: u64,
    count: AtomicU64,
    line: OnceLock<Interrupt>,
}

impl Tally {
    /// A device that interrupts at every `step`th write.
    pub(crate) fn new(step: u64) -> Self {
        Self { step, count: AtomicU64::new(0), line: OnceLock::new() }
    }
}

impl MmioDevice for Tally {
    fn layout(&self) -> MmioLayout {
        MmioLayout { windows: vec![0x1000], lines: 1 }
    }

    fn node(&self) -> FdtNode {
        FdtNode::new("counter", &["example,counter"])
    }

    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String> {
        let line = lines.into_iter().next().ok_or("the machine gave no interrupt line")?;
        self.line.set(line).map_err(|_| "started twice".to_owned())
    }

    fn read(&self, _window: u32, offset: u64, width: Width) -> Result<u64, AccessError> {
        check(offset, width)?;
        Ok(self.count.load(Ordering::Relaxed) & 0xffff_ffff)
    }

    fn write(&self, _window: u32, offset: u64, width: Width, _value: u64) -> Result<(), AccessError> {
        check(offset, width)?;
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_multiple_of(self.step)
            && let Some(line) = self.line.get()
        {
            line.raise();
        }
        Ok(())
    }

    fn reset(&self) {
        self.count.store(0, Ordering::Relaxed);
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::new("writes", self.count.load(Ordering::Relaxed))]
    }
}

/// Refuses what is no access of the register.
fn check(offset: u64, width: Width) -> Result<(), AccessError> {
    match (offset, width) {
        (COUNT, Width::Word) => Ok(()),
        (COUNT, _) => Err(AccessError::Width),
        _ => Err(AccessError::NoRegister),
    }
}
