//! Testing a device without a VM: fake guest memory, a driver for queues, a host that records, a clock that stands.
//!
//! For the dev-dependencies of a plugin (feature `test-kit`). Everything here panics where a test would fail.
//!
//! ```
//! use std::sync::Arc;
//! use gvmm_plugin_api::testing::{FakeHost, VirtioHarness};
//! # use gvmm_plugin_api::virtio::*;
//! # struct Null;
//! # impl VirtioDevice for Null {
//! #     fn traits(&self) -> VirtioTraits {
//! #         VirtioTraits { device_type: 4, features: COMMON_FEATURES, queue_sizes: vec![8], config_size: 0 }
//! #     }
//! #     fn read_config(&self, _: u32, _: &mut [u8]) {}
//! #     fn start_queue(&self, _: u16, _: QueueSetup) -> Result<(), String> { Ok(()) }
//! #     fn stop_queue(&self, _: u16) -> Option<QueueState> { Some(QueueState::default()) }
//! #     fn reset(&self) {}
//! # }
//! let host = Arc::new(FakeHost::default());
//! let mut machine = VirtioHarness::new(Arc::new(Null), COMMON_FEATURES);
//! let mut queue = machine.start(0, 8);
//! assert_eq!(host.failures(), [""; 0]);
//! machine.stop(0, &mut queue);
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation fails the test")]

mod driver;
mod host;
mod memory;

pub use driver::{Buffer, QueueDriver, Used, VirtioHarness};
pub use host::{FakeClock, FakeConsole, FakeHost};
pub use memory::FakeMemory;

use std::time::{Duration, Instant};

/// How long the test kit waits for something before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the condition holds; panics with the text when it does not within [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until the descriptor has input; panics after [`PATIENCE`].
pub fn wait_readable(what: &str, fd: std::os::fd::BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            ready => break assert!(ready.unwrap() > 0, "waited {PATIENCE:?} for: {what}"),
        }
    }
}
