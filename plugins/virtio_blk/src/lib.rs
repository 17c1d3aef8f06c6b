//! Virtio block device (virtio 1.2, 5.2): a disk from an image file or a block device of the host.
//!
//! - [`image`]: the disk on the host's side: opening, locking, reading, writing, freeing.
//! - [`config`]: configuration space and features.
//! - [`request`]: what a descriptor chain asks for, checked before anything is done.
//! - [`disk`]: what all queues share, and how a request is done.
//! - [`queue`]: serves the requests of one queue on its own thread, with the help of [`engine`] for those that wait.
//! - [`throttle`], [`resize`]: limits on the rate of requests, and disks that change their size in use.
//! - [`device`]: puts these together behind the plugin interface.
#![deny(unsafe_code)]

mod config;
mod device;
mod disk;
mod engine;
#[cfg(test)]
mod failure_test;
#[cfg(test)]
mod hostile_test;
mod image;
mod metrics;
mod queue;
mod request;
mod resize;
#[cfg(test)]
mod testing;
mod throttle;

use std::path::PathBuf;

use gvmm_plugin_api::Device;
use gvmm_plugin_api::options::{OptionKind, PathAccess};
use gvmm_plugin_api::services::Services;

use crate::device::BlockDevice;

gvmm_plugin_api::options! {
    /// Options of a disk.
    pub struct Options {
        /// Image file or block device.
        pub disk: PathBuf = required("disk", OptionKind::Path(PathAccess::ReadWrite)),
        /// What the image is; raw when left out, and then a file that looks like a qcow2 image is refused. null is a disk
        /// of the file's size that reads as zero and keeps nothing, for measurements.
        pub format: Option<String> = optional("format", OptionKind::Choice(&["raw", "qcow2", "null"])),
        /// Backing file of a qcow2 image, or the folder in which its backing files lie; none is opened without it.
        pub backing: Option<PathBuf> = optional("backing", OptionKind::Path(PathAccess::Read)),
        /// Open it for reading only; the guest sees a write-protected disk.
        pub readonly: bool = with_default("readonly", "off", OptionKind::Flag),
        /// Serial number that the guest sees, at most 20 bytes.
        pub serial: Option<String> = optional("serial", OptionKind::Text),
        /// Number of queues, each served by a thread of its own; one for each CPU of the guest is plenty.
        pub queues: u16 = with_default("queues", "1", OptionKind::Integer { min: 1, max: 64 }),
        /// Entries of each queue, a power of two.
        pub queue_size: u16 = with_default("queue-size", "256", OptionKind::Integer { min: 4, max: 32768 }),
        /// When a write is durable: once the guest has flushed it (writeback), or as soon as it is complete
        /// (writethrough).
        pub cache: String = with_default("cache", "writeback", OptionKind::Choice(&["writeback", "writethrough"])),
        /// Bypass the host's page cache.
        pub direct: bool = with_default("direct", "off", OptionKind::Flag),
        /// Who waits for the disk while the queue goes on: the kernel (io_uring), threads, or nobody, so that a queue
        /// does one request at a time (sync). auto is io_uring where the kernel allows it and else threads.
        pub engine: String = with_default("engine", "auto", OptionKind::Choice(&["auto", "io_uring", "threads", "sync"])),
        /// Most requests a second.
        pub iops: Option<u64> = optional("iops", OptionKind::Integer { min: 1, max: 1_000_000_000 }),
        /// Most bytes a second.
        pub bandwidth: Option<u64> = optional("bandwidth", OptionKind::Size { min: 4096, max: 1 << 50 }),
        /// When the host's disk is full or fails: tell the guest, whose request then fails (report), or keep the guest
        /// waiting and try again every second (stop).
        pub on_error: String = with_default("on-error", "report", OptionKind::Choice(&["report", "stop"])),
        /// Size of a sector that the guest sees; what the disk itself wants when left out.
        pub logical_block_size: Option<u32> = optional("logical-block-size", OptionKind::Choice(&["512", "4096"])),
        /// Watch for a disk that grows or shrinks, and tell the guest.
        pub resize: bool = with_default("resize", "on", OptionKind::Flag),
        /// Lock the disk against a second writer; off lets several programs share it, which only read-only disks and
        /// cluster file systems survive.
        pub lock: bool = with_default("lock", "on", OptionKind::Flag),
        /// Give the space of what the guest discards back to the host.
        pub discard: bool = with_default("discard", "on", OptionKind::Flag),
    }
}

/// Makes a disk.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let device = BlockDevice::new(&options, services).map_err(|e| e.to_string())?;
    Ok(Device::virtio(device))
}

gvmm_plugin_api::export_plugin! {
    id: "org.gvmm.virtio_blk",
    name: "virtio_blk",
    vendor: "gvmm",
    url: "",
    description: "Virtio disk from an image file or a block device",
    kind: Virtio(config::DEVICE_TYPE),
    options: Options,
    create: create,
    syscalls: ["fallocate", "fcntl", "fdatasync", "fstatfs", "io_uring_enter", "io_uring_setup", "preadv2"],
}
