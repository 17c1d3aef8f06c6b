//! Requests through the device, one at a time and many.

use gvmm_plugin_api::testing::Buffer;

use crate::config;
use crate::testing::{Answer, DATA, HEADER, Machine, STATUS, TestDisk, pattern};

const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn machine(disk: &TestDisk) -> Machine {
    disk.start(&[])
}

#[test]
fn what_is_written_is_read_back_and_in_the_file() {
    let disk = TestDisk::new(&pattern(64 << 10));
    let mut machine = machine(&disk);
    let data = vec![0xa5; 4096];
    assert_eq!(machine.write(8, &data), 0);
    assert_eq!(machine.flush(), 0);
    assert_eq!(machine.read(8, 4096), Ok(data.clone()));
    assert_eq!(machine.read(0, 4096), Ok(pattern(4096)));
    assert_eq!(disk.content()[4096..8192], data);
    assert_eq!(disk.content()[8192..], pattern(64 << 10)[8192..]);
    assert_eq!((machine.metric("read_requests"), machine.metric("read_bytes")), (2, 8192));
    assert_eq!((machine.metric("write_requests"), machine.metric("write_bytes")), (1, 4096));
    assert_eq!((machine.metric("flushes"), machine.metric("errors")), (1, 0));
}

#[test]
fn the_used_length_counts_data_and_status() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    assert_eq!(machine.request(0, 0, Buffer::writable(DATA, 1024)), Answer { status: 0, len: 1025 });
    assert_eq!(machine.request(1, 0, Buffer::readable(DATA, 1024)), Answer { status: 0, len: 1 });
    assert_eq!(machine.request(0, 16, Buffer::writable(DATA, 512)), Answer { status: IO_ERROR, len: 0 });
}

#[test]
fn any_cut_into_descriptors_means_the_same() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    machine.write_header(0, 1);
    let odd = [
        Buffer::readable(HEADER, 3),
        Buffer::readable(HEADER + 3, 13),
        Buffer::writable(DATA, 500),
        Buffer::writable(DATA + 500, 12),
        Buffer::writable(STATUS - 512, 513),
    ];
    assert_eq!(machine.send(&odd), Answer { status: 0, len: 1025 });
    assert_eq!(machine.harness.memory().read(DATA, 512), pattern(8192)[512..1024]);
    assert_eq!(machine.harness.memory().read(STATUS - 512, 512), pattern(8192)[1024..1536]);
}

#[test]
fn requests_beyond_the_end_fail_and_change_nothing() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    for sector in [16, 17, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        assert_eq!(machine.read(sector, 512), Err(IO_ERROR), "sector {sector}");
        assert_eq!(machine.write(sector, &[1; 512]), IO_ERROR, "sector {sector}");
    }
    assert_eq!(machine.write(15, &[1; 1024]), IO_ERROR);
    assert_eq!(machine.read(0, 511), Err(IO_ERROR));
    assert_eq!(machine.write(0, &[1; 513]), IO_ERROR);
    assert_eq!(disk.content(), pattern(8192));
    assert_eq!(machine.metric("errors"), 13);
    assert_eq!(machine.host.failures(), [""; 0]);
}

#[test]
fn unknown_requests_are_unsupported() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    for kind in [2, 3, 5, 7, 10, 12, 14, u32::MAX] {
        assert_eq!(machine.request(kind, 0, Buffer::writable(DATA, 512)).status, UNSUPPORTED);
    }
}

#[test]
fn a_header_that_is_short_or_nowhere_is_an_error() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    let status = Buffer::writable(STATUS, 1);
    assert_eq!(machine.send(&[Buffer::readable(HEADER, 15), status]).status, IO_ERROR);
    assert_eq!(machine.send(&[Buffer::readable(u64::MAX - 7, 16), status]).status, IO_ERROR);
    assert_eq!(machine.send(&[status]).status, IO_ERROR);
}

#[test]
fn data_outside_guest_memory_is_an_error() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    for address in [0, u64::MAX - 511, u64::MAX] {
        assert_eq!(machine.request(0, 0, Buffer::writable(address, 512)).status, IO_ERROR);
        assert_eq!(machine.request(1, 0, Buffer::readable(address, 512)).status, IO_ERROR);
    }
    assert_eq!(disk.content(), pattern(8192));
}

#[test]
fn a_request_without_a_status_byte_stops_the_device() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    machine.queue.add(&[Buffer::readable(HEADER, 16)]);
    machine.queue.kick();
    gvmm_plugin_api::testing::wait_until("the device fails", || !machine.host.failures().is_empty());
    assert_eq!(machine.host.failures(), ["queue 0: descriptor chain 0 is malformed"]);
}

#[test]
fn a_protected_disk_refuses_every_change() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = disk.start(&[("readonly", "on")]);
    assert_eq!(machine.write(0, &[1; 512]), IO_ERROR);
    assert_eq!(machine.range_request(11, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(machine.range_request(13, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(machine.flush(), 0);
    assert_eq!(machine.read(0, 8192), Ok(pattern(8192)));
    let features = machine.device.traits().features;
    assert_ne!(features & config::F_RO, 0);
    assert_eq!(features & (config::F_DISCARD | config::F_WRITE_ZEROES), 0);
}

#[test]
fn zeroed_ranges_read_as_zero_whether_or_not_they_are_freed() {
    let disk = TestDisk::new(&pattern(64 << 10));
    let mut machine = machine(&disk);
    assert_eq!(machine.range_request(13, &[(1, 9, 0), (32, 16, 1)]), 0);
    let mut expected = pattern(64 << 10);
    expected[512..5120].fill(0);
    expected[32 * 512..48 * 512].fill(0);
    assert_eq!(disk.content(), expected);
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    let disk = TestDisk::new(&pattern(1 << 20));
    let mut machine = machine(&disk);
    let blocks = || std::fs::metadata(disk.path()).unwrap().blocks();
    let before = blocks();
    assert_eq!(machine.range_request(11, &[(0, 1024, 0)]), 0);
    assert!(blocks() < before, "{} blocks before, {} after", before, blocks());
    assert_eq!(disk.content()[512 << 10..], pattern(1 << 20)[512 << 10..]);
    assert_eq!(machine.metric("discards"), 1);
}

#[test]
fn discard_off_keeps_the_space() {
    let disk = TestDisk::new(&pattern(64 << 10));
    let mut machine = disk.start(&[("discard", "off")]);
    assert_eq!(machine.device.traits().features & config::F_DISCARD, 0);
    assert_eq!(machine.range_request(11, &[(0, 64, 0)]), 0);
    assert_eq!(disk.content(), pattern(64 << 10));
    assert_eq!(machine.range_request(13, &[(0, 64, 1)]), 0);
    assert_eq!(machine.read(0, 32 << 10), Ok(vec![0; 32 << 10]));
}

#[test]
fn bad_segments_are_refused() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    assert_eq!(machine.range_request(11, &[(0, 8, 1)]), UNSUPPORTED);
    assert_eq!(machine.range_request(13, &[(0, 8, 2)]), UNSUPPORTED);
    assert_eq!(machine.range_request(11, &[(0, 17, 0)]), IO_ERROR);
    assert_eq!(machine.range_request(11, &[(u64::MAX, u32::MAX, 0)]), IO_ERROR);
    assert_eq!(machine.range_request(13, &[(0, 8, 0), (16, 1, 0)]), IO_ERROR);
    assert_eq!(machine.range_request(11, &[(0, 0, 0); 33]), IO_ERROR);
    assert_eq!(machine.range_request(11, &[]), IO_ERROR);
    assert_eq!(machine.request(11, 0, Buffer::readable(DATA, 15)).status, IO_ERROR);
    assert_eq!(disk.content(), pattern(8192));
}

#[test]
fn the_id_is_the_serial_cut_to_the_buffer() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = disk.start(&[("serial", "root-disk")]);
    assert_eq!(machine.request(8, 0, Buffer::writable(DATA, 20)), Answer { status: 0, len: 21 });
    assert_eq!(machine.harness.memory().read(DATA, 20), *b"root-disk\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(machine.request(8, 0, Buffer::writable(DATA, 4)), Answer { status: 0, len: 5 });
}

#[test]
fn a_stopped_queue_goes_on_where_it_stood() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    for _ in 0..70 {
        assert_eq!(machine.read(0, 512), Ok(pattern(512)));
    }
    let Machine { harness, queue, .. } = &mut machine;
    let state = harness.stop(0, queue);
    assert_eq!((state.next_avail, state.next_used), (70, 70));
    harness.resume(0, queue, state);
    assert_eq!(machine.read(1, 512), Ok(pattern(1024)[512..].to_vec()));
}

#[test]
fn a_queue_that_never_runs_empty_can_be_stopped() {
    let disk = TestDisk::new(&pattern(8192));
    let Machine { device, harness, mut queue, host } = machine(&disk);
    harness.memory().write(HEADER, &[0; 16]);
    let stopped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = stopped.clone();
    let driver = std::thread::spawn(move || {
        let request =
            [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
        (0..16).for_each(|_| _ = queue.add(&request));
        queue.kick();
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            if queue.poll_used().is_some() {
                queue.add(&request);
                queue.kick();
            }
        }
    });
    gvmm_plugin_api::testing::wait_until("requests under way", || {
        device.metrics().iter().any(|metric| metric.name == "read_requests" && metric.value > 1000)
    });
    assert!(device.stop_queue(0).is_some());
    stopped.store(true, std::sync::atomic::Ordering::Relaxed);
    driver.join().unwrap();
    assert_eq!(host.failures(), [""; 0]);
}

/// Writes every block of a disk with all requests in flight at once, then reads them back likewise.
fn fill_and_check(options: &[(&str, &str)]) {
    const BLOCK: usize = 16 << 10;
    /// Each is three of the queue's 64 descriptors.
    const BLOCKS: usize = 20;
    let disk = TestDisk::new(&vec![0; BLOCK * BLOCKS]);
    let mut machine = disk.start(options);
    let content = pattern(BLOCK * BLOCKS);
    for kind in [1_u32, 0] {
        let at = DATA + u64::from(kind) * (1 << 20);
        if kind == 1 {
            machine.harness.memory().write(at, &content);
        }
        let mut expected: Vec<u16> = (0..BLOCKS as u64)
            .map(|i| {
                let header = HEADER + 0x200 + i * 32;
                let sector = i * BLOCK as u64 / 512;
                let bytes = [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
                machine.harness.memory().write(header, &bytes);
                let data = Buffer { address: at + i * BLOCK as u64, len: BLOCK as u32, writable: kind == 0 };
                let status = Buffer::writable(header + 16, 1);
                if i % 8 == 7 {
                    machine.queue.kick();
                }
                machine.queue.add(&[Buffer::readable(header, 16), data, status])
            })
            .collect();
        machine.queue.kick();
        while !expected.is_empty() {
            let used = machine.queue.wait_used();
            let place = expected.iter().position(|head| *head == used.head).expect("a request in flight");
            expected.swap_remove(place);
        }
    }
    assert_eq!(machine.harness.memory().read(DATA, BLOCK * BLOCKS), content);
    assert_eq!(disk.content(), content);
    assert_eq!(machine.metric("errors"), 0);
}

#[test]
fn requests_in_flight_together_are_each_done_once_by_every_engine() {
    for engine in ["auto", "threads", "sync"] {
        for cache in ["writeback", "writethrough"] {
            fill_and_check(&[("engine", engine), ("cache", cache)]);
        }
    }
}

#[test]
fn requests_in_flight_are_completed_before_a_queue_stops() {
    for engine in ["auto", "threads"] {
        let disk = TestDisk::new(&pattern(64 << 10));
        // Writethrough makes every write wait for the disk.
        let mut machine = disk.start(&[("engine", engine), ("cache", "writethrough")]);
        machine.write_header(1, 0);
        let write = [Buffer::readable(HEADER, 16), Buffer::readable(DATA, 4096), Buffer::writable(STATUS, 1)];
        (0..16).for_each(|_| _ = machine.queue.add(&write));
        machine.queue.kick();
        let state = machine.device.stop_queue(0).unwrap();
        assert_eq!(state.next_used, state.next_avail, "{engine}: nothing is left in flight");
        let mut used = 0;
        while machine.queue.poll_used().is_some() {
            used += 1;
        }
        assert_eq!(used, state.next_used);
    }
}

#[test]
fn a_write_cache_switched_off_writes_through_threads() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = machine(&disk);
    machine.device.write_config(config::WRITEBACK_OFFSET as u32, &[0]);
    assert_eq!(machine.write(0, &[9; 4096]), 0);
    assert_eq!(machine.range_request(13, &[(8, 8, 0)]), 0);
    assert_eq!(disk.content(), [[9; 4096], [0; 4096]].concat());
}

#[test]
fn requests_beyond_their_rate_are_delayed_and_none_is_forgotten() {
    let disk = TestDisk::new(&pattern(8192));
    let mut machine = disk.start(&[("iops", "100"), ("bandwidth", "1M")]);
    for _ in 0..30 {
        assert_eq!(machine.read(0, 8192), Ok(pattern(8192)));
    }
}
