//! Plugins that reach out of the machine, in processes of their own: what is sent arrives.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gvmm_plugin_api::host::Manifest;
use gvmm_plugin_api::testing::{Buffer, FakeHost, PATIENCE, QueueDriver, VirtioHarness};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};
use gvmm_vhost::frontend;
use gvmm_vhost::isolation::child::Isolated;
use support::{operation, packet};

/// Where a driver has what it sends, and what it receives.
const OUT: u64 = VirtioHarness::DATA;
const IN: u64 = VirtioHarness::DATA + 65536;
/// Queues of network cards and of sockets alike.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

fn isolated(name: &str, options: &[(&str, &str)]) -> Arc<dyn VirtioDevice> {
    let plugin = gvmm_built::plugin(name);
    let manifest = Manifest::read(&plugin).unwrap();
    let values = manifest.check(options.iter().copied()).unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_gvmm-device"));
    let id = name.to_owned();
    let isolated = Isolated { program, plugin, manifest, values, id, required: false, max_level: 3 };
    frontend::isolate(isolated, Arc::new(FakeHost::default())).unwrap()
}

/// A driver with a buffer to receive into.
struct Guest {
    harness: VirtioHarness,
    receive: QueueDriver,
    transmit: QueueDriver,
}

impl Guest {
    fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let mut harness = VirtioHarness::new(device, COMMON_FEATURES);
        let (receive, transmit) = (harness.start(RECEIVE, 16), harness.start(TRANSMIT, 16));
        Self { harness, receive, transmit }
    }

    fn send(&mut self, packet: &[u8]) {
        self.harness.memory().write(OUT, packet);
        self.transmit.request(&[Buffer::readable(OUT, packet.len() as u32)]);
    }

    fn receive(&mut self) -> Vec<u8> {
        let used = self.receive.request(&[Buffer::writable(IN, 4096)]);
        self.harness.memory().read(IN, used.len as usize)
    }
}

/// Reads a frame, which is behind its length.
fn read_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn an_isolated_network_card_sends_and_receives_frames() {
    /// Bytes before a frame (virtio 1.2, 5.1.6).
    const HEADER: usize = 12;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = Guest::new(isolated("virtio_net", &[("socket", path.to_str().unwrap())]));
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    // To everybody, from this card.
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 0], &[0x5a; 50]].concat();
    guest.send(&[&[0; HEADER][..], &frame].concat());
    // The card may announce itself first.
    while read_frame(&mut peer) != frame {}
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(&frame).unwrap();
    assert_eq!(guest.receive()[HEADER..], frame);
}

#[test]
fn isolated_sockets_are_reached_from_both_sides() {
    const REQUEST: u16 = 1;
    const RESPONSE: u16 = 2;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let port: &Path = &folder.path().join("vm.sock_5000");
    let listener = UnixListener::bind(port).unwrap();
    let mut guest = Guest::new(isolated("virtio_vsock", &[("socket", path.to_str().unwrap())]));
    guest.send(&packet([1024, 5000], REQUEST, &[]));
    let (_from_guest, _) = listener.accept().unwrap();
    assert_eq!(operation(&guest.receive()), RESPONSE);

    let mut to_guest = UnixStream::connect(&path).unwrap();
    to_guest.set_read_timeout(Some(PATIENCE)).unwrap();
    to_guest.write_all(b"CONNECT 1025\n").unwrap();
    let request = guest.receive();
    assert_eq!(operation(&request), REQUEST);
    let host_port = u32::from_le_bytes([request[16], request[17], request[18], request[19]]);
    guest.send(&packet([1025, host_port], RESPONSE, &[]));
    let mut greeting = [0; 2];
    to_guest.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"OK");
}
