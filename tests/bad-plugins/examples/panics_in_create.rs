//! Panics when a device is made.

use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// No options.
    pub struct Options {}
}

fn create(_: Options, _: Services) -> Result<Device, String> {
    panic!("no device today")
}

export_plugin! {
    id: "org.gvmm.bad.panics-in-create",
    name: "panics_in_create",
    vendor: "gvmm",
    url: "",
    description: "Panics when a device is made",
    kind: Mmio,
    options: Options,
    create: create,
}
