//! Threads of the VMM.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Stack of a thread. Rust's 2 MiB fill one huge page where those are given without asking, which then counts as a
/// whole for the few KiB that a thread uses.
const STACK: usize = 512 << 10;

/// Starts a thread with a name.
///
/// # Errors
///
/// The system's, where it has no room for another thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).stack_size(STACK).spawn(body)
}
