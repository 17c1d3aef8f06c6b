//! Virtio console (virtio 1.2, 5.3): a console of the host as `hvc0` of the guest.
//!
//! - [`device`]: the plugin interface and the configuration space.
//! - [`input`]: what is typed, straight into the guest's buffers.
//! - [`output`]: what the guest shows, through a bounded buffer.
#![deny(unsafe_code)]

mod device;
#[cfg(test)]
mod device_test;
mod input;
mod output;

use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the console.
    pub struct Options {
        /// Where the guest's output goes and its input comes from: an attachment of the host, such as stdio.
        pub console: String = with_default("console", "stdio", OptionKind::Text),
    }
}

/// Makes a console.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let console = services.open_console(&options.console)?;
    Ok(Device::virtio(device::VirtioConsole::new(console, services)))
}

export_plugin! {
    id: "org.gvmm.virtio_console",
    name: "virtio_console",
    vendor: "gvmm",
    url: "",
    description: "Virtio console with a console of the host at its far end",
    kind: Virtio(device::DEVICE_TYPE),
    options: Options,
    create: create,
    requires: ["gvmm.console/1"],
    syscalls: ["poll"],
}
