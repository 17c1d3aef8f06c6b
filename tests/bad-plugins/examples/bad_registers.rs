//! A device with registers that does one thing wrong.
#![allow(clippy::unwrap_used, reason = "it misbehaves anyway")]

use std::os::fd::IntoRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gvmm_plugin_api::fdt::{ExtraNode, FdtNode, FdtValue};
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// What it does wrong.
    pub struct Options {
        /// The one thing.
        pub how: String = with_default("how", "nothing", OptionKind::Choice(&[
            "nothing", "start-fails", "owns-reg", "no-compatible", "claims-interrupts", "no-window", "wide-value", "panics-unaligned",
            "hangs", "one-at-a-time", "keeps-state", "panics-in-reset", "leaves-thread", "leaves-descriptor",
            "leaves-mapping",
        ])),
    }
}

struct Bad {
    how: String,
    value: AtomicU64,
    busy: AtomicBool,
    lines: Mutex<Vec<Interrupt>>,
}

impl Bad {
    fn is(&self, how: &str) -> bool {
        self.how == how
    }

    /// Panics when another thread is in here.
    fn alone(&self, offset: u64) {
        if !self.is("one-at-a-time") || offset >= 8 {
            return;
        }
        assert!(!self.busy.swap(true, Ordering::AcqRel), "two accesses at once");
        std::thread::sleep(Duration::from_micros(20));
        self.busy.store(false, Ordering::Release);
    }
}

impl MmioDevice for Bad {
    fn layout(&self) -> MmioLayout {
        let windows = if self.is("no-window") { Vec::new() } else { vec![0x1000] };
        MmioLayout { windows, lines: 1 }
    }

    fn node(&self) -> FdtNode {
        let node = FdtNode::new("bad", if self.is("no-compatible") { &[] } else { &["gvmm,bad"] });
        if self.is("owns-reg") { node.with("reg", FdtValue::U64s(vec![0, 0x1000])) } else { node }
    }

    fn nodes_beside(&self) -> Vec<ExtraNode> {
        let keys = ExtraNode::new("keys", &["gvmm,keys"]);
        let key = ExtraNode::new("key", &[]).with("interrupts", FdtValue::U32s(vec![0, 1, 1]));
        if self.is("claims-interrupts") { vec![keys.with_child(key)] } else { Vec::new() }
    }

    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String> {
        if self.is("start-fails") {
            return Err("told to fail".to_owned());
        }
        *self.lines.lock().unwrap() = lines;
        Ok(())
    }

    fn read(&self, _: u32, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.alone(offset);
        let bytes = width.bytes() as u64;
        assert!(!self.is("panics-unaligned") || offset.is_multiple_of(bytes), "not aligned");
        if self.is("hangs") && offset == 0x80 {
            std::thread::sleep(Duration::from_secs(3600));
        }
        match offset {
            0 if self.is("wide-value") => Ok(0x1_2345_6789),
            0 => Ok(self.value.load(Ordering::Relaxed) & (u64::MAX >> (64 - 8 * bytes))),
            _ => Err(AccessError::NoRegister),
        }
    }

    fn write(&self, _: u32, offset: u64, _: Width, value: u64) -> Result<(), AccessError> {
        self.alone(offset);
        if offset != 0 {
            return Err(AccessError::NoRegister);
        }
        self.value.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn reset(&self) {
        assert!(!self.is("panics-in-reset"), "told to panic in reset");
        if !self.is("keeps-state") {
            self.value.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        match self.how.as_str() {
            "leaves-thread" => drop(std::thread::spawn(|| std::thread::sleep(Duration::from_secs(3600)))),
            "leaves-descriptor" => {
                let descriptor: std::os::fd::OwnedFd = Event::new().unwrap().into();
                let _ = descriptor.into_raw_fd();
            }
            "leaves-mapping" => {
                Box::leak(vec![0_u8; 4 << 20].into_boxed_slice());
            }
            _ => {}
        }
    }
}

fn create(options: Options, _: Services) -> Result<Device, String> {
    let (value, busy, lines) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
    Ok(Device::mmio(Bad { how: options.how, value, busy, lines }))
}

export_plugin! {
    id: "org.gvmm.bad.registers",
    name: "bad_registers",
    vendor: "gvmm",
    url: "",
    description: "Does one thing wrong, of one's choice",
    kind: Mmio,
    options: Options,
    create: create,
}
