//! A PCI device that does one thing wrong.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use gvmm_plugin_api::mmio::{AccessError, Width};
use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::pci::{Bar, Interrupts, PciDevice, PciLayout};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// What it does wrong.
    pub struct Options {
        /// The one thing.
        pub how: String = with_default("how", "nothing", OptionKind::Choice(&[
            "nothing", "odd-bar", "start-fails", "wide-value", "panics-unaligned", "keeps-state",
        ])),
    }
}

struct Bad {
    how: String,
    value: AtomicU64,
    interrupts: OnceLock<Interrupts>,
}

impl Bad {
    fn is(&self, how: &str) -> bool {
        self.how == how
    }
}

impl PciDevice for Bad {
    fn layout(&self) -> PciLayout {
        let odd = Bar { index: 4, size: if self.is("odd-bar") { 24 } else { 32 } };
        PciLayout {
            bars: vec![Bar { index: 2, size: 16 }, odd],
            vectors: 2,
            line: true,
            ..PciLayout::default()
        }
    }

    fn start(&self, interrupts: Interrupts) -> Result<(), String> {
        if self.is("start-fails") {
            return Err("told to fail".to_owned());
        }
        self.interrupts.set(interrupts).map_err(|_| "started twice".to_owned())
    }

    fn read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        match (bar, offset) {
            (4, 8) if self.is("wide-value") => Ok(0x1_2345_6789),
            (4, 8) => Ok(self.value.load(Ordering::Relaxed) & (u64::MAX >> (64 - 8 * width.bytes()))),
            _ => Err(AccessError::NoRegister),
        }
    }

    fn write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let aligned = offset.is_multiple_of(width.bytes() as u64);
        assert!(aligned || !self.is("panics-unaligned"), "not aligned");
        if (bar, offset) != (4, 8) {
            return Err(AccessError::NoRegister);
        }
        self.value.store(value, Ordering::Relaxed);
        if let Some(interrupts) = self.interrupts.get() {
            interrupts.raise(1);
        }
        Ok(())
    }

    fn reset(&self) {
        if !self.is("keeps-state") {
            self.value.store(0, Ordering::Relaxed);
        }
    }
}

fn create(options: Options, _: Services) -> Result<Device, String> {
    Ok(Device::pci(Bad { how: options.how, value: AtomicU64::new(0), interrupts: OnceLock::new() }))
}

export_plugin! {
    id: "org.gvmm.bad.function",
    name: "bad_function",
    vendor: "gvmm",
    url: "",
    description: "Does one thing wrong on PCI, of one's choice",
    kind: Pci,
    options: Options,
    create: create,
}
