//! What the guest sees when the host fails.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use gvmm_plugin_api::memory::{GuestMemory, GuestRange, MemoryError};
use gvmm_plugin_api::testing::{Buffer, wait_until};

use crate::image::{Geometry, Image, Pace};
use crate::testing::{DATA, HEADER, Machine, STATUS, TestDisk};

const IO_ERROR: u8 = 1;

/// A disk that holds nothing and fails as it is told.
#[derive(Debug, Clone, Default)]
struct Faulty {
    /// Error number of every operation; 0 when they succeed.
    error: Arc<AtomicI32>,
    attempts: Arc<AtomicU32>,
}

impl Faulty {
    fn attempt(&self) -> io::Result<()> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        match self.error.load(Ordering::Relaxed) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Image for Faulty {
    fn geometry(&self) -> Geometry {
        Geometry { capacity: 1 << 20, block_size: 512, physical_block_size: 512, optimal_io_size: 0 }
    }

    fn look_at_size(&self) -> io::Result<u64> {
        Ok(1 << 20)
    }

    fn read(&self, _: &GuestMemory, _: &[GuestRange], _: u64) -> Result<(), MemoryError> {
        Ok(self.attempt()?)
    }

    fn read_now(&self, _: &GuestMemory, _: &[GuestRange], _: u64) -> Result<bool, MemoryError> {
        Ok(false)
    }

    fn write(&self, _: &GuestMemory, _: &[GuestRange], _: u64) -> Result<(), MemoryError> {
        Ok(self.attempt()?)
    }

    fn flush(&self) -> io::Result<()> {
        self.attempt()
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn durable_writes(&self) -> bool {
        false
    }

    fn note_flush_failure(&self, _: i32) {}

    fn has_lost_writes(&self) -> bool {
        false
    }

    fn pace(&self) -> Pace {
        Pace::Cached
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.attempt()
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.attempt()
    }
}

fn machine(options: &[(&str, &str)]) -> (Faulty, Machine) {
    let image = Faulty::default();
    // The file is there for the options alone.
    let machine = TestDisk::new(&[0; 512]).start_image(image.clone(), options);
    (image, machine)
}

#[test]
fn failures_of_the_host_are_errors_of_the_guest() {
    let (image, mut machine) = machine(&[]);
    image.error.store(libc::ENOSPC, Ordering::Relaxed);
    assert_eq!(machine.write(0, &[1; 512]), IO_ERROR);
    assert_eq!(machine.range_request(11, &[(0, 8, 0)]), IO_ERROR);
    assert_eq!(machine.range_request(13, &[(0, 8, 0)]), IO_ERROR);
    image.error.store(libc::EIO, Ordering::Relaxed);
    assert_eq!(machine.read(0, 512), Err(IO_ERROR));
    assert_eq!(machine.flush(), IO_ERROR);
    image.error.store(0, Ordering::Relaxed);
    assert_eq!(machine.write(0, &[1; 512]), 0);
    assert_eq!(machine.metric("errors"), 5);
    assert_eq!(machine.host.failures(), [""; 0]);
}

/// Makes a write available and waits until it was tried twice.
fn write_that_has_to_wait(image: &Faulty, machine: &mut Machine) {
    machine.write_header(1, 0);
    machine.queue.add(&[
        Buffer::readable(HEADER, 16),
        Buffer::readable(DATA, 512),
        Buffer::writable(STATUS, 1),
    ]);
    machine.queue.kick();
    let attempts = image.attempts.clone();
    wait_until("a second attempt", || attempts.load(Ordering::Relaxed) >= 2);
}

#[test]
fn with_on_error_stop_a_write_waits_until_the_host_has_room_again() {
    let (image, mut machine) = machine(&[("on-error", "stop")]);
    image.error.store(libc::ENOSPC, Ordering::Relaxed);
    write_that_has_to_wait(&image, &mut machine);
    assert_eq!(machine.queue.poll_used(), None, "nothing is acknowledged that is not done");
    image.error.store(0, Ordering::Relaxed);
    machine.queue.wait_used();
    assert_eq!(machine.harness.memory().read(STATUS, 1), [0]);
    assert_eq!(machine.metric("errors"), 0);
}

#[test]
fn with_on_error_stop_a_queue_can_still_be_stopped() {
    let (image, mut machine) = machine(&[("on-error", "stop")]);
    image.error.store(libc::EIO, Ordering::Relaxed);
    write_that_has_to_wait(&image, &mut machine);
    let state = machine.device.stop_queue(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));
    assert_eq!(machine.harness.memory().read(STATUS, 1), [IO_ERROR]);
}

#[test]
fn with_on_error_stop_a_flush_that_fails_is_reported_all_the_same() {
    let (image, mut machine) = machine(&[("on-error", "stop")]);
    image.error.store(libc::EIO, Ordering::Relaxed);
    assert_eq!(machine.flush(), IO_ERROR);
}
