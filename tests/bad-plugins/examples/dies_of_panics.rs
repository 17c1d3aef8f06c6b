//! Is meant to be built with `panic = "abort"`, and is a good plugin otherwise.

use bad_plugins::Nothing;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// No options.
    pub struct Options {}
}

fn create(_: Options, _: Services) -> Result<Device, String> {
    Ok(Device::mmio(Nothing))
}

export_plugin! {
    id: "org.gvmm.bad.dies-of-panics",
    name: "dies_of_panics",
    vendor: "gvmm",
    url: "",
    description: "Ends the process when it panics",
    kind: Mmio,
    options: Options,
    create: create,
}
