//! Says of an option what makes no sense.

use bad_plugins::Nothing;
use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// An option with a default that it does not accept itself.
    pub struct Options {
        /// How often.
        pub times: u8 = with_default("times", "200", OptionKind::Integer { min: 1, max: 100 }),
    }
}

fn create(_: Options, _: Services) -> Result<Device, String> {
    Ok(Device::mmio(Nothing))
}

export_plugin! {
    id: "org.gvmm.bad.words",
    name: "bad_words",
    vendor: "gvmm",
    url: "",
    description: "Has a default that its own option refuses",
    kind: Mmio,
    options: Options,
    create: create,
}
