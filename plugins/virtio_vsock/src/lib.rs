//! Virtio sockets (virtio 1.2, 5.10): streams between programs of the guest and programs of the host, without a network.
//! The host's side is Unix sockets, in the convention of Firecracker.
//!
//! - [`packet`]: the header before each packet.
//! - [`connection`]: one stream: its state, its credit, and its socket.
//! - [`muxer`]: all streams of a device, and the socket that host programs connect to.
//! - [`receive`], [`transmit`]: the queues. [`device`]: the plugin interface.
#![deny(unsafe_code)]

mod connection;
mod device;
#[cfg(test)]
mod device_test;
mod greeting;
mod muxer;
mod packet;
mod receive;
#[cfg(test)]
mod testing;
mod transmit;

use std::path::PathBuf;

use gvmm_plugin_api::options::{OptionKind, PathAccess};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the device.
    pub struct Options {
        /// Unix socket to make, at which host programs reach the guest's ports; for port N of the host the guest is
        /// connected to the socket PATH_N.
        pub socket: PathBuf = required("socket", OptionKind::Path(PathAccess::Create)),
        /// Address of the guest (CID); it need not differ between guests.
        pub cid: u64 = with_default("cid", "3", OptionKind::Integer { min: 3, max: 0xffff_fffe }),
    }
}

/// Makes a device.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    Ok(Device::virtio(device::VsockDevice::new(&options, services)?))
}

export_plugin! {
    id: "org.gvmm.virtio_vsock",
    name: "virtio_vsock",
    vendor: "gvmm",
    url: "",
    description: "Virtio sockets: services of the guest as Unix sockets of the host",
    kind: Virtio(device::DEVICE_TYPE),
    options: Options,
    create: create,
    syscalls: ["accept4", "bind", "connect", "listen", "recvfrom", "shutdown", "socket", "unlink"],
}
