//! Requests that are done while the queue goes on: by io_uring where the kernel has it, by threads for the rest.
#![deny(unsafe_code)]

mod pool;
mod ring;

use gvmm_plugin_api::memory::MemoryError;
use gvmm_plugin_api::queue::Chain;

use crate::request::Request;

pub(crate) use pool::Pool;
pub(crate) use ring::{Outcome, Ring};

/// The user's choice of who waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The kernel where it has io_uring, else threads.
    Auto,
    /// The kernel.
    Uring,
    /// Threads.
    Threads,
    /// The queue's thread itself.
    Sync,
}

impl Engine {
    /// The engine for a word of the option, which the schema has checked.
    pub(crate) fn from_word(word: &str) -> Self {
        match word {
            "io_uring" => Self::Uring,
            "threads" => Self::Threads,
            "sync" => Self::Sync,
            _ => Self::Auto,
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) chain: Chain,
    pub(crate) request: Request,
    /// Whether a write must be durable when it is completed.
    pub(crate) through: bool,
}

/// A request that has been done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) job: Job,
    /// Bytes written to the data buffers.
    pub(crate) result: Result<u64, MemoryError>,
}
