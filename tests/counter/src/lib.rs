//! A device that counts writes and interrupts the guest now and then.
#![deny(unsafe_code)]

mod device;
#[cfg(test)]
mod device_test;

use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the device.
    pub struct Options {
        /// Writes between two interrupts.
        pub step: u64 = with_default("step", "10", OptionKind::Integer { min: 1, max: 1000 }),
    }
}

/// Makes a device from its options.
pub fn create(options: Options, _services: Services) -> Result<Device, String> {
    Ok(Device::mmio(device::Tally::new(options.step)))
}

export_plugin! {
    id: "org.example.counter",
    name: "counter",
    vendor: "Example",
    url: "",
    description: "Counts writes and interrupts the guest now and then",
    kind: Mmio,
    options: Options,
    create: create,
}
