//! The plugin host: finding plugins, reading what the command line says of devices, making them.

pub mod host;
pub mod profile;
pub mod tools;

pub use gvmm_plugin_api::host::{argument, search};
