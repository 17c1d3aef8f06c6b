//! Back ends of rust-vmm's vhost-device project behind the front end: what they do for a driver, and what becomes of that when
//! they are killed and started again.
//!
//! They are looked for in the folder that `GVMM_VHOST_DEVICES` names, and on `PATH`; tests of those that are not there are
//! skipped. `cargo install --locked vhost-device-rng vhost-device-console vhost-device-vsock` installs them.

#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::{Buffer, FakeHost, PATIENCE, QueueDriver, VirtioHarness, wait_until};
use gvmm_plugin_api::virtio::{COMMON_FEATURES, VirtioDevice};
use gvmm_vhost::frontend;
use support::{operation, packet};

/// Where a driver has what it sends, and what it receives.
const OUT: u64 = VirtioHarness::DATA;
const IN: u64 = VirtioHarness::DATA + 65536;
/// Queues of consoles and of sockets alike.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The file of a back end, if it is installed.
fn installed(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GVMM_VHOST_DEVICES").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = folder.into_iter().chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    let found = found.into_iter().find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: {name} is neither in the folder GVMM_VHOST_DEVICES nor on PATH");
    }
    found
}

/// A running back end. Dropping it kills it.
struct BackEnd(Child);

impl BackEnd {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        Self(Command::new(program).args(arguments).spawn().unwrap())
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine with the device of a back end.
struct Machine {
    host: Arc<FakeHost>,
    device: Arc<dyn VirtioDevice>,
    harness: VirtioHarness,
}

impl Machine {
    /// A driver that accepts the features that every device may have, and `features`.
    fn connect(options: &[(&str, &str)], features: u64) -> Self {
        let given = [&[("wait", "60")], options].concat();
        let values = Values::check(frontend::options::Options::SPECS, given).unwrap();
        let host = Arc::new(FakeHost::default());
        let device = frontend::connect(&values, host.clone()).unwrap();
        let harness = VirtioHarness::new(device.clone(), COMMON_FEATURES | features);
        Self { host, device, harness }
    }

    fn metric(&self, name: &str) -> u64 {
        self.device.metrics().into_iter().find(|metric| metric.name == name).unwrap().value
    }

    /// The driver resets the device, whose first queues it uses.
    fn reset(&self, queues: u16) {
        for queue in 0..queues {
            assert!(self.device.stop_queue(queue).is_some());
        }
        self.device.reset();
    }

    fn send(&self, queue: &mut QueueDriver, data: &[u8]) {
        self.harness.memory().write(OUT, data);
        queue.request(&[Buffer::readable(OUT, data.len() as u32)]);
    }

    fn receive(&self, queue: &mut QueueDriver) -> Vec<u8> {
        let used = queue.request(&[Buffer::writable(IN, 4096)]);
        self.harness.memory().read(IN, used.len as usize)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn entropy_is_served_and_again_after_a_reset_when_its_back_end_has_returned() {
    let Some(program) = installed("vhost-device-rng") else { return };
    let folder = tempfile::tempdir().unwrap();
    // The program numbers its sockets.
    let (given, socket) = (folder.path().join("rng"), folder.path().join("rng0"));
    let start = || BackEnd::start(&program, &["--socket-path", text(&given)]);
    let back_end = start();
    let mut machine = Machine::connect(&[("type", "rng"), ("socket", text(&socket))], 0);
    let mut queue = machine.harness.start(0, 256);
    // Some more than the queue has entries.
    for _ in 0..300 {
        machine.harness.memory().write(IN, &[0; 4096]);
        let random = machine.receive(&mut queue);
        assert_eq!(random.len(), 4096);
        assert!(random.chunks(64).all(|chunk| chunk != [0; 64]));
    }
    let state = machine.harness.stop(0, &mut queue);
    assert_eq!((state.next_avail, state.next_used), (300, 300));
    machine.harness.resume(0, &mut queue, state);
    machine.receive(&mut queue);

    drop(back_end);
    wait_until("the loss", || machine.metric("connected") == 0);
    let _back_end = start();
    wait_until("the return", || machine.metric("connections") == 2);
    // Version 0.1.0 takes every used ring for a fresh one, so that its driver has to give it one.
    machine.reset(1);
    let mut queue = machine.harness.start(0, 256);
    assert_eq!(machine.receive(&mut queue).len(), 4096);
    assert_eq!(machine.host.failures(), [""; 0]);
}

/// Bytes of a packet before its data (virtio 1.2, 5.10.6).
const PACKET_HEADER: usize = 44;

/// Operations of packets (virtio 1.2, 5.10.6).
mod operations {
    pub(super) const REQUEST: u16 = 1;
    pub(super) const RESPONSE: u16 = 2;
    pub(super) const DATA: u16 = 5;
}

/// Waits for a packet that carries data; those about credit may come first.
fn receive_data(machine: &Machine, queue: &mut QueueDriver) -> Vec<u8> {
    loop {
        let packet = machine.receive(queue);
        if operation(&packet) == operations::DATA {
            return packet[PACKET_HEADER..].to_vec();
        }
    }
}

#[test]
fn sockets_pass_data_both_ways_and_can_be_opened_again_when_their_back_end_returns() {
    let Some(program) = installed("vhost-device-vsock") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (socket, ports) = (folder.path().join("socket"), folder.path().join("vm"));
    let arguments = ["--guest-cid", "3", "--socket", text(&socket), "--uds-path", text(&ports)];
    let start = || BackEnd::start(&program, &arguments);
    let back_end = start();
    let listener = UnixListener::bind(folder.path().join("vm_5000")).unwrap();
    // It keeps no notes, but uses buffers in their order.
    let options = [("type", "vsock"), ("socket", text(&socket)), ("in-order", "on")];
    let mut machine = Machine::connect(&options, 0);
    let mut cid = [0; 8];
    machine.device.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 3);

    let mut receive = machine.harness.start(RECEIVE, 256);
    let mut transmit = machine.harness.start(TRANSMIT, 256);
    machine.send(&mut transmit, &packet([1024, 5000], operations::REQUEST, &[]));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(operation(&machine.receive(&mut receive)), operations::RESPONSE);
    machine.send(&mut transmit, &packet([1024, 5000], operations::DATA, b"from the guest"));
    let mut data = [0; 14];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"from the guest");
    stream.write_all(b"from the host").unwrap();
    assert_eq!(receive_data(&machine, &mut receive), b"from the host");

    // A driver always has buffers out.
    receive.add(&[Buffer::writable(IN, 4096)]);
    receive.kick();
    drop(back_end);
    assert_eq!(stream.read(&mut data).unwrap(), 0);
    let _back_end = start();
    machine.send(&mut transmit, &packet([1025, 5000], operations::REQUEST, &[]));
    listener.accept().unwrap();
    let used = receive.wait_used();
    assert_eq!(operation(&machine.harness.memory().read(IN, used.len as usize)), operations::RESPONSE);
    assert_eq!(machine.metric("connections"), 2);
    assert_eq!(machine.host.failures(), [""; 0]);
}

/// `VIRTIO_CONSOLE_F_MULTIPORT` (virtio 1.2, 5.3.3).
const F_MULTIPORT: u64 = 1 << 1;
/// Entries of the queues of the back end for consoles.
const CONSOLE_QUEUE: u16 = 128;

/// Events of control messages (virtio 1.2, 5.3.6.2).
mod events {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// The driver of a console with one port.
struct Port {
    receive: QueueDriver,
    transmit: QueueDriver,
}

impl Port {
    /// Starts the queues, and does what a driver has to before its port is open.
    fn open(machine: &mut Machine) -> Self {
        let [receive, transmit, mut told, mut tell] =
            [0, 1, 2, 3].map(|index| machine.harness.start(index, CONSOLE_QUEUE));
        let mut say = |machine: &Machine, event: u16| {
            let message = [&0_u32.to_le_bytes()[..], &event.to_le_bytes(), &1_u16.to_le_bytes()].concat();
            machine.send(&mut tell, &message);
        };
        let mut hear = |machine: &Machine| {
            let message = machine.receive(&mut told);
            u16::from_le_bytes([message[4], message[5]])
        };
        say(machine, events::DEVICE_READY);
        assert_eq!(hear(machine), events::PORT_ADD);
        say(machine, events::PORT_READY);
        let heard = [(); 3].map(|()| hear(machine));
        assert_eq!(heard, [events::CONSOLE_PORT, events::PORT_NAME, events::PORT_OPEN]);
        Self { receive, transmit }
    }

    /// Passes a line out of the guest and a key into it.
    fn check(&mut self, machine: &Machine, terminal: &mut TcpStream) {
        machine.send(&mut self.transmit, b"out of the guest");
        let mut line = [0; 16];
        terminal.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"out of the guest");
        terminal.write_all(b"k").unwrap();
        assert_eq!(machine.receive(&mut self.receive), b"k");
    }
}

/// Connects to a port that somebody is about to listen on.
fn terminal(port: u16) -> TcpStream {
    let mut connected = None;
    wait_until("the terminal", || {
        connected = TcpStream::connect(("127.0.0.1", port)).ok();
        connected.is_some()
    });
    let terminal = connected.unwrap();
    terminal.set_read_timeout(Some(PATIENCE)).unwrap();
    terminal
}

#[test]
fn a_console_asks_for_a_reset_when_its_back_end_was_killed_and_works_after_it() {
    let Some(program) = installed("vhost-device-console") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (given, socket) = (folder.path().join("console"), folder.path().join("console0"));
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let number = port.to_string();
    let arguments = ["--socket-path", text(&given), "--backend", "network", "--tcp-port", &number];
    let start = || BackEnd::start(&program, &arguments);
    let back_end = start();
    let size = CONSOLE_QUEUE.to_string();
    let options = [("type", "console"), ("socket", text(&socket)), ("queue-size", &size)];
    let mut machine = Machine::connect(&options, F_MULTIPORT);
    assert_eq!(machine.device.traits().queue_sizes, [CONSOLE_QUEUE; 4]);
    let mut console = Port::open(&mut machine);
    console.check(&machine, &mut terminal(port));

    console.receive.add(&[Buffer::writable(IN, 4096)]);
    console.receive.kick();
    drop(back_end);
    wait_until("the failure", || !machine.host.failures().is_empty());
    assert_eq!(
        machine.host.failures(),
        ["the back end was lost with requests in flight in queues [0] and keeps no notes of them \
          (protocol feature INFLIGHT_SHMFD): the driver has to reset the device"]
    );
    let _back_end = start();
    wait_until("the return", || machine.metric("connected") == 1);
    machine.reset(4);
    let mut console = Port::open(&mut machine);
    console.check(&machine, &mut terminal(port));
    assert_eq!(machine.metric("resets_needed"), 1);
}
