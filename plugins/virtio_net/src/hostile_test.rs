//! What a driver or a peer may do at worst: nothing here may panic, hang, or stop the worker for good.

use std::io::Write;
use std::os::unix::net::UnixDatagram;

use gvmm_plugin_api::testing::{Buffer, VirtioHarness, wait_until};
use gvmm_plugin_api::virtio::VirtioDevice;
use proptest::prelude::*;

use crate::testing::{Machine, Peer, Receiver, frame};

const DATA: u64 = VirtioHarness::DATA;
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A card on a datagram socket or on a stream.
fn machine(stream: bool) -> (Machine, Box<dyn std::any::Any>) {
    if stream {
        let (peer, end) = Peer::pair();
        (Machine::on(end, &[], u64::MAX), Box::new(peer))
    } else {
        let (peer, end) = UnixDatagram::pair().unwrap();
        for number in 0..4 {
            peer.send(&frame(GUEST, 1514, number)).unwrap();
        }
        (Machine::on(end, &[], u64::MAX), Box::new(peer))
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..0x20_0000_u64).prop_map(|offset| DATA + offset),
        1 => (0..64_u64).prop_map(|offset| 0x8000_0000 + (32 << 20) - offset),
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..3000_u32, 2 => 60_000..70_000_u32, 1 => any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_descriptors_are_survived_on_every_queue(
        index in 0..3_u16,
        stream in any::<bool>(),
        table in prop::collection::vec((address(), length(), 0..8_u16, 0..17_u16), 16),
        heads in prop::collection::vec(0..17_u16, 1..16),
    ) {
        let (mut machine, peer) = machine(stream);
        let mut queue = machine.harness.start(index, 16);
        for (index, (address, len, flags, next)) in (0..).zip(table) {
            queue.descriptor(index, address, len, flags, next);
        }
        heads.iter().for_each(|&head| queue.offer(head));
        queue.kick();
        // Whatever was made of it, the queue can be stopped and the device goes on or has said why not.
        machine.device.stop_queue(index);
        prop_assert!(!machine.host.failures().iter().any(|failure| failure.contains("panicked")));
        machine.device.reset();
        drop(peer);
    }

    #[test]
    fn any_frames_of_the_guest_are_given_back(
        stream in any::<bool>(),
        requests in prop::collection::vec(prop::collection::vec((0..0x20_0000_u64, length()), 1..5), 1..20),
    ) {
        let (mut machine, peer) = machine(stream);
        let mut queue = machine.harness.start(1, 128);
        let mut count = 0;
        for buffers in requests {
            let buffers: Vec<_> =
                buffers.iter().map(|(offset, len)| Buffer::readable(DATA + offset, len % 70_000)).collect();
            queue.add(&buffers);
            count += 1;
        }
        // Nobody reads: once the other end is gone, all that waits is dropped.
        drop(peer);
        let _receiver = Receiver::start(&mut machine, 0, 16, 2048);
        queue.kick();
        let mut used = 0;
        wait_until("all requests", || {
            used += usize::from(queue.poll_used().is_some());
            used == count
        });
        prop_assert_eq!(machine.host.failures(), [""; 0]);
    }

    #[test]
    fn any_bytes_on_a_stream_end_the_link_at_worst(
        bytes in prop::collection::vec(any::<u8>(), 1..4096),
        lengths in prop::collection::vec(0..200_u32, 0..20),
    ) {
        let (mut peer, end) = Peer::pair();
        let mut machine = Machine::on(end, &[], u64::MAX);
        let _receiver = Receiver::start(&mut machine, 0, 64, 2048);
        for len in lengths {
            peer.send(&bytes[..bytes.len().min(len as usize)]);
        }
        // The card may have hung up by now.
        let _ = peer.0.write_all(&bytes);
        drop(peer);
        wait_until("the end of the link", || !machine.link_up());
        prop_assert_eq!(machine.host.failures(), [""; 0]);
    }
}
