//! Virtio network card (virtio 1.2, 5.1).
//!
//! - [`backend`]: where frames come from and go to: taps, sockets, `passt`.
//! - [`config`]: features and configuration space. [`mac`]: hardware addresses.
//! - [`card`]: what all queues share. [`filter`]: which frames the driver wants.
//! - [`receive`], [`transmit`], [`control`]: the three kinds of queue. [`buffers`]: the driver's receive buffers.
//! - [`device`]: puts these together behind the plugin interface.
#![deny(unsafe_code)]

mod backend;
mod buffers;
mod card;
mod config;
mod control;
#[cfg(test)]
mod control_test;
mod device;
#[cfg(test)]
mod device_test;
mod filter;
#[cfg(test)]
mod hostile_test;
mod mac;
mod receive;
#[cfg(test)]
mod testing;
mod transmit;

use std::path::PathBuf;

use gvmm_plugin_api::options::{OptionKind, PathAccess};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of a network card.
    pub struct Options {
        /// Use this tap interface of the host; it is made when there is none of the name.
        pub tap: Option<String> = optional("tap", OptionKind::Text),
        /// Use an open descriptor: a tap, a stream socket with length prefixes, or a datagram socket.
        pub fd: Option<i32> = optional("fd", OptionKind::Fd),
        /// Connect to this Unix socket, on which frames have length prefixes (passt, QEMU's -netdev stream).
        pub socket: Option<PathBuf> = optional("socket", OptionKind::Path(PathAccess::Connect)),
        /// Reach the host's networks without any rights, through the program passt.
        pub user: bool = with_default("user", "off", OptionKind::Flag),
        /// With user: TCP ports of the host that lead into the guest, such as 2222:22+8080 (HOST:GUEST, + between).
        pub tcp: Option<String> = optional("tcp", OptionKind::Text),
        /// With user: UDP ports of the host that lead into the guest, in the same form.
        pub udp: Option<String> = optional("udp", OptionKind::Text),
        /// Hardware address of the card, such as 52:54:00:12:34:56; one that stays the same when left out.
        pub mac: Option<String> = optional("mac", OptionKind::Text),
        /// Largest packet that the guest may send; 65520 with user, otherwise the guest decides.
        pub mtu: Option<u16> = optional("mtu", OptionKind::Integer { min: 68, max: 65520 }),
        /// Pairs of queues, each with two threads of its own; one for each CPU of the guest is plenty.
        pub queues: u16 = with_default("queues", "1", OptionKind::Integer { min: 1, max: 64 }),
        /// Entries of each queue, a power of two.
        pub queue_size: u16 = with_default("queue-size", "256", OptionKind::Integer { min: 4, max: 1024 }),
        /// Leave checksums and the cutting of large packets to the host (taps alone).
        pub offload: bool = with_default("offload", "on", OptionKind::Flag),
        /// Speed that the guest shows, in Mbit/s.
        pub speed: Option<u32> = optional("speed", OptionKind::Integer { min: 1, max: 0x7fff_ffff }),
    }
}

/// Makes a network card.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let device = device::NetDevice::new(&options, services).map_err(|e| e.to_string())?;
    Ok(Device::virtio(device))
}

export_plugin! {
    id: "org.gvmm.virtio_net",
    name: "virtio_net",
    vendor: "gvmm",
    url: "",
    description: "Virtio network card on a tap, a socket or user-mode networking",
    kind: Virtio(config::DEVICE_TYPE),
    options: Options,
    create: create,
    syscalls: ["connect", "getsockopt", "ioctl", "poll", "recvfrom", "sendto", "socket"],
}
