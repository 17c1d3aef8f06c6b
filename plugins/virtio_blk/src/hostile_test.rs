//! What a driver may do at worst: nothing here may panic, hang, leave the image's bounds or fail to be answered.

use gvmm_plugin_api::testing::{Buffer, wait_until};
use proptest::prelude::*;

use crate::testing::{DATA, HEADER, Machine, STATUS, TestDisk, pattern};

const SIZE: usize = 64 << 10;

/// An address that is mostly in memory, sometimes at its edges or nowhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..0x20_0000_u64).prop_map(|offset| DATA + offset),
        1 => (0..64_u64).prop_map(|offset| 0x8000_0000 + (32 << 20) - offset),
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0..16_u32).prop_map(|sectors| sectors * 512),
        2 => 0..5000_u32,
        1 => any::<u32>(),
    ]
}

fn buffer() -> impl Strategy<Value = Buffer> {
    (address(), length(), any::<bool>()).prop_map(|(address, len, writable)| Buffer {
        address,
        len,
        writable,
    })
}

fn kind() -> impl Strategy<Value = u32> {
    prop_oneof![8 => prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()]
}

fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..(SIZE as u64 / 512 + 8), 1 => any::<u64>()]
}

fn engine() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["auto", "threads", "sync"])
}

/// Writes that the model in [`any_sequence_of_requests_leaves_what_a_plain_array_would_hold`] knows.
#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, sectors: usize, byte: u8 },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Read { sector: u64, sectors: usize },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let sectors = SIZE / 512;
    let place = (0..sectors).prop_flat_map(move |sector| (Just(sector as u64), 0..=(sectors - sector)));
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|((sector, sectors), byte)| Step::Write {
            sector,
            sectors,
            byte
        }),
        (place.clone(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero {
            sector,
            sectors: sectors as u32,
            unmap
        }),
        place.prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_request_is_answered_or_stops_the_device(
        requests in prop::collection::vec((kind(), sector(), prop::collection::vec(buffer(), 0..6)), 1..24),
        indirect in any::<bool>(),
        engine in engine(),
    ) {
        let disk = TestDisk::new(&pattern(SIZE));
        let mut machine = disk.start(&[("engine", engine)]);
        for (kind, sector, data) in requests {
            machine.write_header(kind, sector);
            let mut buffers = vec![Buffer::readable(HEADER, 16)];
            buffers.extend(data.iter().filter(|buffer| !buffer.writable));
            buffers.extend(data.iter().filter(|buffer| buffer.writable));
            buffers.push(Buffer::writable(STATUS, 1));
            machine.harness.memory().write(STATUS, &[0xff]);
            if indirect {
                machine.queue.add_indirect(&buffers);
            } else {
                machine.queue.add(&buffers);
            }
            machine.queue.kick();
            let mut answered = false;
            wait_until("an answer or a failure", || {
                answered = answered || machine.queue.poll_used().is_some();
                answered || !machine.host.failures().is_empty()
            });
            if !answered {
                // More than 4 GiB in one chain is the one thing that is beyond an answer here.
                let total: u64 = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
                prop_assert!(total > u64::from(u32::MAX), "{:?}", machine.host.failures());
                break;
            }
            prop_assert!(machine.harness.memory().read(STATUS, 1)[0] <= 2);
        }
        prop_assert!(!machine.host.failures().iter().any(|failure| failure.contains("panicked")));
        machine.device.stop_queue(0);
        prop_assert_eq!(disk.content().len(), SIZE);
    }

    #[test]
    fn any_descriptor_table_is_survived(
        table in prop::collection::vec((address(), length(), any::<u16>(), 0..70_u16), 64),
        heads in prop::collection::vec(0..70_u16, 1..32),
        header in (kind(), sector()),
    ) {
        let disk = TestDisk::new(&pattern(SIZE));
        let mut machine = disk.start(&[]);
        machine.write_header(header.0, header.1);
        for (index, (address, len, flags, next)) in table.into_iter().enumerate() {
            let address = if index % 3 == 0 { HEADER } else { address };
            machine.queue.descriptor(index as u16, address, len, flags, next);
        }
        heads.iter().for_each(|&head| machine.queue.offer(head));
        machine.queue.kick();
        let mut used = 0;
        let Machine { queue, host, device, .. } = &mut machine;
        wait_until("answers or a failure", || {
            used += usize::from(queue.poll_used().is_some());
            used == heads.len() || !host.failures().is_empty()
        });
        prop_assert!(!host.failures().iter().any(|failure| failure.contains("panicked")));
        device.stop_queue(0);
        prop_assert_eq!(disk.content().len(), SIZE);
    }

    #[test]
    fn any_sequence_of_requests_leaves_what_a_plain_array_would_hold(
        steps in prop::collection::vec(step(), 1..40),
        cache in prop::sample::select(vec!["writeback", "writethrough"]),
        engine in engine(),
    ) {
        let disk = TestDisk::new(&pattern(SIZE));
        let mut machine = disk.start(&[("cache", cache), ("engine", engine)]);
        let mut model = pattern(SIZE);
        for step in steps {
            match step {
                Step::Write { sector, sectors, byte } => {
                    prop_assert_eq!(machine.write(sector, &vec![byte; sectors * 512]), 0);
                    model[sector as usize * 512..][..sectors * 512].fill(byte);
                }
                Step::Zero { sector, sectors, unmap } => {
                    prop_assert_eq!(machine.range_request(13, &[(sector, sectors, u32::from(unmap))]), 0);
                    model[sector as usize * 512..][..sectors as usize * 512].fill(0);
                }
                Step::Read { sector, sectors } => {
                    let read = machine.read(sector, sectors as u32 * 512);
                    prop_assert_eq!(read, Ok(model[sector as usize * 512..][..sectors * 512].to_vec()));
                }
                Step::Flush => prop_assert_eq!(machine.flush(), 0),
            }
        }
        prop_assert_eq!(disk.content(), model);
        prop_assert_eq!(machine.host.failures(), [""; 0]);
    }
}
