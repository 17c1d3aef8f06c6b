//! The gvmm virtual machine monitor: command line, machine assembly, accelerators and the plugin host.

pub mod app;
pub mod bus;
pub mod cli;
pub mod console;
pub mod device_tree;
pub mod doctor;
pub mod eventfd;
pub mod exit_code;
pub mod host;
pub mod hypervisor;
pub mod loader;
mod logging;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod plugin;
pub mod stats;
mod thread;
pub mod virtio;
