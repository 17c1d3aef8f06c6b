//! A card on a socket pair, and the driver's side of its queues.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use gvmm_plugin_api::options::{OptionSet, Values};
use gvmm_plugin_api::testing::{Buffer, FakeHost, PATIENCE, QueueDriver, VirtioHarness};
use gvmm_plugin_api::virtio::VirtioDevice;

use crate::Options;
use crate::card::HEADER;
use crate::device::NetDevice;

/// Guest addresses: frames to send, then pages to receive into.
pub(crate) const OUT: u64 = VirtioHarness::DATA;
pub(crate) const IN: u64 = VirtioHarness::DATA + (8 << 20);

/// Options from words, as on the command line.
pub(crate) fn options(given: &[(&str, &str)]) -> Options {
    let values = Values::check(Options::SPECS, given.iter().copied()).unwrap();
    <Options as OptionSet>::from_values(&values).unwrap()
}

/// A device and its host.
pub(crate) struct Machine {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) device: Arc<NetDevice>,
    pub(crate) harness: VirtioHarness,
}

impl Machine {
    /// A card with these options, whose driver accepts these features.
    pub(crate) fn new(given: &[(&str, &str)], features: u64) -> Self {
        let host = Arc::new(FakeHost::default());
        let device = NetDevice::new(&options(given), host.services());
        let device = Arc::new(device.unwrap_or_else(|error| panic!("{error}")));
        let harness = VirtioHarness::new(device.clone(), features);
        Self { host, device, harness }
    }

    /// A card on an open descriptor.
    pub(crate) fn on(fd: impl Into<OwnedFd>, more: &[(&str, &str)], features: u64) -> Self {
        let fd = fd.into();
        let number = fd.as_raw_fd().to_string();
        let mut given = vec![("fd", number.as_str())];
        given.extend(more);
        Self::new(&given, features)
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.device.metrics().iter().find(|metric| metric.name == name).unwrap().value
    }

    /// Whether the configuration space shows a link.
    pub(crate) fn link_up(&self) -> bool {
        let mut status = [0; 2];
        self.device.read_config(6, &mut status);
        status[0] & 1 != 0
    }

    /// Puts a frame behind an empty header into guest memory; the buffer for it.
    pub(crate) fn outgoing(&self, frame: &[u8]) -> Buffer {
        self.harness.memory().write(OUT, &[0; HEADER]);
        self.harness.memory().write(OUT + HEADER as u64, frame);
        Buffer::readable(OUT, (HEADER + frame.len()) as u32)
    }
}

/// The receive queue with a number of buffers of the same size.
pub(crate) struct Receiver {
    pub(crate) queue: QueueDriver,
    buffers: Vec<(u16, u64)>,
    size: u32,
}

impl Receiver {
    pub(crate) fn start(machine: &mut Machine, index: u16, entries: u16, size: u32) -> Self {
        let queue = machine.harness.start(index, entries);
        let mut receiver = Self { queue, buffers: Vec::new(), size };
        for i in 0..entries {
            receiver.give(IN + u64::from(i) * u64::from(size));
        }
        receiver.queue.kick_if_wanted();
        receiver
    }

    fn give(&mut self, address: u64) {
        let head = self.queue.add(&[Buffer::writable(address, self.size)]);
        self.buffers.push((head, address));
    }

    /// Receives a frame: its header, itself, and how many buffers it was in.
    pub(crate) fn receive(&mut self, machine: &Machine) -> (Vec<u8>, Vec<u8>, usize) {
        let mut data = Vec::new();
        let mut count = 0;
        let mut wanted = 1;
        while count < wanted {
            let used = self.queue.wait_used();
            let at = self.buffers.iter().position(|(head, _)| *head == used.head).unwrap();
            let (_, address) = self.buffers.swap_remove(at);
            data.extend(machine.harness.memory().read(address, used.len as usize));
            if count == 0 {
                wanted = usize::from(u16::from_le_bytes([data[10], data[11]]));
            }
            count += 1;
            self.give(address);
        }
        self.queue.kick_if_wanted();
        let frame = data.split_off(HEADER);
        (data, frame, count)
    }
}

/// A frame of a length, to an address, with content that depends on a number.
pub(crate) fn frame(to: [u8; 6], len: usize, number: u64) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len as u64).map(|i| (i * 7 + number * 13 + i / 251) as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame
}

/// The far end of a stream.
pub(crate) struct Peer(pub(crate) UnixStream);

impl Peer {
    /// A pair of a peer and the card's end.
    pub(crate) fn pair() -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        (Self(ours), theirs)
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.0.write_all(frame).unwrap();
    }

    /// The next frame of the guest, behind the one by which the card makes itself known.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let frame = self.receive_any();
        if frame[12..14] == [0x80, 0x35] { self.receive_any() } else { frame }
    }

    pub(crate) fn receive_any(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }
}
