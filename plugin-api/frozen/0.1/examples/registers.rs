//! A device with one register that keeps what is written to it.

use std::sync::atomic::{AtomicU64, Ordering};

use gvmm_plugin_api::abi_stable::library::LibHeader;
use gvmm_plugin_api::abi_stable::sabi_trait::TD_Opaque;
use gvmm_plugin_api::abi_stable::std_types::{RArc, RBox, ROption, RResult, RStr, RString, RVec, Tuple2};
use gvmm_plugin_api::*;

const TEXT: &str = r#"{"api":[0,1],"id":"org.gvmm.frozen.registers","name":"registers","version":"1.0.0","vendor":"gvmm","url":"","description":"Keeps a value","license":"MIT","kind":"mmio","requires":[],"syscalls":[],"options":[{"name":"value","help":"At first.","default":"7","type":"integer","min":0,"max":100}]}"#;

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
}

#[derive(Clone)]
struct Shared(std::sync::Arc<Kept>);

impl RawMmio for Shared {
    fn layout(&self) -> RResult<Tuple2<RVec<u64>, u32>, RString> {
        RResult::ROk(Tuple2(vec![0x1000].into(), 1))
    }

    fn node(&self) -> RResult<RawNode, RString> {
        let property = RawProperty {
            name: "size".into(),
            kind: 1,
            numbers: vec![5].into(),
            strings: RVec::new(),
            bytes: RVec::new(),
        };
        RResult::ROk(RawNode {
            name: "kept".into(),
            compatible: vec![RString::from("gvmm,kept")].into(),
            properties: vec![property].into(),
            console: false,
        })
    }

    fn start(&self, _lines: RVec<i32>) -> RResult<(), RString> {
        RResult::ROk(())
    }

    fn read(&self, _window: u32, offset: u64, width: u8) -> RawRead {
        match (offset, width) {
            (0, 4) => RawRead { value: self.0.value.load(Ordering::Relaxed), status: 0 },
            (0, _) => RawRead { value: 0, status: 2 },
            _ => RawRead { value: 0, status: 1 },
        }
    }

    fn write(&self, _window: u32, _offset: u64, _width: u8, value: u64) -> u32 {
        self.0.host.log(2, "kept".into(), "a value was written".into());
        self.0.value.store(value, Ordering::Relaxed);
        0
    }
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
        if id != MMIO {
            return ROption::RNone;
        }
        ROption::RSome(Extension::wrap(RawMmio_TO::from_ptr(RArc::new(self.clone()), TD_Opaque)))
    }
}

extern "C" fn descriptor() -> RStr<'static> {
    TEXT.into()
}

extern "C" fn init(_: u8) {}

extern "C" fn create(options: OptionList, host: RawHostArc) -> Created {
    let value = options.iter().find(|pair| pair.0 == "value").and_then(|pair| pair.1.parse().ok());
    let device = Shared(std::sync::Arc::new(Kept { value: AtomicU64::new(value.unwrap_or(0)), host }));
    RResult::ROk(RawDevice_TO::from_ptr(RBox::new(device), TD_Opaque))
}

extern "C" fn root() -> Loaded {
    load(PluginRoot { descriptor, init, create })
}

#[used]
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
// SAFETY: `root` passes on what `load` returns.
static HEADER: LibHeader = unsafe { header(root) };
