//! A plugin's device in a process of its own, below gvmm: `isolate=on`.
//!
//! - [`child`]: starts `gvmm-device` with the plugin, again each time that it ends, and stops it.
//! - [`reports`]: what the two processes tell each other beside vhost-user.
//! - `sandbox`, `syscalls`: what the process gives up before the plugin's code runs.

pub mod child;
pub(crate) mod reports;
pub(crate) mod sandbox;
mod syscalls;
