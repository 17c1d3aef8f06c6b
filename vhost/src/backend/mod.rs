//! The back end: serves the virtio device of any plugin to any front end.
//!
//! - [`program`]: `gvmm-device`, from its command line to its exit code.
//! - [`server`]: waits for front ends and serves one at a time.
//! - `session`: what the requests of a front end do.
//! - `memory`, `ring`, `inflight`: guest memory, rings and the notes of requests in flight.
//! - [`host`]: what the device gets done for it; `standalone` and `supervised`: by whom,
//!   without and with a gvmm above.

pub mod host;
mod inflight;
mod memory;
pub mod program;
mod ring;
pub mod server;
mod session;
mod standalone;
mod supervised;

#[cfg(test)]
#[path = "session_test.rs"]
mod session_test;
