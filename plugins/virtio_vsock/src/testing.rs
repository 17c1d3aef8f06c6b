//! A guest's driver for tests: sends and receives packets one by one.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::{Buffer, FakeHost, PATIENCE, QueueDriver, VirtioHarness};

use crate::Options;
use crate::device::{RECEIVE_QUEUE, TRANSMIT_QUEUE, VsockDevice};
use crate::packet::{HEADER, Header, Op, Ports};

pub(crate) const CID: u64 = 3;
/// Room that the test's guest has for each stream.
pub(crate) const ROOM: u32 = 64 << 10;
/// Guest addresses: a packet to send, then buffers to receive into.
const OUT: u64 = VirtioHarness::DATA;
const IN: u64 = VirtioHarness::DATA + (8 << 20);
const BUFFER: u32 = 4096 + HEADER as u32;

pub(crate) struct Guest {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) device: Arc<VsockDevice>,
    pub(crate) harness: VirtioHarness,
    pub(crate) rx: QueueDriver,
    pub(crate) tx: QueueDriver,
    buffers: HashMap<u16, u64>,
    folder: tempfile::TempDir,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.sock").display().to_string();
        let values = Values::check(Options::SPECS, [("socket", path.as_str())]).unwrap();
        let host = Arc::new(FakeHost::default());
        let options = Options::from_values(&values).unwrap();
        let device = Arc::new(VsockDevice::new(&options, host.services()).unwrap());
        let mut harness = VirtioHarness::new(device.clone(), u64::MAX);
        let (rx, tx) = (harness.start(RECEIVE_QUEUE, 64), harness.start(TRANSMIT_QUEUE, 64));
        let mut guest = Self { host, device, harness, rx, tx, buffers: HashMap::new(), folder };
        (0..64).for_each(|i| guest.give(IN + i * u64::from(BUFFER)));
        guest.rx.kick_if_wanted();
        guest
    }

    fn give(&mut self, address: u64) {
        let head = self.rx.add(&[Buffer::writable(address, BUFFER)]);
        self.buffers.insert(head, address);
    }

    /// The socket, or that of a port of the host.
    pub(crate) fn path(&self, port: Option<u32>) -> PathBuf {
        let suffix = port.map_or_else(String::new, |port| format!("_{port}"));
        self.folder.path().join(format!("vm.sock{suffix}"))
    }

    pub(crate) fn send_header(&mut self, header: Header, data: &[u8]) {
        let mut bytes = header.to_guest(CID);
        // From the guest to the host: addresses and ports the other way round.
        bytes[..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        self.harness.memory().write(OUT, &[&bytes[..], data].concat());
        self.tx.request(&[Buffer::readable(OUT, (HEADER + data.len()) as u32)]);
    }

    pub(crate) fn send(&mut self, ports: Ports, op: Op, data: &[u8]) {
        let len = data.len() as u32;
        self.send_header(Header { len, buf_alloc: ROOM, ..Header::new(ports, op) }, data);
    }

    /// The next packet.
    pub(crate) fn next(&mut self) -> (Header, Vec<u8>) {
        let used = self.rx.wait_used();
        let address = self.buffers.remove(&used.head).unwrap();
        let bytes = self.harness.memory().read(address, used.len as usize);
        self.give(address);
        self.rx.kick_if_wanted();
        let (header, data) = bytes.split_first_chunk::<HEADER>().unwrap();
        assert_eq!(header[..16], [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let mut turned = *header;
        turned[..16].rotate_left(8);
        turned[16..24].rotate_left(4);
        let header = Header::from_guest(&turned, CID).unwrap();
        assert_eq!(header.len as usize, data.len());
        (header, data.to_vec())
    }

    /// The next packet, which is this one.
    pub(crate) fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.next();
        assert_eq!(header.op, Some(op));
        header
    }

    /// A program of the host that has asked for a port, and the guest's answer.
    pub(crate) fn accept(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut program = program(UnixStream::connect(self.path(None)).unwrap());
        writeln!(program, "CONNECT {port}").unwrap();
        let ports = self.expect(Op::Request).ports;
        assert_eq!(ports.guest, port);
        self.send(ports, Op::Response, &[]);
        let mut line = String::new();
        BufReader::with_capacity(1, &program).read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", ports.host));
        (program, ports)
    }

    pub(crate) fn streams(&self) -> usize {
        self.device.shared.muxer().len()
    }
}

/// A socket that does not wait for ever.
pub(crate) fn program(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}
