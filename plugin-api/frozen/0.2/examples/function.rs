//! A PCI device with one register that keeps what is written to it, and interrupts when it is.

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use gvmm_plugin_api::abi_stable::library::LibHeader;
use gvmm_plugin_api::abi_stable::sabi_trait::TD_Opaque;
use gvmm_plugin_api::abi_stable::std_types::{RArc, RBox, ROption, RResult, RStr, RString, RVec, Tuple2};
use gvmm_plugin_api::*;

const TEXT: &str = r#"{"api":[0,2],"id":"org.gvmm.frozen.function","name":"function","version":"1.0.0","vendor":"gvmm","url":"","description":"Keeps a value on PCI","license":"MIT","kind":"pci","requires":[],"syscalls":[],"options":[{"name":"value","help":"At first.","default":"7","type":"integer","min":0,"max":100}]}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};

struct Kept {
    value: AtomicU64,
    host: RawHostArc,
    interrupts: OnceLock<RawInterrupts>,
}

#[derive(Clone)]
struct Shared(std::sync::Arc<Kept>);

impl RawPci for Shared {
    fn layout(&self) -> RResult<RawPciLayout, RString> {
        let bars = vec![RawBar { index: 1, size: 0x1000 }, RawBar { index: 2, size: 16 }];
        let capability = RawCapability { id: 9, body: vec![4, 5].into(), writable: vec![0, 1].into() };
        RResult::ROk(RawPciLayout {
            vendor: 1,
            device: 2,
            subsystem_vendor: 3,
            subsystem: 4,
            class: 0x05_0607,
            revision: 8,
            line: true,
            vectors: 2,
            bars: bars.into(),
            capabilities: vec![capability].into(),
        })
    }

    fn start(&self, interrupts: RawInterrupts) -> RResult<(), RString> {
        match self.0.interrupts.set(interrupts) {
            Ok(()) => RResult::ROk(()),
            Err(_) => RResult::RErr("started twice".into()),
        }
    }

    fn read(&self, bar: u8, offset: u64, width: u8) -> RawRead {
        match (bar, offset, width) {
            (2, 8, 4) => RawRead { value: self.0.value.load(Ordering::Relaxed), status: 0 },
            (2, 8, _) => RawRead { value: 0, status: 2 },
            _ => RawRead { value: 0, status: 1 },
        }
    }

    fn write(&self, _bar: u8, _offset: u64, _width: u8, value: u64) -> u32 {
        self.0.host.log(2, "kept".into(), "a value was written".into());
        self.0.value.store(value, Ordering::Relaxed);
        if let Some(interrupts) = self.0.interrupts.get() {
            let messages = interrupts.messages.load(Ordering::Acquire);
            signal(if messages { interrupts.vectors[1] } else { interrupts.line });
        }
        0
    }
}

/// Adds 1 to an eventfd.
fn signal(fd: i32) {
    // SAFETY: the host gave the descriptor away for good.
    let mut event = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let _ = event.write(&1_u64.to_ne_bytes());
}

impl RawDevice for Shared {
    fn reset(&self) -> ROption<RString> {
        self.0.value.store(0, Ordering::Relaxed);
        ROption::RNone
    }

    fn metrics(&self) -> RVec<Tuple2<RString, u64>> {
        vec![Tuple2("value".into(), self.0.value.load(Ordering::Relaxed))].into()
    }

    fn extension(&self, id: RStr<'_>) -> ROption<Extension> {
        if id != PCI {
            return ROption::RNone;
        }
        ROption::RSome(Extension::wrap(RawPci_TO::from_ptr(RArc::new(self.clone()), TD_Opaque)))
    }
}

extern "C" fn descriptor() -> RStr<'static> {
    TEXT.into()
}

extern "C" fn init(_: u8) {}

extern "C" fn create(options: OptionList, host: RawHostArc) -> Created {
    let value = options.iter().find(|pair| pair.0 == "value").and_then(|pair| pair.1.parse().ok());
    let (value, interrupts) = (AtomicU64::new(value.unwrap_or(0)), OnceLock::new());
    let device = Shared(std::sync::Arc::new(Kept { value, host, interrupts }));
    RResult::ROk(RawDevice_TO::from_ptr(RBox::new(device), TD_Opaque))
}

extern "C" fn root() -> Loaded {
    load(PluginRoot { descriptor, init, create })
}

#[used]
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
// SAFETY: `root` passes on what `load` returns.
static HEADER: LibHeader = unsafe { header(root) };
