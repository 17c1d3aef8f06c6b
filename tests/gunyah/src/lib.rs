//! gvmm, unmodified, on the Gunyah simulator with scripted vCPUs.
//!
//! A [`Run`] is one `gvmm` process on a terminal of its own, under the simulator of one generation of the driver. The
//! vCPUs do what a script says (`tests/gunyah-sim/README.md`); what the simulator was asked is in the trace. It works
//! on any machine: neither the hypervisor nor an arm64 processor is needed.

#![forbid(unsafe_code)]
// A test whose surroundings cannot be set up has failed.
#![allow(clippy::expect_used)]

mod build;
mod image;
mod run;
mod terminal;

pub use run::{Ended, Kind, Run, Running};

/// Guest address of the console, the first device: a PL011.
pub const CONSOLE: u64 = 0x0900_0000;
/// Guest address of the first virtio device, behind console and clock.
pub const VIRTIO: u64 = 0x0900_2000;
