//! Tests of the control queue through the test kit.

use std::os::unix::net::UnixDatagram;

use gvmm_plugin_api::testing::{Buffer, QueueDriver, wait_until};
use gvmm_plugin_api::virtio::VirtioDevice;

use crate::config::{F_CTRL_RX_EXTRA, F_MQ};
use crate::control::{
    ERR, GUEST_OFFLOADS_CLASS, GUEST_OFFLOADS_SET, MAC, MAC_ADDR_SET, MAC_TABLE_SET, MQ, MQ_VQ_PAIRS_SET, OK,
    RX,
};
use crate::testing::{Machine, OUT, Receiver, frame};

const CONTROL: u16 = 2;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

struct Bench {
    machine: Machine,
    control: QueueDriver,
    peer: UnixDatagram,
}

impl Bench {
    fn new(features: u64) -> Self {
        let (peer, end) = UnixDatagram::pair().unwrap();
        let mut machine = Machine::on(end, &[("mac", "02:00:00:00:00:01")], features);
        let control = machine.harness.start(CONTROL, 16);
        Self { machine, control, peer }
    }

    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let request = [&[class, command], data].concat();
        let memory = self.machine.harness.memory();
        memory.write(OUT, &request);
        memory.write(OUT + 65536, &[0xff]);
        let buffers = [Buffer::readable(OUT, request.len() as u32), Buffer::writable(OUT + 65536, 1)];
        assert_eq!(self.control.request(&buffers).len, 1);
        self.machine.harness.memory().read(OUT + 65536, 1)[0]
    }

    /// Which of the destinations reach the guest.
    fn received(&mut self, receiver: &mut Receiver, to: &[[u8; 6]]) -> Vec<[u8; 6]> {
        for destination in to {
            self.peer.send(&frame(*destination, 60, 0)).unwrap();
        }
        // The mark at the end.
        self.peer.send(&frame(OWN, 61, 0)).unwrap();
        let mut received = Vec::new();
        loop {
            let (_, frame, _) = receiver.receive(&self.machine);
            if frame.len() == 61 {
                return received;
            }
            received.push(*frame.first_chunk::<6>().unwrap());
        }
    }
}

fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let part = |list: &[[u8; 6]]| [&(list.len() as u32).to_le_bytes()[..], &list.concat()].concat();
    [part(unicast), part(multicast)].concat()
}

#[test]
fn modes_and_tables_decide_which_frames_arrive() {
    let mut bench = Bench::new(u64::MAX);
    let mut rx = Receiver::start(&mut bench.machine, 0, 64, 2048);
    let all = [OTHER, GROUP, [0xff; 6]];
    assert_eq!(bench.received(&mut rx, &all), all, "all before the driver says anything");
    assert_eq!(bench.command(RX, 0, &[0]), OK);
    assert_eq!(bench.received(&mut rx, &all), [[0xff; 6]]);
    assert_eq!(bench.command(MAC, MAC_TABLE_SET, &table(&[OTHER], &[GROUP])), OK);
    assert_eq!(bench.received(&mut rx, &all), all);
    assert_eq!(bench.command(MAC, MAC_TABLE_SET, &table(&[], &[])), OK);
    assert_eq!(bench.command(RX, 1, &[1]), OK);
    assert_eq!(bench.command(RX, 5, &[1]), OK);
    assert_eq!(bench.received(&mut rx, &all), [GROUP]);
    let filtered = &bench.machine;
    wait_until("the count", || filtered.metric("rx_filtered") == 4);
    bench.machine.device.reset();
    assert_eq!(bench.received(&mut rx, &all), all, "a reset opens the filter");
}

#[test]
fn the_driver_sets_its_address_and_a_reset_takes_it_back() {
    let mut bench = Bench::new(u64::MAX);
    let address = |bench: &Bench| {
        let mut bytes = [0; 6];
        bench.machine.device.read_config(0, &mut bytes);
        bytes
    };
    assert_eq!(bench.command(MAC, MAC_ADDR_SET, &OTHER), OK);
    assert_eq!(address(&bench), OTHER);
    assert_eq!(bench.command(MAC, MAC_ADDR_SET, &GROUP), ERR);
    assert_eq!(bench.command(MAC, MAC_ADDR_SET, &OTHER[..5]), ERR);
    assert_eq!(address(&bench), OTHER);
    bench.machine.device.reset();
    assert_eq!(address(&bench), OWN);
}

#[test]
fn what_was_not_agreed_or_makes_no_sense_is_refused() {
    let mut bench = Bench::new(!F_CTRL_RX_EXTRA);
    assert_eq!(bench.machine.device.traits().features & F_MQ, 0);
    for (class, command, data) in [
        (RX, 2, &[1][..]),
        (RX, 9, &[1]),
        (RX, 0, &[]),
        (MQ, MQ_VQ_PAIRS_SET, &[1, 0]),
        (GUEST_OFFLOADS_CLASS, GUEST_OFFLOADS_SET, &[0; 8]),
        (77, 0, &[0; 8]),
        (MAC, 9, &[0; 8]),
        (MAC, MAC_TABLE_SET, &[0, 0, 0, 0]),
        (MAC, MAC_TABLE_SET, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
    ] {
        assert_eq!(bench.command(class, command, data), ERR, "class {class} command {command}");
    }
    let long = table(&[OTHER; 100], &[GROUP; 1000]);
    assert_eq!(bench.command(MAC, MAC_TABLE_SET, &long), OK, "a long table is kept as: all");
}

#[test]
fn a_request_without_data_or_without_room_for_an_answer_is_given_back() {
    let mut bench = Bench::new(u64::MAX);
    assert_eq!(bench.control.request(&[Buffer::writable(OUT, 1)]).len, 1);
    assert_eq!(bench.machine.harness.memory().read(OUT, 1), [ERR]);
    assert_eq!(bench.control.request(&[Buffer::readable(OUT, 8)]).len, 0);
}
