//! The back end: serves the virtio device of any plugin to any front end.
//!
//! - [`server`]: waits for front ends and serves one at a time.
//! - [`session`]: what the requests of a front end do.
//! - [`memory`], [`ring`], [`inflight`]: guest memory, rings and the notes of requests in flight.
//! - [`host`]: what the device gets done for it.

pub mod host;
mod inflight;
mod memory;
mod ring;
pub mod server;
mod session;

#[cfg(test)]
#[path = "session_test.rs"]
mod session_test;
