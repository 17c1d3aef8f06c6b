//! The simulator's side of the machine it runs on: system calls, signals, mappings. All unsafe code is here.

pub(crate) mod event;
pub(crate) mod guard;
pub(crate) mod guest_mem;
pub(crate) mod guest_memory;
pub(crate) mod interpose;
pub(crate) mod lend;
pub(crate) mod maps;
pub(crate) mod objects;
pub(crate) mod real;
pub(crate) mod shared_page;
pub(crate) mod signals;
pub(crate) mod user;
