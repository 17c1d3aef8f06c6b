//! A virtio console whose far end sends back what it is sent.
#![deny(unsafe_code)]

mod device;
#[cfg(test)]
mod device_test;
mod messages;

use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the device.
    pub struct Options {
        /// Sends capital letters back.
        pub upper: bool = with_default("upper", "off", OptionKind::Flag),
    }
}

/// Makes a device from its options.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let device = device::Mirror::new(options.upper, services);
    Ok(Device::virtio(device.map_err(|e| format!("cannot make an eventfd: {e}"))?))
}

export_plugin! {
    id: "org.example.echo",
    name: "echo",
    vendor: "Example",
    url: "",
    description: "Virtio console whose far end sends back what it is sent",
    kind: Virtio(device::DEVICE_TYPE),
    options: Options,
    create: create,
}
