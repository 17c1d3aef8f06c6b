//! The plugin host: finding plugins, reading what the command line says of devices, making them.

pub mod argument;
pub mod host;
pub mod profile;
pub mod search;
