//! A back end that is written in Python, the example of the plugin guide, behind the front end.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::{Buffer, FakeHost, QueueDriver, VirtioHarness};
use gvmm_plugin_api::virtio::{F_VERSION_1, QueueState};
use gvmm_vhost::frontend;

const OUT: u64 = VirtioHarness::DATA;

/// The running back end; it ends with the test.
struct BackEnd(Child);

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the back end; `None` where there is no Python that can hand over descriptors (3.9).
fn start(socket: &Path) -> Option<BackEnd> {
    let mut probe = Command::new("python3");
    let recent = probe.args(["-c", "import socket; socket.recv_fds"]).output();
    if !recent.is_ok_and(|output| output.status.success()) {
        println!("skipped: there is no python3 of version 3.9 or later");
        return None;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins/examples/vhost_user_rng");
    let mut command = Command::new("python3");
    Some(BackEnd(command.arg(folder.join("vhost_user_rng.py")).arg(socket).spawn().unwrap()))
}

#[test]
fn the_example_serves_requests_from_where_a_queue_stood() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("rng.sock");
    let Some(_back_end) = start(&socket) else { return };
    let given = [("type", "rng"), ("socket", socket.to_str().unwrap()), ("wait", "60")];
    let values = Values::check(frontend::options::Options::SPECS, given).unwrap();
    let host = Arc::new(FakeHost::default());
    let device = frontend::connect(&values, host.clone()).unwrap();
    let mut machine = VirtioHarness::new(device, F_VERSION_1);
    let mut queue = machine.start(0, 8);
    let random = |machine: &VirtioHarness, queue: &mut QueueDriver| {
        machine.memory().write(OUT, &[0; 0x300]);
        let buffers = [Buffer::writable(OUT, 64), Buffer::writable(OUT + 0x200, 64)];
        assert_eq!(queue.request(&buffers).len, 128);
        assert_ne!(machine.memory().read(OUT, 64), [0; 64]);
        assert_ne!(machine.memory().read(OUT + 0x200, 64), [0; 64]);
        assert_eq!(machine.memory().read(OUT + 64, 64), [0; 64]);
    };
    for _ in 0..20 {
        random(&machine, &mut queue);
    }
    let state = machine.stop(0, &mut queue);
    assert_eq!(state, QueueState { next_avail: 20, next_used: 20 });
    machine.resume(0, &mut queue, state);
    random(&machine, &mut queue);
    assert_eq!(host.failures(), [""; 0]);
}
