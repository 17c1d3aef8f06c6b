//! Does without the export macro, and without a look at its options.

use bad_plugins::Nothing;
use gvmm_plugin_api::abi::root;
use gvmm_plugin_api::descriptor::{Descriptor, Kind, json, json_len};
use gvmm_plugin_api::options::{OptionKind, OptionSet};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, options};

options! {
    /// An option that nobody looks at.
    pub struct Options {
        /// Where.
        pub place: u8 = with_default("place", "1", OptionKind::Integer { min: 0, max: 7 }),
    }
}

const DESCRIPTOR: Descriptor = Descriptor {
    id: "org.gvmm.bad.lets-junk-in",
    name: "lets_junk_in",
    version: "1.0.0",
    vendor: "gvmm",
    url: "",
    description: "Takes any options",
    license: "MIT",
    kind: Kind::Mmio,
    options: <Options as OptionSet>::SPECS,
    requires: &[],
    syscalls: &[],
};

const LEN: usize = json_len(&DESCRIPTOR);

#[used]
#[unsafe(link_section = ".gvmm.plugin")]
static JSON: [u8; LEN] = json::<LEN>(&DESCRIPTOR);

extern "C" fn descriptor() -> root::Text {
    root::text(&JSON)
}

extern "C" fn init(max_level: u8) {
    root::init(max_level)
}

extern "C" fn create(_: root::OptionList, host: root::Host) -> root::Created {
    fn nothing(_: Options, _: Services) -> Result<Device, String> {
        Ok(Device::mmio(Nothing))
    }
    root::create::<Options>(nothing, root::OptionList::new(), host)
}

extern "C" fn load() -> root::Loaded {
    root::load(root::PluginRoot { descriptor, init, create })
}

#[used]
#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
// SAFETY: `load` passes on what the function of that name returns.
static HEADER: root::Header = unsafe { root::header(load) };
