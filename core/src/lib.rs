//! The gvmm virtual machine monitor: command line, machine assembly, accelerators and the plugin host.

pub mod device_tree;
pub mod host;
pub mod hypervisor;
pub mod loader;
pub mod memory;
