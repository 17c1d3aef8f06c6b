//! Serves one queue on the queue's own thread: takes a request, does it, completes it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gvmm_plugin_api::memory::{GuestMemory, MemoryError};
use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue};
use gvmm_plugin_api::tracing::{debug, warn};
use gvmm_plugin_api::worker::QueueHandler;

use crate::config::{F_CONFIG_WCE, F_FLUSH};
use crate::image::Image;
use crate::metrics::Metrics;
use crate::request::{Limits, Operation, Request, Segments, Status, parse};

/// Completed requests after which the driver is interrupted while more are waiting.
const BATCH: u32 = 16;

/// What all queues of a disk share.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) image: Box<dyn Image>,
    pub(crate) limits: Limits,
    /// What the driver reads as the disk's id, padded with zeros.
    pub(crate) serial: [u8; 20],
    /// Whether the image itself makes every write durable.
    pub(crate) durable_writes: bool,
    /// The driver's choice: writes are durable only once flushed.
    pub(crate) writeback: AtomicBool,
    pub(crate) metrics: Metrics,
}

/// Serves the requests of one queue.
#[derive(Debug)]
pub(crate) struct BlockQueue {
    disk: Arc<Disk>,
    /// Features that the driver accepted.
    features: u64,
    /// Requests completed since the driver was last interrupted.
    unsignalled: u32,
}

impl BlockQueue {
    pub(crate) fn new(disk: Arc<Disk>, features: u64) -> Self {
        Self { disk, features, unsignalled: 0 }
    }

    /// Whether a write must be durable when it is completed (virtio 1.2, 5.2.6.2): the driver has no flush, or has
    /// switched the write cache off.
    fn writes_through(&self) -> bool {
        let switched_off = self.features & F_CONFIG_WCE != 0 && !self.disk.writeback.load(Ordering::Relaxed);
        !self.disk.durable_writes && (self.features & F_FLUSH == 0 || switched_off)
    }

    /// Does a request; the number of bytes written to the data buffers.
    fn execute(
        &self,
        operation: &Operation,
        chain: &Chain,
        memory: &GuestMemory,
    ) -> Result<u64, MemoryError> {
        let Disk { image, metrics, .. } = &*self.disk;
        match operation {
            Operation::Read(extent) => {
                image.read(memory, chain.writable(), extent.offset)?;
                metrics.read_requests.add(1);
                metrics.read_bytes.add(extent.len);
                return Ok(extent.len);
            }
            Operation::Write(extent) => {
                image.write(memory, chain.readable(), extent.offset)?;
                if self.writes_through() {
                    image.flush()?;
                }
                metrics.write_requests.add(1);
                metrics.write_bytes.add(extent.len);
            }
            Operation::Flush => {
                metrics.flushes.add(1);
                image.flush()?;
            }
            Operation::GetId => return self.write_id(chain, memory),
            Operation::Discard(segments) => {
                metrics.discards.add(1);
                for (extent, _) in segments.iter() {
                    image.discard(extent.offset, extent.len)?;
                }
            }
            Operation::WriteZeroes(segments) => self.write_zeroes(segments)?,
            Operation::Refuse(_) => {}
        }
        Ok(0)
    }

    fn write_zeroes(&self, segments: &Segments) -> Result<(), MemoryError> {
        let image = &self.disk.image;
        self.disk.metrics.write_requests.add(1);
        for (extent, unmap) in segments.iter() {
            image.write_zeroes(extent.offset, extent.len, unmap)?;
        }
        if self.writes_through() {
            image.flush()?;
        }
        Ok(())
    }

    fn write_id(&self, chain: &Chain, memory: &GuestMemory) -> Result<u64, MemoryError> {
        let serial = &self.disk.serial;
        let room = gvmm_plugin_api::queue::total_len(chain.writable()).min(serial.len() as u64);
        chain.write(memory, 0, &serial[..room as usize])?;
        Ok(room)
    }

    fn complete(&mut self, queue: &mut VirtQueue, mut chain: Chain) -> Result<(), QueueError> {
        let Request { operation, status_address } = parse(&mut chain, queue.memory(), &self.disk.limits)?;
        let (status, written) = match &operation {
            Operation::Refuse(status) => {
                debug!("request refused: {status:?}");
                (*status, 0)
            }
            operation => match self.execute(operation, &chain, queue.memory()) {
                // The status byte follows the data.
                Ok(written) => (Status::Ok, written + 1),
                Err(error) => {
                    self.report(operation, &error);
                    (Status::IoError, 0)
                }
            },
        };
        if status != Status::Ok {
            self.disk.metrics.errors.add(1);
        }
        queue.memory().write(status_address, &[status as u8])?;
        // A chain is at most 4 GiB long.
        queue.push(chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        self.unsignalled += 1;
        if self.unsignalled >= BATCH {
            self.unsignalled = 0;
            queue.signal()?;
        }
        Ok(())
    }

    /// Logs a failure of the host; ever more rarely, as the guest may repeat the request for ever.
    fn report(&self, operation: &Operation, error: &MemoryError) {
        let errors = self.disk.metrics.errors.get() + 1;
        if matches!(error, MemoryError::Io(_)) && errors.is_power_of_two() {
            warn!("{operation} failed: {error} ({errors} failed requests so far)");
        } else {
            debug!("{operation} failed: {error}");
        }
    }
}

impl QueueHandler for BlockQueue {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        // At most a full queue at a time, so that the worker sees when it is to stop.
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else { break };
            self.complete(queue, chain)?;
        }
        // The worker signals what is left.
        self.unsignalled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
}
