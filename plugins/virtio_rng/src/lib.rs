//! Virtio entropy device (virtio 1.2, 5.4): random bytes of the host's kernel for the guest's.
#![deny(unsafe_code)]

mod device;
#[cfg(test)]
mod device_test;

use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// The device has no options.
    pub struct Options {}
}

/// Makes an entropy source.
pub fn create(_: Options, services: Services) -> Result<Device, String> {
    Ok(Device::virtio(device::Entropy::new(services)))
}

export_plugin! {
    id: "org.gvmm.virtio_rng",
    name: "virtio_rng",
    vendor: "gvmm",
    url: "",
    description: "Virtio entropy source, fed by the host's kernel",
    kind: Virtio(device::DEVICE_TYPE),
    options: Options,
    create: create,
    syscalls: ["getrandom"],
}
