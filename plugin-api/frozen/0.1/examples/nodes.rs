//! A device with nodes beside its own: the extension `gvmm.nodes/1` as it was published.
#![allow(non_local_definitions, reason = "abi_stable's derive puts impls into functions")]

use gvmm_plugin_api::abi_stable::library::LibHeader;
use gvmm_plugin_api::abi_stable::sabi_trait::TD_Opaque;
use gvmm_plugin_api::abi_stable::std_types::{RArc, RBox, ROption, RResult, RStr, RString, RVec, Tuple2};
use gvmm_plugin_api::abi_stable::{self, StableAbi, sabi_trait};
use gvmm_plugin_api::*;

const NODES: &str = "gvmm.nodes/1";

#[sabi_trait]
pub trait RawNodes: Send + Sync {
    fn below(&self) -> RResult<RVec<RawExtraNode>, RString>;
    #[sabi(last_prefix_field)]
    fn beside(&self) -> RResult<RVec<RawExtraNode>, RString>;
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawExtraNode {
    pub depth: u32,
    pub name: RString,
    pub compatible: RVec<RString>,
    pub properties: RVec<RawProperty>,
    pub references: RVec<RawReference>,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RawReference {
    pub name: RString,
    pub specifiers: RVec<RVec<u32>>,
}

const TEXT: &str = r#"{"api":[0,1],"id":"org.gvmm.frozen.nodes","name":"nodes","version":"1.0.0","vendor":"gvmm","url":"","description":"Has nodes","license":"MIT","kind":"mmio","requires":["gvmm.nodes/1"],"syscalls":[],"options":[]}"#;

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static DESCRIPTOR: [u8; TEXT.len()] = {
    let mut bytes = [0; TEXT.len()];
    bytes.copy_from_slice(TEXT.as_bytes());
    bytes
};

#[derive(Clone)]
struct Lines;

fn node(depth: u32, name: &str, references: RVec<RawReference>) -> RawExtraNode {
    RawExtraNode { depth, name: name.into(), compatible: RVec::new(), properties: RVec::new(), references }
}

impl RawNodes for Lines {
    fn below(&self) -> RResult<RVec<RawExtraNode>, RString> {
        RResult::ROk(vec![node(0, "sensor", RVec::new())].into())
    }

    fn beside(&self) -> RResult<RVec<RawExtraNode>, RString> {
        let specifiers = vec![RVec::from(vec![3, 0]), RVec::new()].into();
        let gpios = RawReference { name: "gpios".into(), specifiers };
        RResult::ROk(vec![node(0, "keys", RVec::new()), node(1, "power", vec![gpios].into())].into())
    }
}

impl RawMmio for Lines {
    fn layout(&self) -> RResult<Tuple2<RVec<u64>, u32>, RString> {
        RResult::ROk(Tuple2(vec![0x1000].into(), 0))
    }

    fn node(&self) -> RResult<RawNode, RString> {
        RResult::ROk(RawNode {
            name: "lines".into(),
            compatible: vec![RString::from("gvmm,lines")].into(),
            properties: RVec::new(),
            console: false,
        })
    }

    fn start(&self, _lines: RVec<i32>) -> RResult<(), RString> {
        RResult::ROk(())
    }

    fn read(&self, _window: u32, _offset: u64, _width: u8) -> RawRead {
        RawRead { value: 0, status: 1 }
    }

    fn write(&self, _window: u32, _offset: u64, _width: u8, _value: u64) -> u32 {
        1
    }
}

impl RawDevice for Lines {
    fn reset(&self) -> ROption<RString> {
        ROption::RNone
    }

    fn metrics(&self) -> RVec<Tuple2<RString, u64>> {
        RVec::new()
    }

    fn extension(&self, id: RStr<'_>) -> ROption<Extension> {
        match id.as_str() {
            MMIO => ROption::RSome(Extension::wrap(RawMmio_TO::from_ptr(RArc::new(self.clone()), TD_Opaque))),
            NODES => ROption::RSome(Extension::wrap(RawNodes_TO::from_ptr(RArc::new(self.clone()), TD_Opaque))),
            _ => ROption::RNone,
        }
    }
}

extern "C" fn descriptor() -> RStr<'static> {
    TEXT.into()
}

extern "C" fn init(_: u8) {}

extern "C" fn create(_options: OptionList, _host: RawHostArc) -> Created {
    RResult::ROk(RawDevice_TO::from_ptr(RBox::new(Lines), TD_Opaque))
}

extern "C" fn root() -> Loaded {
    load(PluginRoot { descriptor, init, create })
}

#[used]
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
// SAFETY: `root` passes on what `load` returns.
static HEADER: LibHeader = unsafe { header(root) };
