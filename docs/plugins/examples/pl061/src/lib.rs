//! Arm PrimeCell GPIO controller (PL061, Arm DDI 0190B) with eight lines, whose far ends are worked from the host.
//!
//! - [`registers`]: what is where. [`port`]: the eight lines, without a machine around them.
//! - [`control`]: the socket for programs of the host. [`device`]: the plugin interface. [`nodes`]: what is at the lines.
#![deny(unsafe_code)]

mod control;
#[cfg(test)]
mod control_test;
mod device;
mod nodes;
mod port;
mod registers;

use std::path::PathBuf;

use gvmm_plugin_api::options::{OptionKind, PathAccess};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the controller.
    pub struct Options {
        /// Unix socket to make, at which host programs see and set the lines.
        pub socket: Option<PathBuf> = optional("socket", OptionKind::Path(PathAccess::Create)),
        /// Lines that are high from the outside at first, one bit each.
        pub high: u64 = with_default("high", "0", OptionKind::Integer { min: 0, max: 0xff }),
        /// Line with a power key, pressed while it is high.
        pub power_key: Option<u8> = optional("power-key", OptionKind::Integer { min: 0, max: 7 }),
        /// Lines with a light, one bit each.
        pub lights: u8 = with_default("lights", "0", OptionKind::Integer { min: 0, max: 0xff }),
    }
}

/// Makes a controller.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let attached = nodes::Attached::new(options.power_key, options.lights)?;
    // The schema allows eight bits.
    let device = device::Pl061::new(options.socket.as_deref(), options.high as u8, attached, services)?;
    Ok(Device::mmio(device))
}

export_plugin! {
    id: "org.example.pl061",
    name: "pl061",
    vendor: "Example",
    url: "",
    description: "Arm PL061 GPIO controller with eight lines worked from the host",
    kind: Mmio,
    options: Options,
    create: create,
    syscalls: ["accept4", "bind", "listen", "ppoll", "recvfrom", "sendto", "socket", "unlink"],
}
