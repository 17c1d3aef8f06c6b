//! Tests of the device through the test kit.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use gvmm_plugin_api::options::Values;
use gvmm_plugin_api::testing::{FakeHost, wait_until};
use gvmm_plugin_api::virtio::VirtioDevice;
use proptest::prelude::*;

use crate::Options;
use crate::connection::BUFFER;
use crate::device::VsockDevice;
use crate::packet::{Header, Op, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::testing::{Guest, ROOM, program};

const PORTS: Ports = Ports { host: 5000, guest: 1234 };

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// A program that listens at a port of the host, connected to the guest.
fn connect(guest: &mut Guest) -> UnixStream {
    let listener = UnixListener::bind(guest.path(Some(PORTS.host))).unwrap();
    guest.send(PORTS, Op::Request, &[]);
    let answer = guest.expect(Op::Response);
    assert_eq!((answer.ports, answer.buf_alloc), (PORTS, BUFFER));
    program(listener.accept().unwrap().0)
}

fn end(guest: &mut Guest, ports: Ports, flags: u32) {
    guest.send_header(Header { flags, buf_alloc: ROOM, ..Header::new(ports, Op::Shutdown) }, &[]);
}

#[test]
fn the_guest_sees_its_address() {
    let guest = Guest::new();
    let traits = guest.device.traits();
    assert_eq!((traits.device_type, traits.queue_sizes.len(), traits.config_size), (19, 3, 8));
    let mut cid = [0xff; 8];
    guest.device.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 3);
}

#[test]
fn a_program_of_the_host_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.accept(1024);
    program.write_all(b"hello guest").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, header.ports, &data[..]), (Some(Op::Data), ports, &b"hello guest"[..]));
    guest.send(ports, Op::Data, b"hello host");
    let mut answer = [0; 10];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello host");
}

#[test]
fn the_guest_reaches_a_program_that_listens() {
    let mut guest = Guest::new();
    let mut program = connect(&mut guest);
    guest.send(PORTS, Op::Data, b"question");
    let mut question = [0; 8];
    program.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.next().1, b"answer");
}

#[test]
fn a_port_nobody_listens_at_is_refused() {
    let mut guest = Guest::new();
    guest.send(PORTS, Op::Request, &[]);
    assert_eq!(guest.expect(Op::Reset).ports, PORTS);
    // The same of the guest: the program is hung up on.
    let mut program = program(UnixStream::connect(guest.path(None)).unwrap());
    writeln!(program, "CONNECT 7").unwrap();
    let ports = guest.expect(Op::Request).ports;
    guest.send(ports, Op::Reset, &[]);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(guest.streams(), 0);
}

#[test]
fn data_beyond_the_guests_room_waits_for_credit() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.accept(1024);
    let all = pattern(3 * ROOM as usize);
    let sent = all.clone();
    let writer = std::thread::spawn(move || {
        program.write_all(&sent).unwrap();
        program
    });
    let mut received = Vec::new();
    let mut asked = 0;
    while received.len() < all.len() {
        let (header, data) = guest.next();
        received.extend(data);
        match header.op {
            Some(Op::CreditRequest) => {
                asked += 1;
                assert_eq!(received.len(), asked * ROOM as usize, "no more than there is room for");
                let fwd_cnt = received.len() as u32;
                let update = Header { buf_alloc: ROOM, fwd_cnt, ..Header::new(ports, Op::CreditUpdate) };
                guest.send_header(update, &[]);
            }
            op => assert_eq!(op, Some(Op::Data)),
        }
    }
    assert!(received == all);
    writer.join().unwrap();
}

#[test]
fn data_that_the_program_does_not_take_waits_and_the_guest_learns_of_new_room() {
    let mut guest = Guest::new();
    let mut program = connect(&mut guest);
    // The sockets take some, the device the rest, as far as the guest was told that there is room.
    let (mut sent, mut known, mut room) = (0_u32, 0_u32, BUFFER);
    let piece = pattern(4096);
    let mut received = 0;
    for _ in 0..400 {
        while sent - known + 4096 > room {
            let mut data = vec![0; 1 << 16];
            received += program.read(&mut data).unwrap();
            while guest.streams() == 1 && sent - known + 4096 > room {
                let (header, _) = guest.next();
                assert_eq!(header.op, Some(Op::CreditUpdate));
                (known, room) = (header.fwd_cnt, header.buf_alloc);
            }
        }
        guest.send(PORTS, Op::Data, &piece);
        sent += 4096;
    }
    end(&mut guest, PORTS, SHUTDOWN_SEND);
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert_eq!(received + rest.len(), sent as usize);
    assert_eq!(guest.host.failures(), [""; 0]);
}

#[test]
fn each_half_ends_by_itself() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.accept(1024);
    program.write_all(b"last words").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().1, b"last words");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    // The other half goes on.
    guest.send(ports, Op::Data, b"still there");
    end(&mut guest, ports, SHUTDOWN_SEND);
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"still there");
    guest.expect(Op::Reset);
    assert_eq!(guest.streams(), 0);
}

#[test]
fn the_guest_may_end_first() {
    let mut guest = Guest::new();
    let mut program = connect(&mut guest);
    guest.send(PORTS, Op::Data, b"question");
    end(&mut guest, PORTS, SHUTDOWN_SEND);
    let mut question = Vec::new();
    program.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.next().1, b"answer");
    drop(program);
    // What is left is the end, told in one way or another.
    while guest.streams() > 0 || guest.next().0.op != Some(Op::Reset) {}
}

#[test]
fn a_program_that_goes_away_ends_the_stream_after_its_data() {
    let mut guest = Guest::new();
    let (mut program, _) = guest.accept(1024);
    let all = pattern(20_000);
    program.write_all(&all).unwrap();
    drop(program);
    let mut received = Vec::new();
    loop {
        let (header, data) = guest.next();
        if header.op != Some(Op::Data) {
            assert_eq!((header.op, header.flags), (Some(Op::Shutdown), SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
            break;
        }
        received.extend(data);
    }
    assert!(received == all);
    guest.expect(Op::Reset);
    assert_eq!(guest.streams(), 0);
}

#[test]
fn a_closed_socket_of_the_guest_is_acknowledged() {
    let mut guest = Guest::new();
    let mut program = connect(&mut guest);
    end(&mut guest, PORTS, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    guest.expect(Op::Reset);
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn many_streams_at_once_keep_their_data_apart() {
    let mut guest = Guest::new();
    let mut streams: Vec<_> = (0..100).map(|i| guest.accept(1000 + i)).collect();
    for (i, (program, _)) in streams.iter_mut().enumerate() {
        program.write_all(&[i as u8; 10]).unwrap();
    }
    for _ in 0..100 {
        let (header, data) = guest.next();
        assert_eq!(data, [(header.ports.guest - 1000) as u8; 10]);
    }
    assert_eq!(guest.streams(), 100);
    guest.device.stop_queue(0);
    guest.device.stop_queue(1);
    guest.device.reset();
    for (program, _) in &mut streams {
        assert_eq!(program.read(&mut [0]).unwrap(), 0, "a reset ends all streams");
    }
}

#[test]
fn what_a_driver_may_not_send_ends_the_stream_it_is_about() {
    let mut guest = Guest::new();
    let _program = connect(&mut guest);
    let more = Header { len: 8, buf_alloc: ROOM, ..Header::new(PORTS, Op::Data) };
    // More than there is: ignored.
    guest.send_header(more, b"1234");
    guest.send_header(Header { op: None, len: 0, ..more }, &[]);
    assert_eq!(guest.expect(Op::Reset).ports, PORTS);
    guest.send(PORTS, Op::Data, b"1234");
    guest.expect(Op::Reset);
    guest.send_header(Header { kind: 2, ..Header::new(PORTS, Op::Request) }, &[]);
    guest.expect(Op::Reset);
    guest.send(PORTS, Op::Reset, &[]);
    guest.send(PORTS, Op::Shutdown, &[]);
    guest.expect(Op::Reset);
    assert_eq!(guest.host.failures(), [""; 0]);
}

#[test]
fn the_socket_is_made_and_removed_and_belongs_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.sock");
    let new = || {
        let given = [("socket", path.to_str().unwrap())];
        let options = Options::from_values(&Values::check(Options::SPECS, given).unwrap()).unwrap();
        VsockDevice::new(&options, std::sync::Arc::new(FakeHost::default()).services())
    };
    // What a gvmm that was killed has left.
    drop(UnixListener::bind(&path).unwrap());
    let first = new().unwrap();
    let error = new().unwrap_err();
    assert!(error.contains("another gvmm listens there"), "{error}");
    assert!(path.exists());
    drop(first);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec(
            (0..3_u32, 0..3_u32, prop::option::of(0..7_usize), 0..4_u32, any::<u32>(), any::<u32>(), 0..3000_usize),
            1..40,
        ),
    ) {
        let ops = [
            Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest,
        ];
        let mut guest = Guest::new();
        let _listener = UnixListener::bind(guest.path(Some(1))).unwrap();
        for (host, port, op, flags, buf_alloc, fwd_cnt, len) in packets {
            let ports = Ports { host, guest: port.wrapping_sub(1) };
            let op = op.map(|op| ops[op]);
            let header = Header { op, flags, buf_alloc, fwd_cnt, len: len as u32, ..Header::new(ports, Op::Data) };
            guest.send_header(header, &pattern(len));
            while guest.rx.poll_used().is_some() {}
        }
        prop_assert_eq!(guest.host.failures(), [""; 0]);
    }

    #[test]
    fn any_descriptors_are_survived(
        index in 0..3_u16,
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0..8_u16, 0..17_u16, any::<bool>()), 16),
        heads in prop::collection::vec(0..17_u16, 1..16),
    ) {
        let mut guest = Guest::new();
        guest.device.stop_queue(index);
        let mut queue = guest.harness.start(index, 16);
        for (slot, (address, len, flags, next, near)) in (0..).zip(table) {
            let (address, len) = if near { (0x8010_0000 + address % (1 << 20), len % 5000) } else { (address, len) };
            queue.descriptor(slot, address, len, flags, next);
        }
        heads.iter().for_each(|&head| queue.offer(head));
        queue.kick();
        let mut program = UnixStream::connect(guest.path(None)).unwrap();
        writeln!(program, "CONNECT 1").unwrap();
        wait_until("the program to be seen", || guest.streams() > 0 || !guest.host.failures().is_empty());
        guest.device.stop_queue(index);
        prop_assert!(!guest.host.failures().iter().any(|failure| failure.contains("panicked")));
    }
}
