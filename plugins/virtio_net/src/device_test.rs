//! Tests of the card through the test kit, on socket pairs.

use std::os::unix::net::{UnixDatagram, UnixListener};

use gvmm_plugin_api::testing::{Buffer, FakeHost, PATIENCE, wait_until};
use gvmm_plugin_api::virtio::VirtioDevice;

use crate::card::{HEADER, MAX_FRAME};
use crate::config;
use crate::device::NetDevice;
use crate::testing::{IN, Machine, OUT, Peer, Receiver, frame, options};

const RX: u16 = 0;
const TX: u16 = 1;
const ALL: u64 = u64::MAX;
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn refusal(given: &[(&str, &str)]) -> String {
    let host = std::sync::Arc::new(FakeHost::default());
    NetDevice::new(&options(given), host.services()).err().unwrap().to_string()
}

#[test]
fn options_that_do_not_fit_are_refused_with_what_would() {
    assert!(refusal(&[]).starts_with("no back end: add one of tap=NAME"));
    assert_eq!(refusal(&[("tap", "a"), ("user", "on")]), "tap and user are two back ends: leave one out");
    assert_eq!(refusal(&[("fd", "0"), ("tcp", "1:2")]), "option 'tcp' is for the back end 'user' alone");
    assert!(refusal(&[("fd", "0"), ("queues", "2")]).contains("one pair"));
    assert!(refusal(&[("fd", "0"), ("mac", "01:00:00:00:00:00")]).contains("52:54:00:12:34:56"));
    assert!(refusal(&[("fd", "0"), ("queue-size", "100")]).contains("64 and 128 are"));
    assert!(refusal(&[("tap", "a name")]).contains("no name of an interface"));
    let missing = refusal(&[("socket", "/no/such/socket")]);
    assert!(missing.starts_with("socket=/no/such/socket: cannot connect"), "{missing}");
}

#[test]
fn the_guest_sees_address_mtu_speed_and_queues() {
    let (_peer, end) = Peer::pair();
    let more = [("mac", "02:00:00:00:00:01"), ("mtu", "9000"), ("speed", "2500"), ("queue-size", "64")];
    let machine = Machine::on(end, &more, ALL);
    let traits = machine.device.traits();
    assert_eq!((traits.device_type, traits.queue_sizes), (1, vec![64, 64, 64]));
    assert_eq!(traits.features & (config::F_CSUM | config::F_MQ), 0, "a stream has no offloads");
    let mut bytes = vec![0xff; traits.config_size as usize];
    machine.device.read_config(0, &mut bytes);
    assert_eq!(bytes[..8], [2, 0, 0, 0, 0, 1, 1, 0]);
    assert_eq!(bytes[10..17], [0x28, 0x23, 0xc4, 9, 0, 0, 1]);
    for offset in 0..bytes.len() {
        let mut part = vec![0xff; bytes.len() - offset];
        machine.device.read_config(offset as u32, &mut part);
        assert_eq!(part, bytes[offset..]);
    }
}

#[test]
fn frames_of_all_sizes_pass_a_stream_in_both_directions() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut tx = machine.harness.start(TX, 16);
    let mut rx = Receiver::start(&mut machine, RX, 64, 2048);
    for (number, len) in [14, 60, 1514, 2036, 2037, 9000, 65535, MAX_FRAME].into_iter().enumerate() {
        let sent = frame(GUEST, len, number as u64);
        let buffer = machine.outgoing(&sent);
        tx.request(&[buffer]);
        assert!(peer.receive() == sent, "{len} bytes to the host");
        peer.send(&sent);
        let (header, received, buffers) = rx.receive(&machine);
        assert!(received == sent, "{len} bytes to the guest");
        assert_eq!(header[..10], [0; 10]);
        assert_eq!(buffers, (HEADER + len).div_ceil(2048));
    }
    assert_eq!((machine.metric("tx_frames"), machine.metric("rx_frames")), (8, 8));
    assert_eq!(machine.host.failures(), [""; 0]);
}

#[test]
fn a_frame_may_be_in_many_pieces_and_its_header_too() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut tx = machine.harness.start(TX, 16);
    let sent = frame(GUEST, 100, 1);
    machine.outgoing(&sent);
    tx.request(&[Buffer::readable(OUT, 5), Buffer::readable(OUT + 5, 10), Buffer::readable(OUT + 15, 97)]);
    assert_eq!(peer.receive(), sent);
}

#[test]
fn many_frames_pass_while_neither_side_waits_for_the_other() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut tx = machine.harness.start(TX, 256);
    let mut rx = Receiver::start(&mut machine, RX, 128, 1600);
    let mut other = Peer(peer.0.try_clone().unwrap());
    // More than sockets and queues hold.
    let count = 3000;
    std::thread::scope(|scope| {
        scope.spawn(move || (0..count).for_each(|number| peer.send(&frame(GUEST, 1514, number))));
        scope.spawn(move || {
            (0..count).for_each(|number| assert!(other.receive() == frame(GUEST, 1514, number), "{number}"));
        });
        let memory = machine.harness.memory();
        let mut answered = 0;
        for number in 0..count {
            // A place of its own for each frame that may be on its way.
            let at = OUT + number % 256 * 2048;
            if number >= 256 {
                tx.wait_used();
                answered += 1;
            }
            memory.write(at + HEADER as u64, &frame(GUEST, 1514, number));
            tx.add(&[Buffer::readable(at, HEADER as u32 + 1514)]);
            tx.kick_if_wanted();
            assert!(rx.receive(&machine).1 == frame(GUEST, 1514, number), "{number}");
        }
        for _ in answered..count {
            tx.wait_used();
        }
    });
    assert_eq!(machine.metric("tx_dropped") + machine.metric("rx_dropped"), 0);
}

#[test]
fn a_driver_without_mergeable_buffers_gets_what_fits_in_one() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL & !config::F_MRG_RXBUF);
    let mut rx = Receiver::start(&mut machine, RX, 8, 1526);
    peer.send(&frame(GUEST, 3000, 1));
    peer.send(&frame(GUEST, 1514, 2));
    let (header, received, buffers) = rx.receive(&machine);
    assert_eq!((header[10], buffers), (1, 1));
    assert!(received == frame(GUEST, 1514, 2));
    assert_eq!(machine.metric("rx_dropped"), 1);
}

#[test]
fn frames_wait_for_buffers() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut rx = machine.harness.start(RX, 8);
    peer.send(&frame(GUEST, 1000, 1));
    rx.add(&[Buffer::writable(IN, 600)]);
    rx.kick_if_wanted();
    wait_until("the first buffer to be taken", || {
        // The device asks for a kick when it has too little.
        std::thread::yield_now();
        rx.poll_used().is_none()
    });
    rx.add(&[Buffer::writable(IN + 4096, 600)]);
    rx.kick_if_wanted();
    assert_eq!((rx.wait_used().len, rx.wait_used().len), (600, 412));
}

#[test]
fn the_receive_queue_hands_back_what_it_holds_when_it_stops() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut rx = Receiver::start(&mut machine, RX, 32, 2048);
    peer.send(&frame(GUEST, 60, 1));
    rx.receive(&machine);
    let state = machine.harness.stop(RX, &mut rx.queue);
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    peer.send(&frame(GUEST, 61, 2));
    machine.harness.resume(RX, &mut rx.queue, state);
    assert!(rx.receive(&machine).1 == frame(GUEST, 61, 2));
}

#[test]
fn half_a_frame_is_kept_while_the_queue_is_stopped() {
    let (mut peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut rx = Receiver::start(&mut machine, RX, 32, 2048);
    peer.send(&frame(GUEST, 60, 1));
    let whole = frame(GUEST, 1000, 2);
    std::io::Write::write_all(&mut peer.0, &1000_u32.to_be_bytes()).unwrap();
    std::io::Write::write_all(&mut peer.0, &whole[..300]).unwrap();
    rx.receive(&machine);
    let state = machine.harness.stop(RX, &mut rx.queue);
    machine.harness.resume(RX, &mut rx.queue, state);
    std::io::Write::write_all(&mut peer.0, &whole[300..]).unwrap();
    assert!(rx.receive(&machine).1 == whole);
}

#[test]
fn datagrams_are_frames() {
    let (peer, end) = UnixDatagram::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut machine = Machine::on(end, &[], ALL);
    let mut tx = machine.harness.start(TX, 16);
    let mut rx = Receiver::start(&mut machine, RX, 64, 2048);
    for (number, len) in [14, 1514, 5000, 65535].into_iter().enumerate() {
        let sent = frame(GUEST, len, number as u64);
        let buffer = machine.outgoing(&sent);
        tx.request(&[buffer]);
        let mut data = vec![0; MAX_FRAME];
        let received = peer.recv(&mut data).unwrap();
        assert!(data[..received] == sent, "{len} bytes to the host");
        peer.send(&sent).unwrap();
        assert!(rx.receive(&machine).1 == sent, "{len} bytes to the guest");
    }
    peer.send(&[]).unwrap();
    peer.send(&[1; 13]).unwrap();
    peer.send(&frame(GUEST, 20, 9)).unwrap();
    assert_eq!(rx.receive(&machine).1, frame(GUEST, 20, 9));
    assert_eq!(machine.metric("rx_dropped"), 2);
}

#[test]
fn datagrams_that_the_other_end_does_not_take_yet_wait() {
    let (peer, end) = UnixDatagram::pair().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut machine = Machine::on(end, &[], ALL);
    let mut tx = machine.harness.start(TX, 256);
    let buffer = machine.outgoing(&frame(GUEST, 1514, 1));
    for _ in 0..256 {
        tx.add(&[buffer]);
    }
    tx.kick_if_wanted();
    let mut data = vec![0; MAX_FRAME];
    for _ in 0..256 {
        assert_eq!(peer.recv(&mut data).unwrap(), 1514);
        tx.wait_used();
    }
    assert_eq!(machine.metric("tx_dropped"), 0);
}

#[test]
fn small_buffers_take_datagrams_through_a_detour() {
    let (peer, end) = UnixDatagram::pair().unwrap();
    let mut machine = Machine::on(end, &[], ALL);
    let mut rx = Receiver::start(&mut machine, RX, 4, 512);
    peer.send(&frame(GUEST, 1900, 1)).unwrap();
    let (_, received, buffers) = rx.receive(&machine);
    assert!(received == frame(GUEST, 1900, 1));
    assert_eq!(buffers, 4);
    // Longer than all buffers that the driver has.
    peer.send(&frame(GUEST, 3000, 2)).unwrap();
    peer.send(&frame(GUEST, 100, 3)).unwrap();
    assert!(rx.receive(&machine).1 == frame(GUEST, 100, 3));
    assert_eq!(machine.metric("rx_dropped"), 1);
}

#[test]
fn the_link_goes_down_with_the_connection_and_comes_back_with_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut machine = Machine::new(&[("socket", path.to_str().unwrap()), ("mac", "02:00:00:00:00:01")], ALL);
    let mut tx = machine.harness.start(TX, 16);
    let mut rx = Receiver::start(&mut machine, RX, 64, 2048);
    assert!(machine.link_up());
    for round in 0..3 {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer(stream);
        wait_until("the link", || machine.link_up());
        assert_eq!(peer.receive_any()[6..14], [2, 0, 0, 0, 0, 1, 0x80, 0x35], "the card makes itself known");
        let sent = frame(GUEST, 100, round);
        let buffer = machine.outgoing(&sent);
        tx.request(&[buffer]);
        assert_eq!(peer.receive(), sent);
        peer.send(&sent);
        assert_eq!(rx.receive(&machine).1, sent);
        // Half a frame: the rest never comes.
        std::io::Write::write_all(&mut peer.0, &[0, 0, 1, 0, 7, 7]).unwrap();
        let changes = machine.host.config_changes();
        drop(peer);
        wait_until("the news of the loss", || machine.host.config_changes() > changes);
    }
    assert_eq!(machine.host.failures(), [""; 0]);
}

#[test]
fn frames_sent_without_a_link_are_lost_and_the_guest_goes_on() {
    let (peer, end) = Peer::pair();
    let mut machine = Machine::on(end, &[], ALL);
    let mut tx = machine.harness.start(TX, 64);
    let _rx = Receiver::start(&mut machine, RX, 64, 2048);
    let buffer = machine.outgoing(&frame(GUEST, 60_000, 1));
    // Nobody reads: the rest waits in the queue.
    for _ in 0..64 {
        tx.add(&[buffer]);
    }
    tx.kick_if_wanted();
    wait_until("frames on their way", || machine.metric("tx_frames") > 3);
    drop(peer);
    for _ in 0..64 {
        tx.wait_used();
    }
    wait_until("the link to be down", || !machine.link_up());
    tx.request(&[buffer]);
    assert!(machine.metric("tx_dropped") > 0);
}

#[test]
fn a_peer_that_announces_an_impossible_frame_is_left() {
    // By itself, and with a good frame before it that is read at the same time.
    for good in [vec![], [&60_u32.to_be_bytes()[..], &frame(GUEST, 60, 1)].concat()] {
        let (mut peer, end) = Peer::pair();
        let mut machine = Machine::on(end, &[], ALL);
        let _rx = Receiver::start(&mut machine, RX, 64, 2048);
        peer.receive_any();
        std::io::Write::write_all(&mut peer.0, &[&good[..], &[0xff; 64]].concat()).unwrap();
        wait_until("the link to be down", || !machine.link_up());
        assert_eq!(std::io::Read::read(&mut peer.0, &mut [0; 8]).unwrap(), 0, "the connection is closed");
        assert_eq!(machine.host.failures(), [""; 0]);
    }
}
