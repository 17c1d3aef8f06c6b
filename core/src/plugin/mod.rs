//! The plugin host: finding what provides devices, reading what the command line says of them, making them.

pub mod host;
pub mod profile;
pub mod provider;
pub mod tools;

pub use gvmm_plugin_api::host::{argument, search};
