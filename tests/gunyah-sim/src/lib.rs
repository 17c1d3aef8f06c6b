//! The `/dev/gunyah` ABI of every driver generation for an unmodified program, by `LD_PRELOAD`.
//!
//! Three layers, each with one concern:
//!
//! - [`host`] stands between the program and libc, and is the only unsafe part: it finds the calls that are about the
//!   node, keeps real descriptors for simulated files, takes lent memory away and delivers signals as a system call does;
//! - [`device`], [`driver`] and [`rm`] are the host kernel's driver and the Resource Manager: which request is refused
//!   with which errno, in which order, and what START does to the tree. `driver` and `rm` are pure;
//! - [`back_end`] runs the vCPUs: KVM on an arm64 machine, a script anywhere.
//!
//! "rule N.N" cites RULES.md, which says where each rule comes from. README.md tells how to use the library.

mod abi;
mod back_end;
mod config;
mod device;
mod driver;
mod errno;
mod fdt;
mod host;
mod inject;
mod report;
mod rm;
mod trace;
